"""Tests of the benchmark of indexing clip art."""

import json
from pathlib import Path

import clip_art
import pytest
from PIL import Image


def test_drawings_have_five_formats_and_are_the_same_every_time(tmp_path: Path) -> None:
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        for number in range(5):
            clip_art.write_drawing(folder, number)
    first, second = (sorted(path.iterdir()) for path in (tmp_path / "a", tmp_path / "b"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert [Image.open(path).format for path in first] == ["PNG", "PNG", "GIF", "JPEG", "WEBP"]


@pytest.mark.slow
def test_an_index_of_drawings_is_measured(tmp_path: Path) -> None:
    clip_art.main(["--quick", "--output", str(tmp_path / "clip_art.json")])
    (row,) = json.loads((tmp_path / "clip_art.json").read_text())["rows"]
    assert row["images"] == 20 and row["unime index, images per second"] > 0
    assert 0 < row["bytes of the log"] < 1000
