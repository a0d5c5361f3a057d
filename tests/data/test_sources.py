import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from unime.data.rows import ROW
from unime.data.sources import DataArguments, open_rows, open_texts


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Make an image folder: three pictures, and a `metadata.jsonl` with what is known of them."""
    lines = []
    for number in range(3):
        Image.new("RGB", (5, 4 + number), (80 * number, 9, 9)).save(tmp_path / f"{number}.png")
        known = {"file_name": f"{number}.png", "caption": f"caption {number}", "kind": f"kind {number % 2}"}
        lines.append(json.dumps(known | {"wrong": [f"wrong {number}", "never"]}))
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


@pytest.fixture
def settings(folder: Path) -> Callable[..., DataArguments]:
    columns = {"query.text": "caption", "positive.image": "image"}
    return lambda **more: DataArguments(**{"dataset": str(folder), "columns": columns} | more)


def test_an_image_folder_becomes_rows_by_a_column_map(folder: Path, settings: Callable[..., DataArguments]):
    instructions = {"query": "Find me an everyday image that matches the given caption:"}
    row = open_rows(settings(instructions=instructions))[1]
    assert tuple(row) == ROW
    assert row["query"] == {"instruction": instructions["query"], "text": "caption 1"}
    assert row["positive"]["image"][0].size == (5, 5) and row["positive"].keys() == {"image"}
    assert (row["negatives"], row["task"], row["label"]) == ([], folder.name, None)


def test_negatives_tasks_and_labels_can_be_mapped_too(settings: Callable[..., DataArguments]):
    columns = {"query.image": "image", "positive.text": "caption", "negative.text": "wrong"}
    columns |= {"task": "kind", "label": "caption"}
    dataset = open_rows(settings(columns=columns, instructions={"query": "What is it?"}))
    row = dataset[2]
    assert row["negatives"] == [{"text": "wrong 2"}, {"text": "never"}]
    assert (row["task"], row["label"]) == ("kind 0", "caption 2")
    assert dataset.with_format(None)["task"][:] == ["kind 0", "kind 1", "kind 0"]


def test_a_column_map_makes_texts_for_stage_1(settings: Callable[..., DataArguments]):
    dataset = open_texts(settings(columns={"text": "caption"}))
    assert dataset.column_names == ["text"] and dataset["text"][:2] == ["caption 0", "caption 1"]


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"columns": {"query.text": "titel", "positive.image": "image"}}, "missing: titel; found: .*caption"),
        ({"columns": {"query.text": "caption"}}, "says nothing of the positive: give positive.text"),
        ({"columns": {"question": "caption"}}, "columns names question: the parts of a row are query.text"),
        ({"instructions": {"target": "Find:"}}, "instructions names 'target': the sides of a row are"),
    ],
)
def test_a_map_that_cannot_be_followed_is_refused(
    settings: Callable[..., DataArguments], more: dict[str, dict[str, str]], sentence: str
):
    with pytest.raises(ValueError, match=sentence):
        open_rows(settings(**more))


def test_a_bad_picture_of_a_mapped_dataset_is_named(folder: Path, settings: Callable[..., DataArguments]):
    (folder / "1.png").write_bytes(b"no picture")
    dataset = open_rows(settings())
    assert dataset[0]["positive"]["image"]
    with pytest.raises(ValueError, match=rf"^{folder.name}, row 1, positive: .*1.png: it is not a readable picture"):
        dataset[1]
