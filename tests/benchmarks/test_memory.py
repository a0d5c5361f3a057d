"""The memory of a step grows with the micro-batch and the budget for kept graphs, not with the batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_memory_follows_the_budget_and_not_the_batch(tmp_path: Path):
    command = [sys.executable, "benchmarks/memory.py", "--output", str(tmp_path / "memory.json")]
    command += ["--batch_sizes", "64", "256", "--budgets", "0", "0.2", "8"]
    command += ["--micro_batch_tokens", "512", "--rows", "256"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads((tmp_path / "memory.json").read_text())["rows"]
    peaks = {(row["budget, GB"], row["batch"]): row["rise in the steps, MB"] for row in rows}
    assert peaks[8, 256] > 2.5 * peaks[8, 64]  # four times the batch
    for budget in (0, 0.2):
        assert peaks[budget, 256] < 1.3 * peaks[budget, 64]
    assert peaks[0, 256] < peaks[0.2, 256] < 0.5 * peaks[8, 256]
    assert 50 < peaks[0.2, 256] - peaks[0, 256] < 220
