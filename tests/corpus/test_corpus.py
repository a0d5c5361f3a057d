"""Corpora: the entries of each kind of source, and which sources are refused."""

from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpus_entries import BLUE, RED, error_message, save_image, write_lines
from PIL import Image

from unime.corpus.corpus import open_corpus
from unime.openmoji.catalogue import catalogue


def test_lines_are_read_as_they_are_written(tmp_path: Path) -> None:
    save_image(tmp_path / "red.png")
    rows = [
        {"id": "2024-01-01", "text": "2024-01-02", "price": 3.5, "tags": ["a"], "more": {"x": None}},
        {"id": 7, "image": "red.png", "text": "two\u2028lines"},
        {"text": "no id, so the number of its row"},
    ]
    corpus = open_corpus(write_lines(tmp_path / "rows.jsonl", rows))
    first, second, third = corpus
    assert (first.id, first.text) == ("2024-01-01", "2024-01-02")
    assert first.metadata == {"price": 3.5, "tags": ["a"], "more": {"x": None}}
    assert (second.id, second.text, second.image) == ("7", "two\u2028lines", str(tmp_path / "red.png"))
    assert third.id == "2" and corpus[2] == third
    assert corpus.rows.cache_files  # memory-mapped


def test_a_rewritten_file_is_read_again(tmp_path: Path) -> None:
    for text in ("before", "after "):
        assert open_corpus(write_lines(tmp_path / "rows.jsonl", [{"text": text}]))[0].text == text
        pq.write_table(pa.table({"text": [text]}), tmp_path / "rows.parquet")
        assert open_corpus(tmp_path / "rows.parquet")[0].text == text


def test_a_bad_line_does_not_affect_the_others(tmp_path: Path) -> None:
    rows = [{"text": "a"}, '{"text": ', "[1]", {"text": 3}, {"image": ["a", "b"]}, {"more": 1}, '{"text": "\\ud800"}']
    messages = [error_message(entry) for entry in open_corpus(write_lines(tmp_path / "rows.jsonl", rows))[1:]]
    assert messages[0].startswith("entry 'rows.jsonl:2': line 2 of") and "is not a JSON object" in messages[0]
    assert "line 3 of" in messages[1]
    assert messages[2] == "entry '3': its text has type int: make it a string"
    assert messages[3] == "entry '4': its image has type list: give one path"
    assert messages[4] == "entry '5': it has neither a text nor an image: add one of them or remove it"
    assert messages[5] == "entry '6': its text is not valid Unicode at character 0: fix it"


def test_blank_lines_are_skipped_and_the_error_of_another_line_has_its_number(tmp_path: Path) -> None:
    first, bad, last = open_corpus(
        write_lines(tmp_path / "rows.jsonl", ["\ufeff", '{"text": "a"}', " ", "{", "{}", ""])
    )
    assert (first.id, first.text, last.id) == ("0", "a", "2")
    assert error_message(bad).startswith("entry 'rows.jsonl:4': line 4 of")


def test_metadata_columns_can_be_chosen(tmp_path: Path) -> None:
    rows = [{"text": "a", "price": 1, "colour": "red"}, {"text": "b", "colour": "blue"}]
    write_lines(tmp_path / "rows.jsonl", rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    for source in (tmp_path / "rows.jsonl", tmp_path / "rows.parquet"):
        assert [entry.metadata for entry in open_corpus(source, metadata=["colour"])] == [
            {"colour": "red"},
            {"colour": "blue"},
        ]
        assert [entry.metadata for entry in open_corpus(source, metadata=[""])] == [{}, {}]


def test_parquet_holds_image_paths_or_encoded_images(tmp_path: Path) -> None:
    encoded = save_image(tmp_path / "in" / "red.png").read_bytes()
    image = Image.new("RGB", (4, 3), RED)
    stored = datasets.Dataset.from_dict(
        {"key": [1, 2], "image": [image, None], "other": [image, image], "caption": [None, "zwei"]}
    )
    (tmp_path / "stored").mkdir()
    stored.to_parquet(tmp_path / "stored" / "a.parquet")
    first, second = open_corpus(tmp_path / "stored", text="caption", identifier="key")
    assert (first.id, first.metadata, first.item()["image"].getpixel((0, 0))) == ("1", {}, RED)
    assert second.item() == {"text": "zwei"}
    when = pa.array([0], pa.timestamp("s"))
    pq.write_table(pa.table({"image": ["in/red.png"], "when": when}), tmp_path / "paths.parquet")
    (path,) = open_corpus(tmp_path / "paths.parquet")
    assert path.metadata == {"when": "1970-01-01 00:00:00"} and path.item()["image"].getpixel((0, 0)) == RED
    pq.write_table(pa.table({"image": pa.array([encoded], pa.binary())}), tmp_path / "bytes.parquet")
    (inside,) = open_corpus(tmp_path / "bytes.parquet")
    assert inside.image == encoded and inside.content == path.content
    assert open_corpus(tmp_path / "bytes.parquet").rows.cache_files  # memory-mapped


def test_openmoji_is_a_corpus_of_every_named_drawing() -> None:
    corpus = open_corpus("openmoji")
    assert len(corpus) == len(catalogue()) > 3000
    names = [emoji.name for emoji in catalogue()]
    assert len(set(names)) == len(corpus)
    pizza = corpus[names.index("pizza")]
    assert pizza.id == "pizza" and pizza.metadata["category"] == "Food & Drink"
    assert pizza.item()["image"].size == (96, 96) and pizza.item()["image"].getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("rows", "arguments", "message"),
    [
        ([{"id": 1, "text": "a"}, {"id": "1", "text": "b"}], {}, "rows 0 and 1 .* have the same id '1': make ids"),
        ([{"text": "a"}], {"text": "title"}, "has no column title: it has text"),
        ([{"title": "a"}], {}, "has no column text or image: it has title; name the columns"),
        ([{"text": "a"}], {"identifier": "key"}, "has no column key"),
        ([{"text": "a"}], {"metadata": ["", "price"]}, "has no metadata column price: it has text; choose from these"),
        ([{"text": "a"}], {"exclude": ["*.gif"]}, "is no folder of images: leave exclude, captions and follow_links"),
        ([], {}, "is empty: there is nothing to embed"),
    ],
)
def test_an_invalid_table_is_refused(tmp_path: Path, rows, arguments, message) -> None:
    path = write_lines(tmp_path / "rows.jsonl", rows)
    with pytest.raises(ValueError, match=message):
        open_corpus(path, **arguments)
    if rows:
        table = pa.Table.from_pylist([{k: str(v) for k, v in row.items()} for row in rows])
        pq.write_table(table, tmp_path / "rows.parquet")
        with pytest.raises(ValueError, match=message):
            open_corpus(tmp_path / "rows.parquet", **arguments)


def test_an_invalid_source_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "rows.csv").write_text("a")
    (tmp_path / "bad.parquet").write_text("no table")
    pq.write_table(pa.table({"text": ["a"]}), save_image(tmp_path / "both" / "red.png").with_name("a.parquet"))
    for source, kind, message in [
        (tmp_path / "gone", FileNotFoundError, "there is no folder or file .*gone: fix the path"),
        (tmp_path / "empty", ValueError, "empty is empty: there is nothing to embed"),
        (tmp_path / "rows.csv", ValueError, "is not a corpus: give a folder, a .jsonl file"),
        (tmp_path / "bad.parquet", ValueError, "bad.parquet cannot be read as a table"),
        (tmp_path / "both", ValueError, "holds Parquet files, such as a.parquet, and also images, such as red.png"),
    ]:
        with pytest.raises(kind, match=message):
            open_corpus(source)
    (tmp_path / "latin.jsonl").write_bytes('{"text": "Bär"}\n'.encode("latin-1"))
    with pytest.raises(ValueError, match="latin.jsonl has no column text or image: it has none"):
        open_corpus(tmp_path / "latin.jsonl")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="there is no folder or file no/such, and no Hub dataset of that name"):
        open_corpus("no/such")
    with pytest.raises(FileNotFoundError, match="there is no folder nowhere for images: fix image_root"):
        open_corpus(tmp_path / "both", image_root="nowhere")
    with pytest.raises(ValueError, match="the ids of a folder are its relative paths: do not set the id column 'key'"):
        open_corpus(tmp_path / "empty", identifier="key")


def test_files_outside_the_image_root_are_not_opened(tmp_path: Path) -> None:
    save_image(tmp_path / "out" / "red.png")
    save_image(tmp_path / "root" / "blue.png", BLUE)
    (tmp_path / "root" / "link.png").symlink_to(tmp_path / "out" / "red.png")
    (tmp_path / "root" / "same.png").symlink_to("blue.png")
    paths = ["../out/red.png", str(tmp_path / "out" / "red.png"), "link.png", "https://a.example/red.png", "a\0b"]
    write_lines(
        tmp_path / "root" / "rows.jsonl", [{"image": path} for path in [*paths, "data:image/png;base64," + "A" * 9999]]
    )
    messages = [error_message(entry) for entry in open_corpus(tmp_path / "root" / "rows.jsonl")]
    outside = f"is outside of {tmp_path / 'root'}: move it there or set another image_root"
    assert all(message.endswith(outside) for message in messages[:3])
    assert messages[3].endswith(
        "https://a.example/red.png is a URL, and nothing is downloaded: save the file and give its path"
    )
    assert "cannot be opened (embedded null byte)" in messages[4]
    assert "is a URL" in messages[5] and len(messages[5]) < 300
    _, link, same = open_corpus(tmp_path / "root")
    assert outside in error_message(link) and same.item()["image"].getpixel((0, 0)) == BLUE
    widened = open_corpus(tmp_path / "root" / "rows.jsonl", image_root=tmp_path)
    assert widened[1].item()["image"].getpixel((0, 0)) == RED
    inside = write_lines(tmp_path / "rows.jsonl", [{"image": "blue.png"}])
    assert open_corpus(inside, image_root=tmp_path / "root")[0].item()["image"].getpixel((0, 0)) == BLUE
