"""The row format: what a file of rows must hold, its errors, and which items are equal."""

import json
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image

from unime.data.jsonl import load_rows, load_texts
from unime.data.rows import ROW_COLUMNS, column_names, content_hash, label_hash, require_columns


def noise(seed: int, size: tuple[int, int] = (8, 6)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_dataset_that_lacks_columns_is_refused() -> None:
    dataset = Dataset.from_dict({"question": ["?"], "task": ["names"]})
    require_columns(column_names(dataset), ("question", "task"), "stage 2")
    with pytest.raises(ValueError) as error:
        require_columns(column_names(dataset), ("query", "positive", "task"), "stage 2")
    assert str(error.value) == (
        "stage 2 needs the columns query, positive, task; missing: query, positive; found: question, task. "
        "Rename or map the columns first"
    )


def test_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    images = [noise(seed) for seed in range(3)]
    for number, image in enumerate(images):
        image.save(tmp_path / "images" / f"{number}.png")
    written = [
        {
            "query": {"text": "a cat", "instruction": "Find it:"},
            "positive": {"image": "images/0.png"},
            "negatives": [{"image": "images/1.png"}, {"image": "images/2.png"}],
            "task": "retrieval",
            "label": "cat",
        },
        {
            "query": {"text": "a dog"},
            "positive": {"image": "images/1.png", "text": "a dog"},
            "negatives": [],
            "task": "names",
            "label": None,
        },
    ]
    dataset = load_rows(write(tmp_path / "rows.jsonl", written))
    assert len(dataset) == 2
    first, second = dataset[0], dataset[1]
    assert tuple(first) == ROW_COLUMNS
    assert first["query"] == {"text": "a cat", "instruction": "Find it:"}
    assert [content_hash(item) for item in [first["positives"][0], *first["negatives"]]] == [
        content_hash(image) for image in images
    ]
    assert (first["task"], first["label"]) == ("retrieval", "cat")
    assert second["query"] == {"text": "a dog"}
    assert content_hash(second["positives"][0]) == content_hash({"image": images[1], "text": "a dog"})
    assert (second["negatives"], second["task"], second["label"]) == ([], "names", None)


def test_missing_columns_are_filled_in(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", [{"query": {"text": "a cat"}, "positive": {"text": "eine Katze"}}])
    dataset = load_rows(path)
    assert dataset.with_format(None)["task"][:] == ["pairs.jsonl"]  # available before a row is read, for task blocks
    assert dataset[0] == {
        "query": {"text": "a cat"},
        "positives": [{"text": "eine Katze"}],
        "negatives": [],
        "scores": None,
        "task": "pairs.jsonl",
        "label": None,
        "where": "pairs.jsonl, row 0",
    }


def test_a_row_may_have_several_positives_and_scores(tmp_path: Path) -> None:
    texts = [{"text": text} for text in ("Katze", "Kater", "Hund", "Maus")]
    several = {
        "query": {"text": "a cat"},
        "positives": texts[:2],
        "negatives": texts[2:],
        "scores": [1, 0.9, 0.2, None],
    }
    path = write(tmp_path / "rows.jsonl", [{"query": {"text": "a dog"}, "positive": texts[2]}, several])
    first, second = load_rows(path)
    assert (first["positives"], first["scores"]) == ([texts[2]], None)
    assert second["positives"] == texts[:2] and second["negatives"] == texts[2:]
    assert second["scores"] == [1.0, 0.9, 0.2, None] and isinstance(second["scores"][0], float)
    assert load_rows(write(tmp_path / "positives.jsonl", [several]))[0]["positives"] == texts[:2]


def test_relative_image_paths_start_from_the_image_root(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    noise(0).save(tmp_path / "elsewhere" / "0.png")
    path = write(tmp_path / "rows.jsonl", [{"query": {"text": "a cat"}, "positive": {"image": "0.png"}}])
    row = load_rows(path, image_root=tmp_path / "elsewhere")[0]
    assert content_hash(row["positives"][0]) == content_hash(noise(0))


def test_an_item_may_hold_several_images(tmp_path: Path) -> None:
    for number in range(2):
        noise(number).save(tmp_path / f"{number}.png")
    several = {"query": {"image": ["0.png", "1.png"], "text": "both"}, "positive": {"text": "two"}}
    row = load_rows(write(tmp_path / "rows.jsonl", [several]))[0]
    assert content_hash(row["query"]) == content_hash({"image": [noise(0), noise(1)], "text": "both"})


def test_the_content_of_an_item_keeps_the_order_of_texts_and_images(tmp_path: Path) -> None:
    images = [noise(0), noise(1)]
    for number, image in enumerate(images):
        image.save(tmp_path / f"{number}.png")
    parts = [{"type": "image", "image": "0.png"}, "sits on", {"type": "image", "image": "1.png"}]
    texts = [{"type": "text", "text": "The cat", "image": None}]
    row = {"query": {"content": [*texts, *parts], "instruction": "Find it:"}, "positive": {"content": parts}}
    read = load_rows(write(tmp_path / "rows.jsonl", [row]))[0]
    expected = {"content": ["The cat", images[0], "sits on", images[1]], "instruction": "Find it:"}
    assert content_hash(read["query"]) == content_hash(expected)
    assert content_hash(read["positives"][0]) == content_hash([images[0], "sits on", images[1]])


@pytest.mark.parametrize("query", [{"video": ["a.png"]}, {"content": ["a", {"type": "video", "video": ["a.png"]}]}])
def test_a_row_with_a_video_is_refused(tmp_path: Path, query: dict) -> None:
    noise(0).save(tmp_path / "a.png")
    write(tmp_path / "rows.jsonl", [{"query": query, "positives": [{"text": "a"}], "task": "t"}])
    with pytest.raises(ValueError, match="row 0.*: training rows hold no videos: give the frames of the"):
        load_rows(tmp_path / "rows.jsonl")[0]


def test_texts_of_stage_1_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = write(tmp_path / "texts.jsonl", [{"text": "a cat", "teacher": [0.5, 1.0]}, {"text": "", "teacher": [0, 1]}])
    assert list(load_texts(path)) == [{"text": "a cat", "teacher": [0.5, 1.0]}, {"text": "", "teacher": [0.0, 1.0]}]


def image_rows(folder: Path) -> Path:
    """Write four rows; only the first one can be read."""
    noise(0).save(folder / "good.png")
    (folder / "text.png").write_text("no image")
    intact = (folder / "good.png").read_bytes()
    (folder / "half.png").write_bytes(intact[: len(intact) // 2])
    rows = [
        {"query": {"text": "0"}, "positive": {"image": "good.png"}, "negatives": [{"image": "good.png"}]},
        {"query": {"text": "1"}, "positive": {"image": "gone.png"}, "negatives": [{"image": "good.png"}]},
        {"query": {"text": "2"}, "positive": {"image": "text.png"}, "negatives": [{"image": "good.png"}]},
        {"query": {"text": "3"}, "positive": {"image": "good.png"}, "negatives": [{"image": "half.png"}]},
    ]
    return write(folder / "rows.jsonl", rows)


def test_the_error_of_a_missing_image_names_file_and_row(tmp_path: Path) -> None:
    dataset = load_rows(image_rows(tmp_path))
    assert dataset[0]["positives"][0]["image"][0].size == (8, 6)
    with pytest.raises(ValueError, match=r"^rows.jsonl, row 1, positive: .*gone.png: it does not exist: fix"):
        dataset[1]


@pytest.mark.parametrize(("row", "where"), [(2, "row 2, positive: .*text.png"), (3, "row 3, negative 0: .*half.png")])
def test_the_error_of_an_unreadable_image_names_file_and_row(tmp_path: Path, row: int, where: str) -> None:
    dataset = load_rows(image_rows(tmp_path))
    with pytest.raises(ValueError, match=rf"^rows.jsonl, {where}: it is not a readable image"):
        dataset[row]


def test_selected_rows_keep_their_number(tmp_path: Path) -> None:
    dataset = load_rows(image_rows(tmp_path)).select([3, 1])
    with pytest.raises(ValueError, match=r"^rows.jsonl, row 1, positive"):
        dataset[1]


def test_equal_items_have_equal_hashes() -> None:
    palette = noise(0).convert("P")
    for first, second in [
        ("a cat", {"text": "a cat"}),
        (noise(0), {"image": [noise(0)]}),
        ({"text": "a cat", "instruction": None}, {"text": "a cat"}),
        ({"text": "a", "image": noise(1)}, {"image": noise(1), "text": "a"}),
        (palette, palette.convert("RGB")),
    ]:
        assert content_hash(first) == content_hash(second)
        assert 0 <= content_hash(first) < 2**63


def test_items_that_differ_have_different_hashes() -> None:
    recoloured = noise(0).convert("P")
    colours = recoloured.copy()
    colours.putpalette([255 - value for value in recoloured.getpalette()])
    items = [
        "a cat",
        "a cat ",
        "",
        {"text": "a", "instruction": "cat"},
        {"text": "cat", "instruction": "a"},
        {"text": "acat", "instruction": ""},
        noise(0),
        noise(1),
        noise(0, (6, 8)),  # the same bytes in another shape
        {"image": noise(0), "text": ""},
        {"image": [noise(0), noise(1)]},
        {"image": [noise(1), noise(0)]},
        {"image": [noise(1), noise(0)], "text": "a"},
        ["a", noise(1), noise(0)],
        [noise(1), "a", noise(0)],
        recoloured,
        colours,
    ]
    assert len({content_hash(item) for item in items}) == len(items)


def test_a_hash_is_the_same_in_every_process() -> None:
    assert content_hash("a cat") == 2788801093492353401
    assert label_hash("names", "cat") == 178840333938491016


def test_equal_labels_of_different_tasks_differ() -> None:
    assert label_hash("names", None) == -1
    assert label_hash("names", "cat") == label_hash("names", "cat") >= 0
    assert len({label_hash(task, label) for task, label in [("names", "cat"), ("names", "dog"), ("crop", "cat")]}) == 3
    assert label_hash("a", "b") != label_hash("ab", "")


def test_the_error_of_a_missing_dataset_file_names_it(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="there is no dataset file .*nli.jsonl: give a JSONL file of rows"):
        load_rows(tmp_path / "nli.jsonl")
