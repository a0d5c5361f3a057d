"""The direction of imports, and the other rules of the tree that a reader should be able to rely on."""

import ast
import re
import sys
from pathlib import Path

import pytest

import unime


ROOT = Path(__file__).parents[1]
MAX_LINES = 320

ROOT_FILES = ["configuration_unime", "processing_unime", "modeling_unime", "checkpoint", "__init__"]
MAY_IMPORT = {room: set(ROOT_FILES[:position]) for position, room in enumerate(ROOT_FILES)}
MAY_IMPORT["data"] = {*ROOT_FILES, "data"}
MAY_IMPORT["trainers"] = {*ROOT_FILES, "data", "trainers"}
MAY_IMPORT["eval"] = {*ROOT_FILES, "data", "eval"}
"""What each room of the package may import: root files by name, the folders as a whole."""

PACKAGE = sorted(path for pattern in ("*.py", "[dt]*/**/*.py", "eval/**/*.py") for path in ROOT.glob(pattern))
PACKAGE = [path for path in PACKAGE if path.relative_to(ROOT).parts[0] != "tests"]
SCRIPTS = sorted(path for folder in ("recipes", "tests") for path in (ROOT / folder).rglob("*.py"))


def test_nothing_yet() -> None:
    pass
