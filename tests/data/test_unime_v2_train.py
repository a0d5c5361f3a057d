"""The released training data of UniME-V2, on small files in its published layout."""

import json
from pathlib import Path

import pytest
from PIL import Image

from unime.data import unime_v2_train as module
from unime.data.rows import ROW_COLUMNS
from unime.data.sources import DataArguments, open_rows


COMPOSED = "Given an image, find a similar everyday image with the described changes:"
IMAGE = "<|image_1|>\nRepresent the given image.\n"
FILE = "train_data_Qwen25VL_7B_scores.json"
ROWS = [
    {
        "query_text": "<|image_1|>\n" + COMPOSED + " two dogs\n",
        "query_image": "images/CIRR/Train/0.jpg",
        "pos_text": IMAGE,
        "pos_image": "images/CIRR/Train/1.jpg",
        "query_pos_scores": 0.75,
        "hard_negatives": [[IMAGE, f"images/CIRR/Train/{n % 2}.jpg"] for n in range(10)],
        "hard_negatives_scores": [n / 16 for n in range(10)],
    },
    {
        "query_text": "Find me an everyday image that matches the given caption: A dog, [in] a \"car\"\n",
        "query_image": "",
        "pos_text": IMAGE,
        "pos_image": "images/MSCOCO_t2i/Train/0.jpg",
        "query_pos_scores": 1.0,
        "hard_negatives": [["tench\n", ""]] * 10,
        "hard_negatives_scores": [0.25] * 10,
    },
    {
        "query_text": "<|image_1|>\nRepresent the given image with the following question: What is it?\n",
        "query_image": "photos/0.jpg",
        "pos_text": "a dog\n",
        "pos_image": "",
        "query_pos_scores": 0.5,
        "hard_negatives": [[f"cat {n}\n", ""] for n in range(10)],
        "hard_negatives_scores": [0.125] * 10,
    },
]  # fmt: skip


@pytest.fixture
def published(tmp_path: Path) -> Path:
    (tmp_path / FILE).write_text(json.dumps(ROWS, indent=1))
    for name in ("images/CIRR/Train/0", "images/CIRR/Train/1", "images/MSCOCO_t2i/Train/0", "photos/0"):
        path = tmp_path / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 4), (9, 99, 199)).save(path)
    return tmp_path


@pytest.mark.parametrize("given", [".", FILE], ids=["folder", "file"])
def test_published_rows_become_rows_with_scores(published: Path, given: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "READ_CHARACTERS", 64)  # rows lie on both sides of what is read at a time
    rows = open_rows(DataArguments(dataset=str(published / given), image_root=str(published)))
    assert len(rows) == 3
    composed, caption, question = rows[0], rows[1], rows[2]
    assert tuple(composed) == ROW_COLUMNS
    assert composed["query"]["text"] == "two dogs" and composed["query"]["image"][0].size == (6, 4)
    assert composed["query"]["instruction"].startswith("Given an image, find a similar")
    assert composed["positives"][0].keys() == {"image", "instruction"}
    # The released code trains on the first eight of ten negatives.
    assert len(composed["negatives"]) == 8 and composed["scores"] == [0.75, *(n / 16 for n in range(8))]
    assert caption["query"]["text"] == 'A dog, [in] a "car"' and caption["negatives"][0] == {"text": "tench"}
    assert question["query"]["text"] == "What is it?" and question["positives"] == [{"text": "a dog"}]


def test_the_task_is_the_subset(published: Path):
    rows = open_rows(DataArguments(dataset=str(published), image_root=str(published)))
    tasks = rows.with_format(None)["task"][:]
    assert tasks[:2] == ["CIRR", "MSCOCO_t2i"]
    assert tasks[2] == "Represent the given image with the following question:"  # no folder of a subset


@pytest.mark.parametrize("content", ["{}", "[{]", '[{"query_text": 1'])
def test_a_file_that_is_no_list_is_named(tmp_path: Path, content: str):
    (tmp_path / FILE).write_text(content)
    with pytest.raises(ValueError, match="scores.json.* is not .*JSON.*: use the file as published"):
        open_rows(DataArguments(dataset=str(tmp_path / FILE)))


def test_a_row_without_the_columns_is_named(tmp_path: Path):
    (tmp_path / FILE).write_text(json.dumps([{"query_text": "a"}]))
    rows = open_rows(DataArguments(dataset=str(tmp_path / FILE)))
    with pytest.raises(ValueError, match="scores.json, row 0: it has not the columns query_text, .* as published"):
        rows[0]


def test_an_unknown_judge_is_an_error(published: Path):
    with pytest.raises(ValueError, match="unknown judge 'GPT'.* set config_name to one of Qwen25VL_7B, InternVL3_8B"):
        open_rows(DataArguments(dataset=str(published), config_name="GPT"))
