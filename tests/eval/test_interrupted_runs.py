"""Evaluations of two processes that are killed and started again have the results of one that is not."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest


ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = (
    "sugarcrepe-pp", "docci", "dci", "circo", "m-beir", "mrmr", "mmeb-v3-text", "mmeb-v3-tools",
)  # fmt: skip


def start(output: Path, processes: int) -> subprocess.Popen:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    arguments = ["--model", ROOT / "checkpoints" / "unime-tiny", "--benchmarks", *BENCHMARKS, "--output", output]
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "unime.eval", *map(str, arguments), "--miniature"],
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": str(output / "cache")},
        start_new_session=True,
    )


def results_of(output: Path) -> dict[str, Any]:
    results = {name: json.loads((output / name / "results.json").read_text())["unime-tiny"] for name in BENCHMARKS}
    parts = ("tasks", "overall", "distributions", "compositional", "compositional_chance")
    return {name: {part: result[part] for part in parts} for name, result in results.items()}


@pytest.mark.slow
@pytest.mark.timeout(1300)  # three launches of at most 400 seconds
def test_a_killed_run_of_two_processes_ends_with_the_results_of_one_process(tmp_path: Path):
    assert start(tmp_path / "one", 1).wait(timeout=400) == 0
    written = random.Random(time.time_ns()).randint(1, 8)  # number of files of embeddings at the kill
    run, deadline = start(tmp_path / "two", 2), time.monotonic() + 400
    while run.poll() is None and len(list((tmp_path / "two" / "embeddings").glob("*/*"))) < written:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    was_running = run.poll() is None
    with contextlib.suppress(ProcessLookupError):
        os.killpg(run.pid, signal.SIGKILL)
    run.wait(timeout=60)
    assert was_running, f"the run ended before it had written {written} files"
    assert not (tmp_path / "two" / BENCHMARKS[-1] / "results.json").exists()
    assert start(tmp_path / "two", 2).wait(timeout=400) == 0
    assert results_of(tmp_path / "two") == results_of(tmp_path / "one")
