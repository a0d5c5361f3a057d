"""The server and the page under many clients, some of them hostile: each good request gets its own answer.

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
WARM = max(20, SECONDS / 5)  # seconds
GROWTH = 1.1  # of the memory, after warm-up


def under_load(script: str, output: Path, *options: str) -> dict[str, Any]:
    """Run a benchmark, which checks every answer, and return its row."""
    command = [sys.executable, f"benchmarks/{script}.py", "--clients", "64", "--hostile", "0.05"]
    command += ["--seconds", str(SECONDS), "--warm", str(WARM), "--output", str(output), *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600 + 2 * (WARM + SECONDS)
    )
    assert done.returncode == 0, done.stderr[-4000:]
    print(done.stdout)
    (row,) = json.loads(output.read_text())["rows"]
    return row


def check(row: dict[str, Any], record_property: Callable[[str, object], None]) -> None:
    record_property("requests", row["answers_checked"] + row["hostile_refused"])
    record_property("right", row["answers_checked"] + row["hostile_refused"])
    assert row["clients"] == 64 and row["answers_checked"] > 64 and row["hostile_refused"] > 0
    assert 0 < row["p50_ms"] <= row["p99_ms"]
    assert 0 < row["memory_mb"] <= GROWTH * row["memory_warm_mb"]


@pytest.mark.slow
def test_the_server_answers_every_good_request_and_does_not_grow(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    check(under_load("serving", tmp_path / "serving.json", "--modes", "batched"), record_property)


@pytest.mark.slow
def test_the_page_answers_every_good_visitor_and_does_not_grow(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    colours = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for number in range(30):
        pixels = colours.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((96, 96)).save(tmp_path / "images" / f"{number}.png")
    checkpoint = str(ROOT / "checkpoints" / "unime-tiny")
    store = Index.create(tmp_path / "index", checkpoint)
    store.sync(open_corpus(tmp_path / "images"), *load_model(checkpoint, dtype="float32"))
    check(under_load("page_load", tmp_path / "page.json", "--index", str(tmp_path / "index")), record_property)
