"""Tests of the scaling benchmark."""

import json
from pathlib import Path

import pytest
import scaling


def test_the_exponent_of_a_power_law_is_recovered():
    assert scaling.exponent([1, 2, 4, 8], [3.0, 6.0, 12.0, 24.0]) == pytest.approx(1)
    assert scaling.exponent([10, 100], [5.0, 500.0]) == pytest.approx(2)


def test_scaling_of_encoding_and_of_both_losses_is_written(tmp_path: Path):
    output = tmp_path / "scaling.json"
    scaling.main(
        scaling.ScriptArguments(sizes=[8, 32], batches=[16, 32], processes=[1], threads=1, output=str(output))
    )
    rows = json.loads(output.read_text())["rows"]
    assert [row["work"] for row in rows] == ["encode, 1 process", "contrastive loss", "distillation loss"]
    assert rows[0]["exponent"] < 1.5 and all(
        row["time per item relative to the first"].startswith("1.00 ") for row in rows
    )
