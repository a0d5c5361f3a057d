"""Test of the training benchmark: equal losses, and ratios instead of times."""

import json
import sys
from pathlib import Path

import pytest
import training


def test_both_implementations_have_the_same_loss_and_only_ratios_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    command = ["training.py", "--runs", "unime-tiny:4", "--rounds", "1", "--trained", "LoRA, frozen vision"]
    monkeypatch.setattr(sys, "argv", [*command, "--output", str(tmp_path / "training.json")])
    training.main()
    *stage_2, stage_1 = json.loads((tmp_path / "training.json").read_text())["rows"]
    assert [(row["stage"], row["batch"], row["graph cache, GB"]) for row in stage_2] == [(2, 4, 0), (2, 4, 4)]
    for row in stage_2:
        assert row["loss"] == pytest.approx(row["loss of sentence-transformers"], abs=1e-4)
        assert row["speedup over sentence-transformers"] > 0
    assert stage_1["loss"] == pytest.approx(stage_1["loss with an online teacher"], abs=1e-4)
    assert not any("seconds" in name for row in (*stage_2, stage_1) for name in row)
