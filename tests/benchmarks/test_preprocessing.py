"""Tests of the preprocessing benchmark."""

import json
from pathlib import Path

import preprocessing


def test_the_ways_to_prepare_an_image_are_timed(tmp_path: Path):
    output = tmp_path / "preprocessing.json"
    preprocessing.main(["--quick", "--repetitions", "3", "--output", str(output)])
    (row,) = json.loads(output.read_text())["rows"]
    assert row["cpu_ms"].keys() == {"processor", "unime", "blank images"}
    assert all(milliseconds > 0 for milliseconds in row["cpu_ms"].values())
