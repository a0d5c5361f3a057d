"""The training benchmark compares the same loss on both sides, and writes ratios only."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[2]


def test_a_small_run_finds_the_same_losses_and_writes_ratios(tmp_path: Path):
    command = [sys.executable, "benchmarks/training.py", "--runs", "unime-tiny:4", "--rounds", "1"]
    command += ["--trained", "LoRA, frozen vision", "--output", str(tmp_path / "training.json")]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    *second, first = json.loads((tmp_path / "training.json").read_text())["rows"]
    assert [(row["stage"], row["batch"], row["graph memory, GB"]) for row in second] == [(2, 4, 0), (2, 4, 4)]
    for row in second:
        assert row["loss"] == pytest.approx(row["loss of sentence-transformers"], abs=1e-4)
        assert row["times as fast as sentence-transformers"] > 0
    assert first["loss"] == pytest.approx(first["loss with the teacher online"], abs=1e-4)
    assert not any("seconds" in name for row in (*second, first) for name in row)
