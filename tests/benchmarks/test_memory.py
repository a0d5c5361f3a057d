"""Test of the memory benchmark: memory grows with micro-batch and graph cache, not with the batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_memory_depends_on_the_graph_cache_and_not_on_the_batch(tmp_path: Path):
    command = [sys.executable, "benchmarks/memory.py", "--output", str(tmp_path / "memory.json")]
    command += ["--model", "unime-tiny", "--image_size", "96", "96"]
    command += ["--batch_sizes", "64", "256", "--graph_cache_gb", "0", "0.2", "8"]
    command += ["--micro_batch_tokens", "512", "--rows", "256"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads((tmp_path / "memory.json").read_text())["rows"]
    increases = {(row["graph cache, GB"], row["batch"]): row["increase during the steps, MB"] for row in rows}
    assert increases[8, 256] > 2.5 * increases[8, 64]  # four times the batch
    for graph_cache_gb in (0, 0.2):
        assert increases[graph_cache_gb, 256] < 1.3 * increases[graph_cache_gb, 64]
    assert increases[0, 256] < increases[0.2, 256] < 0.5 * increases[8, 256]
    assert 50 < increases[0.2, 256] - increases[0, 256] < 220
