"""What is to be embedded: what every kind of source gives, and what is said of what cannot be read."""

import json
import logging
import os
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from unime.data.corpus import Entry, open_corpus
from unime.data.emoji import catalogue


RED, BLUE = (255, 0, 0), (0, 0, 255)


def save(path: Path, colour: tuple[int, int, int] = RED) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3), colour).save(path)
    return path


def write(path: Path, rows: list[dict | str]) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def reason(entry: Entry) -> str:
    """What an entry that cannot be embedded says when it is opened: one sentence that names it."""
    with pytest.raises(ValueError) as error:
        entry.item()
    message = str(error.value)
    assert message.startswith(f"entry {entry.id!r}: ") and "\n" not in message
    return message


def test_a_folder_gives_its_pictures_and_texts_by_their_relative_paths(tmp_path: Path, caplog) -> None:
    save(tmp_path / "b" / "red.png")
    save(tmp_path / "blue.PNG", BLUE)
    save(tmp_path / "x.png" / "inside.png")  # a folder that is named like a picture is a folder
    save(tmp_path / ".hidden" / "no.png")
    (tmp_path / "note.txt").write_bytes("\ufeffein Hund".encode())
    (tmp_path / "table.csv").write_text("a,b")
    with caplog.at_level(logging.WARNING):
        corpus = open_corpus(str(tmp_path))
    assert [entry.id for entry in corpus] == ["b/red.png", "blue.PNG", "note.txt", "x.png/inside.png"]
    red, blue, note, _ = corpus
    assert red.image == str(tmp_path / "b" / "red.png") and red.text is None and red.metadata == {}
    assert (note.text, note.image, note.item()) == ("ein Hund", None, {"text": "ein Hund"})
    assert blue.item("Find it:")["instruction"] == "Find it:"
    assert [entry.item()["image"].getpixel((0, 0)) for entry in (red, blue)] == [RED, BLUE]
    assert "1 files of" in caplog.text and "table.csv" in caplog.text
    assert corpus[-1].id == "x.png/inside.png" and [entry.id for entry in corpus[:2]] == ["b/red.png", "blue.PNG"]
    with pytest.raises(IndexError):
        corpus[4]


def test_metadata_of_a_folder_is_read_and_what_it_names_must_be_there(tmp_path: Path) -> None:
    save(tmp_path / "in" / "red.png")
    save(tmp_path / "blue.png")
    write(
        tmp_path / "in" / "metadata.jsonl",
        [{"file_name": "red.png", "text": "rot", "kind": "a\u2028b"}, {"file_name": "gone.png"}],
    )
    blue, gone, red = open_corpus(tmp_path)
    assert (red.id, red.text, red.metadata) == ("in/red.png", "rot", {"kind": "a\u2028b"})
    assert (blue.text, blue.metadata) == (None, {})
    assert reason(gone).endswith("gone.png does not exist: mend the path or remove the entry")
    assert open_corpus(tmp_path, text="kind")[2].text == "a\u2028b"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"file_name": "red.png"}, "line 2 names the file red.png again"),
        ({"name": "red.png"}, "line 2 is no JSON object whose `file_name` is a relative path"),
        ('{"file_name": "blue', "line 2 is no JSON object"),
        ({"file_name": "/etc/blue.png"}, "relative path"),
    ],
)
def test_wrong_metadata_is_named_with_its_line(tmp_path: Path, line: dict | str, said: str) -> None:
    save(tmp_path / "red.png")
    path = write(tmp_path / "metadata.jsonl", [{"file_name": "red.png"}, line])
    with pytest.raises(ValueError, match=said) as error:
        open_corpus(tmp_path)
    assert str(path) in str(error.value)


def test_lines_are_read_as_they_are_written(tmp_path: Path) -> None:
    save(tmp_path / "red.png")
    rows = [
        {"id": "2024-01-01", "text": "2024-01-02", "price": 3.5, "tags": ["a"], "more": {"x": None}},
        {"id": 7, "image": "red.png", "text": "two\u2028lines"},
        {"text": "no id, so the number of its row"},
    ]
    corpus = open_corpus(write(tmp_path / "rows.jsonl", rows))
    first, second, third = corpus
    assert (first.id, first.text) == ("2024-01-01", "2024-01-02")
    assert first.metadata == {"price": 3.5, "tags": ["a"], "more": {"x": None}}
    assert (second.id, second.text, second.image) == ("7", "two\u2028lines", str(tmp_path / "red.png"))
    assert third.id == "2" and corpus[2] == third
    assert corpus.rows.cache_files  # memory-mapped


def test_a_file_that_was_written_anew_is_read_anew(tmp_path: Path) -> None:
    for text in ("before", "after "):
        assert open_corpus(write(tmp_path / "rows.jsonl", [{"text": text}]))[0].text == text
        pq.write_table(pa.table({"text": [text]}), tmp_path / "rows.parquet")
        assert open_corpus(tmp_path / "rows.parquet")[0].text == text


def test_a_bad_line_does_not_stop_the_others(tmp_path: Path) -> None:
    rows = [{"text": "a"}, '{"text": ', "[1]", {"text": 3}, {"image": ["a", "b"]}, {"more": 1}, '{"text": "\\ud800"}']
    said = [reason(entry) for entry in open_corpus(write(tmp_path / "rows.jsonl", rows))[1:]]
    assert said[0].startswith("entry 'rows.jsonl:2': line 2 of") and "is no JSON object" in said[0]
    assert "line 3 of" in said[1]
    assert said[2] == "entry '3': its text is of type int: make it a string"
    assert said[3] == "entry '4': its picture is of type list: make it one path"
    assert said[4] == "entry '5': it has neither a text nor a picture: give it one of them, or remove it"
    assert said[5] == "entry '6': its text is not valid Unicode at character 0: mend it"


def test_parquet_gives_paths_and_encoded_pictures(tmp_path: Path) -> None:
    encoded = save(tmp_path / "in" / "red.png").read_bytes()
    picture = Image.new("RGB", (4, 3), RED)
    stored = datasets.Dataset.from_dict(
        {"key": [1, 2], "image": [picture, None], "other": [picture, picture], "caption": [None, "zwei"]}
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


def test_the_world_is_a_corpus_of_every_named_picture() -> None:
    corpus = open_corpus("openmoji")
    assert len(corpus) == len(catalogue()) > 3000
    names = [emoji.name for emoji in catalogue()]
    assert len(set(names)) == len(corpus)
    pizza = corpus[names.index("pizza")]
    assert pizza.id == "pizza" and pizza.metadata["category"] == "Food & Drink"
    assert pizza.item()["image"].size == (96, 96) and pizza.item()["image"].getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("rows", "arguments", "said"),
    [
        ([{"id": 1, "text": "a"}, {"id": "1", "text": "b"}], {}, "rows 0 and 1 .* have the same id '1': make ids"),
        ([{"text": "a"}], {"text": "title"}, "has no column title: it has text"),
        ([{"title": "a"}], {}, "has no column text or image: it has title; name those"),
        ([{"text": "a"}], {"identifier": "key"}, "has no column key"),
        ([], {}, "is empty: there is nothing to embed"),
    ],
)
def test_a_wrong_table_is_refused_in_one_sentence(tmp_path: Path, rows, arguments, said) -> None:
    path = write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(ValueError, match=said):
        open_corpus(path, **arguments)
    if rows:
        table = pa.Table.from_pylist([{k: str(v) for k, v in row.items()} for row in rows])
        pq.write_table(table, tmp_path / "rows.parquet")
        with pytest.raises(ValueError, match=said):
            open_corpus(tmp_path / "rows.parquet", **arguments)


def test_a_wrong_source_is_refused_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "rows.csv").write_text("a")
    (tmp_path / "bad.parquet").write_text("no table")
    pq.write_table(pa.table({"text": ["a"]}), save(tmp_path / "both" / "red.png").with_name("a.parquet"))
    for source, kind, said in [
        (tmp_path / "gone", FileNotFoundError, "there is no folder or file .*gone: mend the path"),
        (tmp_path / "empty", ValueError, "empty is empty: there is nothing to embed"),
        (tmp_path / "rows.csv", ValueError, "is no corpus: give a folder, a .jsonl file"),
        (tmp_path / "bad.parquet", ValueError, "bad.parquet cannot be read as a table"),
        (tmp_path / "both", ValueError, "holds Parquet files and also pictures, such as .*red.png"),
    ]:
        with pytest.raises(kind, match=said):
            open_corpus(source)
    (tmp_path / "latin.jsonl").write_bytes('{"text": "Bär"}\n'.encode("latin-1"))
    with pytest.raises(ValueError, match="latin.jsonl cannot be read as lines of JSON .*utf-8"):
        open_corpus(tmp_path / "latin.jsonl")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="there is no folder or file no/such, and no dataset of the Hub"):
        open_corpus("no/such")
    with pytest.raises(FileNotFoundError, match="there is no folder nowhere for pictures: mend image_root"):
        open_corpus(tmp_path / "both", image_root="nowhere")
    with pytest.raises(ValueError, match="the ids of a folder are its relative paths: leave the column 'key' out"):
        open_corpus(tmp_path / "empty", identifier="key")


def test_nothing_outside_of_the_image_root_is_opened(tmp_path: Path) -> None:
    save(tmp_path / "out" / "red.png")
    save(tmp_path / "root" / "blue.png", BLUE)
    (tmp_path / "root" / "link.png").symlink_to(tmp_path / "out" / "red.png")
    (tmp_path / "root" / "same.png").symlink_to("blue.png")
    paths = ["../out/red.png", str(tmp_path / "out" / "red.png"), "link.png", "https://a.example/red.png", "a\0b"]
    write(
        tmp_path / "root" / "rows.jsonl", [{"image": path} for path in [*paths, "data:image/png;base64," + "A" * 9999]]
    )
    said = [reason(entry) for entry in open_corpus(tmp_path / "root" / "rows.jsonl")]
    outside = f"is outside of {tmp_path / 'root'}: move it there, or give another image_root"
    assert all(message.endswith(outside) for message in said[:3])
    assert said[3].endswith(
        "https://a.example/red.png is an address, and nothing is downloaded: save it and give its path"
    )
    assert "cannot be opened (embedded null byte)" in said[4]
    assert "is an address" in said[5] and len(said[5]) < 300
    _, link, same = open_corpus(tmp_path / "root")
    assert outside in reason(link) and same.item()["image"].getpixel((0, 0)) == BLUE
    widened = open_corpus(tmp_path / "root" / "rows.jsonl", image_root=tmp_path)
    assert widened[1].item()["image"].getpixel((0, 0)) == RED
    inside = write(tmp_path / "rows.jsonl", [{"image": "blue.png"}])
    assert open_corpus(inside, image_root=tmp_path / "root")[0].item()["image"].getpixel((0, 0)) == BLUE


def test_what_is_no_readable_picture_is_refused_in_one_sentence(tmp_path: Path, monkeypatch) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "half.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "zero.png").touch()
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "gone.png").symlink_to("nowhere.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "x.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    Image.new("F", (4, 3)).save(tmp_path / "float.tiff")
    said = {entry.id: reason(entry) for entry in open_corpus(tmp_path) if entry.id != "whole.jpg"}
    assert "it is not a readable picture (image file is truncated" in said["half.jpg"]
    assert said["zero.png"].endswith("zero.png is empty: replace it or remove the entry")
    assert "it is not a readable picture (its format is unknown); mend" in said["text.png"]
    assert "is a link to nowhere.png, which does not exist" in said["gone.png"]
    assert "is a link to loop.png, which does not exist" in said["loop.png"]
    assert "is no ordinary file" in said["pipe.png"]
    assert "its pixels are numbers of mode F: save it with 8 or 16 bits a pixel" in said["float.tiff"]
    folder = Entry("x", image=str(tmp_path / "x.png"))
    assert "x.png is a folder: mend the path" in reason(folder)
    with pytest.raises(ValueError, match="is a folder"):
        _ = folder.content
    assert "cannot read the picture: it is not a readable picture (its format is unknown); mend" in reason(
        Entry("x", image=b"no picture")
    )
    assert reason(Entry("x", image=b"")) == "entry 'x': its picture is empty: replace it or remove the entry"
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert "decompression bomb" in reason(Entry("bomb", image=str(tmp_path / "whole.jpg")))


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("Bär".encode("latin-1"))
    (tmp_path / "gone.txt").symlink_to("nowhere.txt")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")).write_bytes(save(tmp_path / "red.png").read_bytes())
    gone, latin, _, name = open_corpus(tmp_path)
    assert reason(latin) == "entry 'latin.txt': its text is not valid Unicode at character 1: mend it"
    assert "gone.txt does not exist or is no ordinary file" in reason(gone)
    assert reason(name) == "entry '\\udcff.png': its id is not valid Unicode at character 0: mend it"


def test_pictures_of_every_kind_become_rgb(tmp_path: Path) -> None:
    def opened(name: str) -> Image.Image:
        picture = Entry(name, image=str(tmp_path / name)).item()["image"]
        assert picture.mode == "RGB"
        return picture

    Image.new("CMYK", (4, 3), (0, 255, 255, 0)).save(tmp_path / "cmyk.tiff")
    assert opened("cmyk.tiff").getpixel((0, 0)) == RED
    Image.fromarray(np.full((3, 4), 40000, np.uint16)).save(tmp_path / "deep.png")
    assert opened("deep.png").getpixel((0, 0)) == (156, 156, 156)  # 40000 // 256
    Image.fromarray(np.full((3, 4), 40000, ">u2")).save(tmp_path / "big-endian.tiff")
    assert opened("big-endian.tiff").getpixel((0, 0)) == (156, 156, 156)
    palette = Image.new("P", (4, 3), 1)
    palette.putpalette([*BLUE, *RED])
    palette.save(tmp_path / "palette.png", transparency=bytes([0, 128]))
    assert opened("palette.png").getpixel((0, 0)) == RED  # transparency is dropped
    frames = [Image.new("RGB", (4, 3), colour) for colour in (RED, BLUE)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert opened("moving.gif").getpixel((0, 0)) == RED
    lying = Image.new("RGB", (2, 1), RED)
    lying.putpixel((1, 0), BLUE)
    turned = lying.getexif()
    turned[0x0112] = 6  # shown turned by 90 degrees clockwise
    lying.save(tmp_path / "turned.png", exif=turned)
    upright = opened("turned.png")
    assert upright.size == (1, 2) and [upright.getpixel((0, y)) for y in (0, 1)] == [RED, BLUE]


def test_a_text_of_white_space_counts_as_none(tmp_path: Path) -> None:
    picture = str(save(tmp_path / "red.png"))
    assert "it has neither a text nor a picture" in reason(Entry("x", text=" \n"))
    assert list(Entry("x", text=" ", image=picture).item()) == ["image"]
    assert Entry("x", text=" ", image=picture).content == Entry("y", image=picture).content


def test_entries_have_the_same_content_where_the_model_sees_the_same(tmp_path: Path) -> None:
    red, blue = str(save(tmp_path / "red.png")), str(save(tmp_path / "blue.png", BLUE))
    again = save(tmp_path / "again.png")
    assert Entry("1", "a", red, {"x": 1}).content == Entry("2", "a", str(again)).content
    assert Entry("1", "a", red).content == Entry("1", "a", again.read_bytes()).content
    different = [Entry("1", "a"), Entry("1", "a "), Entry("1", "a", red), Entry("1", "a", blue), Entry("1", None, red)]
    assert len({entry.content for entry in different}) == len(different)
    assert Entry("1", "a cat").content == "69249582e53fd6b75cb5d39a61b95ded"
