"""Grades of mined negatives by what is drawn, by hand, and the file that stage 2 reads."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from unime.data.sources import DataArguments, open_rows
from unime.openmoji.catalogue import catalogue


ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def grader(script: Callable[[Path], ModuleType]) -> ModuleType:
    return script(ROOT / "recipes" / "tiny" / "grade.py")


@pytest.fixture(scope="module")
def grade(grader: ModuleType) -> Callable[..., float]:
    return grader.grade


def row(task: str, spec: str, label: str | None = None, of_query: bool = False) -> dict[str, Any]:
    images = {"query": None, "positive": None, "query" if of_query else "positive": spec}
    return {"task": task, "label": label} | {name: {"image": image} for name, image in images.items()}


def whole(index: int) -> str:
    return f"view {index}.96.0.0.0"


def emoji(name: str) -> int:
    return next(entry.index for entry in catalogue() if entry.name == name and entry.tone is None)


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ("scene 1.0.3 4.1.2", 1),
        ("scene 1.0.3 4.1.5", 5 / 6),  # another colour under one of two objects
        ("scene 1.8.3 4.1.2", 5 / 6),  # another cell
        ("scene 4.0.2 1.1.3", 4 / 6),  # objects swapped with their tiles
        ("scene 1.0.3 7.1.2", 1 / 3),  # one of three objects in both
        ("scene 7.0.3 8.1.2", 0),
    ],
)
def test_scenes_share_objects_cells_and_colours(grade: Callable[..., float], other: str, expected: float) -> None:
    first, second = row("scene_t2i", "scene 1.0.3 4.1.2"), row("scene_t2i", other)
    assert grade(first, second) == pytest.approx(expected) == grade(second, first)
    # Of a caption, the image is the query's.
    pair = [row("scene_i2t", spec, of_query=True) for spec in ("scene 1.0.3 4.1.2", other)]
    assert grade(*pair) == pytest.approx(expected)


def test_crops_share_the_object_and_the_colour(grade: Callable[..., float]) -> None:
    assert grade(row("crop", "crop 37.6", "a"), row("crop", "crop 37.2", "b")) == pytest.approx(2 / 3)
    assert grade(row("crop", "crop 37.6", "a"), row("crop", "crop 3.6", "b")) == 0


def test_emoji_share_their_kind(grade: Callable[..., float]) -> None:
    names = [catalogue()[emoji(name)] for name in ("pizza", "hamburger", "doughnut")]
    assert names[0].subcategory == names[1].subcategory != names[2].subcategory  # prepared food and sweets
    assert names[0].category == names[2].category
    first, second, third = (row("name_t2i", whole(entry.index), entry.code) for entry in names)
    assert grade(first, second) == 0.5
    assert grade(first, third) == 0.25
    toned = next(entry for entry in catalogue() if entry.tone == "light" and entry.base != entry.index)
    one, other = (row("name_t2i", whole(index), str(index)) for index in (toned.index, toned.base))
    assert grade(one, other) == 0.75


def test_equal_labels_are_right_and_other_words_are_wrong(grade: Callable[..., float]) -> None:
    first, second = (row("category", whole(index), "Food", of_query=True) for index in (1, 2))
    assert grade(first, second) == 1
    assert grade(first, row("category", whole(1), "Objects", of_query=True)) == 0
    assert grade(row("relation_t2i", "scene 1.0.3", "r"), row("relation_t2i", "scene 9.4.1", "r")) == 1


def test_stage_2_reads_the_grades(grader: ModuleType, tmp_path: Path) -> None:
    mined = DataArguments("openmoji", num_rows=80, negatives_per_row=0, mined_file=str(tmp_path / "mined.jsonl"))
    tasks = open_rows(replace(mined, mined_file=None)).with_format(None)["task"]
    numbers = range(len(tasks))
    candidates = [[other for other in numbers if other != row and tasks[other] == tasks[row]] for row in numbers]
    (tmp_path / "mined.jsonl").write_text("".join(f"{line}\n" for line in candidates))
    script = grader.ScriptArguments(output_dir=str(tmp_path / "graded"), num_negatives=3)
    grader.main(mined, script)
    written = tmp_path / "graded" / "negatives.jsonl"
    lines = [json.loads(line) for line in written.read_text().splitlines()]
    for line, item in zip(lines, open_rows(replace(mined, mined_file=str(written))), strict=True):
        assert len(item["negatives"]) == len(line["negatives"]) in (0, 3)
        assert item["scores"] == line["scores"] and item["scores"][0] == 1
        assert all(0 <= score <= 0.99 for score in item["scores"][1:])
    assert sum(len(line["negatives"]) > 0 for line in lines) > 60
    (tmp_path / "mined.jsonl").write_text("".join(f"{[(row + 1) % 80]}\n" for row in numbers))
    with pytest.raises(ValueError, match="mine with --pool task"):
        grader.main(mined, script)
    with pytest.raises(ValueError, match="negatives_per_row 0"):
        grader.main(replace(mined, negatives_per_row=1), script)
