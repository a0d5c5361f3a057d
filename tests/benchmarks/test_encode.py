"""All ways to embed that are compared give the same vectors, and the comparison leaves ratios only."""

import json
from pathlib import Path

import encode


def test_ways_are_compared_on_the_same_vectors(tmp_path: Path):
    output = tmp_path / "encode.json"
    encode.main(encode.ScriptArguments(["unime-tiny"], items=6, rounds=1, threads=1, output=str(output)))
    rows = json.loads(output.read_text())["rows"]
    assert [row["peer"] for row in rows] == ["sentence-transformers"] * 5 + ["plain transformers", "published snippet"]
    assert len({row["items"] for row in rows}) == 5
    assert all(row["times as fast"] > 0 and row["largest difference"] < 1e-5 for row in rows)
    assert "seconds" not in output.read_text()
