"""Tests of the benchmark of indexing photographs."""

import json
from pathlib import Path

import index_images
import pytest
from PIL import Image


def test_photographs_are_distinct_files_of_the_given_size(tmp_path: Path) -> None:
    index_images.write_photographs(tmp_path, index_images.DISTINCT_IMAGES + 2, (64, 48))
    files = sorted(tmp_path.iterdir())
    assert len({file.read_bytes() for file in files}) == len(files) == index_images.DISTINCT_IMAGES + 2
    for file in files:
        with Image.open(file) as image:
            image.load()
            assert image.size == (64, 48)


@pytest.mark.slow
def test_all_ways_are_measured(tmp_path: Path) -> None:
    output = tmp_path / "index_images.json"
    index_images.main(["--quick", "--output", str(output)])
    rows = json.loads(output.read_text())["rows"]
    assert [row["way"] for row in rows] == [*index_images.commands(tmp_path, tmp_path)]
    assert all(row["images per second"] > 0 for row in rows) and rows[0]["speedup over 1 core"] == 1
