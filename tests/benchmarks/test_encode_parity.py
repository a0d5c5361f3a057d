"""Test of the parity benchmark."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_every_interface_returns_the_same_embeddings(tmp_path: Path):
    command = [sys.executable, ROOT / "benchmarks" / "encode_parity.py", "--output", tmp_path / "parity.json"]
    environment = {"RAY_worker_niceness": "0", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    record = json.loads((tmp_path / "parity.json").read_text())
    assert record["items"] == {"texts": 67, "images": 67, "both": 66} and len(record["largest difference"]) == 6
    assert all(0 <= difference < 1e-5 for difference in record["largest difference"].values())
