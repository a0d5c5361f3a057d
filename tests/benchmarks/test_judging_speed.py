"""Tests of the benchmark of the judge."""

import json
from pathlib import Path

import judging


def test_both_ways_give_the_same_scores_and_are_timed(tmp_path: Path):
    output = tmp_path / "judging.json"
    judging.main(
        ["--models", judging.TINY, "--queries", "1", "--candidates", "3", "--rounds", "1", "--output", str(output)]
    )
    rows = json.loads(output.read_text())["rows"]
    assert len(rows) == 3
    assert all(row["speedup"] > 0 and row["largest difference of scores"] < 1e-5 for row in rows)
