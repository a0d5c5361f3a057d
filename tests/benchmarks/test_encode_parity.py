"""Test of the parity benchmark."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_every_interface_returns_the_same_embeddings(tmp_path: Path):
    command = [sys.executable, ROOT / "benchmarks" / "encode_parity.py", "--output", tmp_path / "parity.json"]
    environment = {"RAY_worker_niceness": "0", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    record = json.loads((tmp_path / "parity.json").read_text())
    differences = {name: row for name, row in record["largest difference, ordinary items"].items() if name != "vLLM"}
    assert record["items"] == 200 and len(differences) == 6
    assert all(0 <= difference < 1e-5 for difference in differences.values())
    cosines = record["least cosine"]
    for name in ("AutoModel, remote code", "unime embed"):
        assert min(cosines[name].values()) > 0.999999, cosines[name]
