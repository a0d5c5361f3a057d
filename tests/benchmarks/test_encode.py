"""Tests of the encoding benchmark: equal embeddings, and ratios instead of times."""

import json
from pathlib import Path

import encode


def test_all_functions_return_the_same_embeddings(tmp_path: Path):
    output = tmp_path / "encode.json"
    encode.main(encode.ScriptArguments(["unime-tiny"], items=6, rounds=1, threads=1, output=str(output)))
    rows = json.loads(output.read_text())["rows"]
    assert [row["baseline"] for row in rows] == ["sentence-transformers"] * 5 + [
        "plain transformers",
        "published snippet",
    ]
    assert len({row["workload"] for row in rows}) == 5
    assert all(row["speedup"] > 0 and row["largest difference"] < 1e-5 for row in rows)
    assert "seconds" not in output.read_text()
