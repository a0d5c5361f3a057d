"""Fewer bits are measured, never silent."""

import json
from pathlib import Path

import precision
import pytest


def test_bfloat16_is_held_against_float32(tmp_path: Path):
    output = tmp_path / "precision.json"
    sizes = {"items": 8, "candidates": 20, "rounds": 1, "threads": 1, "output": str(output)}
    precision.main(precision.ScriptArguments(["unime-tiny"], ["bfloat16"], **sizes))
    (row,) = json.loads(output.read_text())["rows"]
    assert 0.999 < row["least cosine"] < 1 and abs(row["hit@1, greatest change"]) <= 10
    assert row["times as fast"] > 0


def test_an_unknown_way_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="there is no way 'int3' to embed: choose from bfloat16, compiled"):
        precision.loaded("int3", tmp_path, "cpu")
