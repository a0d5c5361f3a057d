"""Tests of the precision benchmark."""

import json
from pathlib import Path

import precision
import pytest


@pytest.mark.slow
def test_bfloat16_is_compared_with_float32(tmp_path: Path):
    output = tmp_path / "precision.json"
    sizes = {"items": 8, "candidates": 20, "rounds": 1, "threads": 1, "output": str(output)}
    precision.main(precision.ScriptArguments(["unime-tiny"], ["bfloat16"], **sizes))
    (row,) = json.loads(output.read_text())["rows"]
    assert 0.999 < row["minimum cosine"] < 1 and abs(row["hit@1, largest change"]) <= 10
    assert row["speedup"] > 0


def test_an_unknown_variant_is_rejected(tmp_path: Path):
    with pytest.raises(ValueError, match="unknown variant 'int3': choose from bfloat16, compiled"):
        precision.load_variant("int3", tmp_path, "cpu")
