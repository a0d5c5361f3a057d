"""Benchmarks import what they share from their own folder, as scripts do."""

import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
