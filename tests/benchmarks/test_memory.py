"""The memory of a step grows with the micro-batch, not with the batch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_gradient_caching_takes_no_more_memory_for_a_larger_batch():
    command = [sys.executable, "benchmarks/memory.py", "--batch_sizes", "24", "96", "--micro_batch_tokens", "512"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line.split("|")[1:-1] for line in done.stdout.splitlines() if line.startswith("| ")][1:]
    (_, cached, whole), (_, cached_of_more, whole_of_more) = [[float(cell) for cell in line] for line in lines]
    assert whole_of_more > 2.5 * whole  # four times the batch
    assert cached_of_more < 1.5 * cached
    assert cached_of_more < 0.4 * whole_of_more
