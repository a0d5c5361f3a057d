"""The load test checks every answer and writes its measurements."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_load_test_writes_a_row_for_each_number_of_clients_with_and_without_batching(tmp_path: Path):
    command = [sys.executable, "benchmarks/serving.py", "--clients", "2", "8", "--seconds", "4", "--hostile", "0.1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--output", str(tmp_path / "serving.json")],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads((tmp_path / "serving.json").read_text())["rows"]
    assert [(row["clients"], row["mode"]) for row in rows] == [
        (clients, kind) for clients in (2, 8) for kind in ("batched", "one by one")
    ]
    assert all(row["answers_checked"] > 0 and row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"] for row in rows)
    assert sum(row["hostile_refused"] for row in rows) > 0
    assert len([line for line in done.stdout.splitlines() if line.startswith("| ")]) == 1 + len(rows)


@pytest.mark.slow
def test_the_comparison_of_servers_checks_embeddings_and_measures_speed_and_memory(tmp_path: Path):
    command = [sys.executable, "benchmarks/serving_vllm.py", "--servers", "unime", "--rounds", "1", "--scale", "0.02"]
    done = subprocess.run(
        [*command, "--memory_requests", "20", "--output", str(tmp_path / "serving.json")],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    *speed, memory = json.loads((tmp_path / "serving.json").read_text())["rows"]
    assert len(speed) == 7 and all(row["items per second"] > 0 and row["CPU per item, ms"] > 0 for row in speed)
    assert memory["requests"] == 20 and len(memory["MB"]) == 11 and min(memory["MB"]) > 100
