"""All the ways to embed give one set of vectors."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_every_way_to_embed_gives_the_same_vectors(tmp_path: Path):
    command = [sys.executable, ROOT / "benchmarks" / "ways.py", "--output", tmp_path / "ways.json"]
    quiet = {"RAY_worker_niceness": "0", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=os.environ | quiet, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    record = json.loads((tmp_path / "ways.json").read_text())
    assert record["items"] == {"texts": 67, "images": 67, "both": 66} and len(record["largest difference"]) == 6
    assert all(0 <= difference < 1e-5 for difference in record["largest difference"].values())
