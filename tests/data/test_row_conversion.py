"""Datasets as people have them: pairs, triplets, paths, opened images, image folders with captions or classes."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import Dataset, IterableDataset, load_dataset
from PIL import Image

from unime.data.row_conversion import as_rows
from unime.data.rows import ROW_COLUMNS, content_hash
from unime.data.sources import DataArguments, open_rows


COLORS = ("red", "green", "blue")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for color in COLORS:
        Image.new("RGB", (8, 6), color).save(tmp_path / "images" / f"{color}.png")
    return tmp_path


def contents(row: dict[str, Any]) -> tuple:
    """Return what a row shows: hashes of its query, its positives and its negatives."""
    return (
        content_hash(row["query"]),
        [content_hash(item) for item in row["positives"]],
        [content_hash(item) for item in row["negatives"]],
    )


def captioned(color: str, *negatives: str) -> tuple:
    images = [Image.new("RGB", (8, 6), name) for name in (color, *negatives)]
    return content_hash(f"a {color} tile"), [content_hash(images[0])], [content_hash(image) for image in images[1:]]


# The forms of three rows whose captions retrieve images
FORMS: dict[str, Callable[[str], dict[str, Any]]] = {
    "relative paths": lambda color: {"query": f"a {color} tile", "positive": f"images/{color}.png"},
    "absolute paths": lambda color: {"anchor": f"a {color} tile", "positive": os.path.abspath(f"images/{color}.png")},
    "opened images": lambda color: {"query": f"a {color} tile", "positive": Image.open(f"images/{color}.png")},
    "items": lambda color: {"query": {"text": f"a {color} tile"}, "positive": {"image": f"images/{color}.png"}},
    "columns of an image folder": lambda color: {"image": f"images/{color}.png", "caption": f"a {color} tile"},
}


@pytest.mark.parametrize("kind", ["list", "Dataset", "stream"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_rows(form: str, kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder)
    source: Any = [FORMS[form](color) for color in COLORS]
    if kind != "list":
        source = Dataset.from_list(source)
    rows = as_rows(source.to_iterable_dataset() if kind == "stream" else source, "tiles")
    read = list(rows)
    assert [contents(row) for row in read] == [captioned(color) for color in COLORS]
    assert all(tuple(row) == ROW_COLUMNS for row in read)
    assert [(row["task"], row["where"]) for row in read] == [("tiles", f"tiles, row {row}") for row in range(3)]
    assert list(as_rows(rows, "again")) == read  # rows that are converted stay as they are


def test_triplets_with_several_negatives(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder)
    triplet = {"anchor": "a red tile", "positive": "images/red.png", "negative": "images/green.png"}
    numbered = {"anchor": "a red tile", "positive": "images/red.png", "negative_1": "images/green.png"}
    listed = {"query": "a red tile", "positives": ["images/red.png"], "negatives": ["images/green.png"]}
    for row in (triplet, numbered, listed):
        assert contents(as_rows([row], "tiles")[0]) == captioned("red", "green")
    two = as_rows(Dataset.from_list([numbered | {"negative_2": "images/blue.png"}]), "tiles")
    assert contents(two[0]) == captioned("red", "green", "blue")
    assert two[0]["query"] == {"text": "a red tile"}


def test_tasks_labels_and_scores_are_kept():
    row = {"anchor": "a", "positive": "b", "negative": "c", "task": "letters", "label": "B", "scores": [0.9, 0.1]}
    for rows in (as_rows([row], "pairs"), as_rows(Dataset.from_list([row]), "pairs")):
        assert {name: rows[0][name] for name in ("task", "label", "scores")} == {
            "task": "letters",
            "label": "B",
            "scores": [0.9, 0.1],
        }
    dataset = as_rows(Dataset.from_list([row]), "pairs")
    assert dataset.with_format(None)["task"][:] == ["letters"]  # for task blocks, without reading rows


def test_image_folders_with_captions(folder: Path):
    lines = [{"file_name": f"{color}.png", "caption": f"a {color} tile"} for color in COLORS]
    (folder / "images" / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    expected = sorted(captioned(color) for color in COLORS)
    in_python = as_rows(load_dataset("imagefolder", data_dir=str(folder / "images"), split="train"), "tiles")
    by_recipe = open_rows(DataArguments(dataset=str(folder / "images")))
    for rows in (in_python, by_recipe):
        assert sorted(contents(row) for row in rows) == expected


def test_image_folders_with_classes(folder: Path):
    for color in COLORS:
        (folder / "images" / color).mkdir()
        (folder / "images" / f"{color}.png").rename(folder / "images" / color / "0.png")
    for row in open_rows(DataArguments(dataset=str(folder / "images"))):
        image = row["query"]["image"]
        image = image[0] if isinstance(image, list) else image
        (positive,) = row["positives"]
        assert image.getpixel((0, 0)) == Image.new("RGB", (1, 1), positive["text"]).getpixel((0, 0))
        assert row["label"] == positive["text"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"caption": "a", "drawing": "b"}, "pairs, row 0: it has no 'query' (or 'anchor'); its columns are caption, "),
        ({"query": "a"}, "pairs, row 0: it has no 'positive' (or 'positives')"),
        ({"query": "a", "anchor": "a", "positive": "b"}, "pairs, row 0: it has both 'query' and 'anchor'"),
        ({"query": "a", "positive": "b", "positives": ["b"]}, "it has both 'positive' and 'positives'"),
        ({"query": "a", "positive": "b", "negative": "c", "negatives": ["c"]}, "both 'negatives' and 'negative'"),
        ({"query": "a", "positive": "missing.png"}, "pairs, row 0, positive: cannot read the image missing.png"),
        ({"query": "a", "positive": 3}, "pairs, row 0, positive: expected an item such as {'text': ...}, got int"),
        ({"query": "a", "positive": "b", "label": 0.5}, "'label' must be a string, got float"),
    ],
)
def test_errors_name_the_row(row: dict[str, Any], message: str):
    for rows in (as_rows([row], "pairs"), as_rows(Dataset.from_list([row]), "pairs")):
        with pytest.raises(ValueError) as error:
            rows[0]
        assert message in str(error.value)


def test_what_is_no_row_is_refused():
    with pytest.raises(ValueError, match="pairs is empty"):
        as_rows([], "pairs")
    with pytest.raises(ValueError, match="pairs consists of str instead of rows"):
        as_rows(["a text"], "pairs")


def test_a_broken_image_of_a_dataset_names_its_row(folder: Path):
    (folder / "images" / "red.png").write_bytes(b"\x89PNG broken")
    features = datasets.Features({"query": datasets.Value("string"), "positive": datasets.Image()})
    source = {"query": list(COLORS), "positive": [str(folder / "images" / f"{color}.png") for color in COLORS]}
    rows = as_rows(Dataset.from_dict(source, features=features), "tiles")
    assert rows[1]["query"] == {"text": "green"}
    with pytest.raises(ValueError, match="tiles, row 0, positive: cannot read the image .*red.png"):
        rows[0]


def test_a_stream_of_unknown_columns_is_converted():
    stream = IterableDataset.from_generator(lambda: iter([{"anchor": "a", "positive": "b"}] * 2))
    assert [row["query"] for row in as_rows(stream, "pairs")] == [{"text": "a"}] * 2


def test_a_dataset_with_a_transform_keeps_its_stored_columns():
    stored = Dataset.from_dict({"number": [0, 1, 2], "task": ["even", "odd", "even"]})

    def render(batch: dict[str, list]) -> dict[str, list]:
        assert set(batch) == {"number", "task"}
        return {"query": [f"number {n}" for n in batch["number"]], "positive": [str(n) for n in batch["number"]]}

    rows = as_rows(stored.with_transform(render), "numbers")
    assert rows.with_format(None)["task"][:] == ["even", "odd", "even"]  # for task blocks, without reading rows
    assert [(row["query"], row["task"], row["where"]) for row in rows] == [
        ({"text": "number 0"}, "even", "numbers, row 0"),
        ({"text": "number 1"}, "odd", "numbers, row 1"),
        ({"text": "number 2"}, "even", "numbers, row 2"),
    ]
    parts = rows.train_test_split(1, shuffle=False)
    assert parts["test"][0]["query"] == {"text": "number 2"}
