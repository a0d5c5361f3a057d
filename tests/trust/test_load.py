"""The server and the page under load from many clients, some hostile: each valid request gets its own answer.

LOAD_SECONDS=300 pytest -m slow tests/trust/test_load.py    # five minutes each; 20 seconds without
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unime import load_model
from unime.corpus.corpus import open_corpus
from unime.index.index import Index


ROOT = Path(__file__).resolve().parents[2]
SECONDS = float(os.environ.get("LOAD_SECONDS", 20))
WARM_UP_SECONDS = max(20, SECONDS / 5)
MAX_MEMORY_GROWTH = 1.1  # factor, after the warm-up


def under_load(script: str, output: Path, *options: str) -> dict[str, Any]:
    """Run a benchmark, which checks every answer, and return its row of results."""
    command = [sys.executable, f"benchmarks/{script}.py", "--clients", "64", "--hostile", "0.05"]
    command += ["--seconds", str(SECONDS), "--warm", str(WARM_UP_SECONDS), "--output", str(output), *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600 + 2 * (WARM_UP_SECONDS + SECONDS),
    )
    assert result.returncode == 0, result.stderr[-4000:]
    print(result.stdout)
    (row,) = json.loads(output.read_text())["rows"]
    return row


def check(row: dict[str, Any], record_property: Callable[[str, object], None]) -> None:
    record_property("requests", row["answers_checked"] + row["hostile_refused"])
    record_property("right", row["answers_checked"] + row["hostile_refused"])
    assert row["clients"] == 64 and row["answers_checked"] > 64 and row["hostile_refused"] > 0
    assert 0 < row["p50_ms"] <= row["p99_ms"]
    assert 0 < row["memory_mb"] <= MAX_MEMORY_GROWTH * row["memory_warm_mb"]


@pytest.mark.slow
def test_the_server_answers_every_valid_request_in_constant_memory(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    check(under_load("serving", tmp_path / "serving.json", "--modes", "batched"), record_property)


@pytest.mark.slow
def test_the_page_answers_every_valid_request_in_constant_memory(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for number in range(30):
        pixels = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((96, 96)).save(tmp_path / "images" / f"{number}.png")
    checkpoint = str(ROOT / "checkpoints" / "unime-tiny")
    index = Index.create(tmp_path / "index", checkpoint)
    index.sync(open_corpus(tmp_path / "images"), *load_model(checkpoint, dtype="float32"))
    check(under_load("page_load", tmp_path / "page.json", "--index", str(tmp_path / "index")), record_property)
