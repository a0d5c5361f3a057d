"""A folder as a corpus: its images, its texts, and their metadata."""

import logging
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpus_entries import BLUE, RED, error_message, save_image, write_lines

from unime.corpus.corpus import open_corpus


def test_the_ids_of_a_folder_are_relative_paths_of_images_and_texts(tmp_path: Path, caplog) -> None:
    save_image(tmp_path / "b" / "red.png")
    save_image(tmp_path / "blue.PNG", BLUE)
    save_image(tmp_path / "x.png" / "inside.png")  # a folder with the name of an image
    save_image(tmp_path / ".hidden" / "no.png")
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
    assert "2 files and folders of" in caplog.text and "1 neither images nor texts (table.csv)" in caplog.text
    assert corpus.skipped == {"hidden": 1, "neither images nor texts": 1}
    assert corpus[-1].id == "x.png/inside.png" and [entry.id for entry in corpus[:2]] == ["b/red.png", "blue.PNG"]
    with pytest.raises(IndexError):
        corpus[4]


def test_metadata_of_a_folder_is_read_and_its_files_must_exist(tmp_path: Path) -> None:
    save_image(tmp_path / "in" / "red.png")
    save_image(tmp_path / "blue.png")
    write_lines(
        tmp_path / "in" / "metadata.jsonl",
        [{"file_name": "red.png", "text": "rot", "kind": "a\u2028b"}, {"file_name": "gone.png"}],
    )
    blue, gone, red = open_corpus(tmp_path)
    assert (red.id, red.text, red.metadata) == ("in/red.png", "rot", {"kind": "a\u2028b"})
    assert (blue.text, blue.metadata) == (None, {})
    assert error_message(gone).endswith("gone.png does not exist: fix the path or remove the entry")
    assert open_corpus(tmp_path, text="kind")[2].text == "a\u2028b"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"file_name": "red.png"}, "line 2 names the file red.png again"),
        ({"name": "red.png"}, "line 2: expected an object with a relative `file_name`"),
        ('{"file_name": "blue', "line 2: expected an object"),
        ({"file_name": "/etc/blue.png"}, "relative `file_name`"),
    ],
)
def test_the_error_of_invalid_metadata_names_its_line(tmp_path: Path, line: dict | str, message: str) -> None:
    save_image(tmp_path / "red.png")
    path = write_lines(tmp_path / "metadata.jsonl", [{"file_name": "red.png"}, line])
    with pytest.raises(ValueError, match=message) as error:
        open_corpus(tmp_path)
    assert str(path) in str(error.value)


def test_folders_of_the_system_and_excluded_files_are_skipped_and_counted(tmp_path: Path) -> None:
    places = ["a.png", "in/b.png", "drafts/c.png", "in/drafts/d.png", "in/e.gif", "2019/f.png", "2019/in/g.png"]
    system = ["@eaDir/a.png/SYNOPHOTO_THUMB_M.png", "#recycle/b.png", "in/$Recycle.Bin/c.png", "lost+found/d.png"]
    for place in [*places, *system, ".Trash-1000/e.png", "__MACOSX/._a.png", ".@__thumb/a.png"]:
        save_image(tmp_path / place)
    write_lines(tmp_path / "metadata.jsonl", [{"file_name": "drafts/c.png"}, {"file_name": "a.png", "kind": "x"}])
    corpus = open_corpus(tmp_path)
    assert [entry.id for entry in corpus] == sorted(places)
    assert corpus.skipped == {"system folders": 5, "hidden": 2}
    corpus = open_corpus(tmp_path, exclude=["drafts", "*.gif", "2019/*"])
    assert [entry.id for entry in corpus] == ["a.png", "in/b.png"]
    assert corpus.skipped == {"system folders": 5, "hidden": 2, "excluded": 5}


def test_images_are_found_by_every_suffix_and_without_one_by_their_content(tmp_path: Path) -> None:
    encoded = save_image(tmp_path / "first.png").read_bytes()
    names = ["a.JPE", "a.apng", "a.mpo", "a.pgm", "a.j2k", "a.ico", "IMG_0001", "first.png"]
    for name in names:
        (tmp_path / name).write_bytes(encoded)
    (tmp_path / "LICENSE").write_text("no image")
    os.mkfifo(tmp_path / "pipe")
    corpus = open_corpus(tmp_path)
    assert [entry.id for entry in corpus] == sorted(names)
    assert all(entry.item()["image"].getpixel((0, 0)) == RED for entry in corpus)
    assert corpus.skipped == {"neither images nor texts": 2}


def test_metadata_may_be_csv_or_parquet(tmp_path: Path) -> None:
    for name in ("csv/a.png", "csv/b.png", "parquet/in/c.png"):
        save_image(tmp_path / name)
    (tmp_path / "csv" / "metadata.csv").write_bytes(
        b'\xef\xbb\xbffile_name,text,price,code,mixed\r\na.png,"red, or\nnearly",3,007,1\r\nb.png,12,,1,x\r\n'
    )
    when = pa.array([0], pa.timestamp("s"))
    pq.write_table(
        pa.table({"file_name": ["c.png"], "text": ["rot"], "when": when, "thumbnail": [b"x"]}),
        tmp_path / "parquet" / "in" / "metadata.parquet",
    )
    a, b, c = open_corpus(tmp_path)
    assert (a.text, a.metadata) == ("red, or\nnearly", {"price": 3, "code": "007", "mixed": "1"})
    assert (b.text, b.metadata) == ("12", {"price": None, "code": "1", "mixed": "x"})
    assert (c.id, c.text, c.metadata) == ("parquet/in/c.png", "rot", {"when": "1970-01-01 00:00:00"})
    assert [entry.metadata for entry in open_corpus(tmp_path, metadata=["price"])] == [
        {"price": 3},
        {"price": None},
        {},
    ]
    with pytest.raises(ValueError, match="has no metadata column colour: it has price, code, mixed, when"):
        open_corpus(tmp_path, metadata=["colour"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"file_name,text\na.png,b,c\n", "line 2 has more values than columns: quote values that contain commas"),
        (b"name\na.png\n", "line 2: expected a row with a relative `file_name`"),
        (b"file_name\na\xff.png\n", "cannot be read as CSV in UTF-8"),
    ],
)
def test_invalid_csv_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    save_image(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        open_corpus(tmp_path)


def test_a_folder_of_nothing_but_a_table_of_that_name_is_a_table(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a", "b"]}), tmp_path / "metadata.parquet")
    (tmp_path / "logo.svg").write_text("<svg/>")
    assert [entry.text for entry in open_corpus(tmp_path)] == ["a", "b"]


def test_captions_are_the_texts_of_images_if_chosen(tmp_path: Path, caplog) -> None:
    for name, text in {"in/a.txt": "rot", "b.txt": "blau", "note.txt": "an entry", "c.caption": "grey"}.items():
        save_image((tmp_path / name).with_suffix(".png")) if name != "note.txt" else None
        (tmp_path / name).write_text(text)
    write_lines(tmp_path / "metadata.jsonl", [{"file_name": "b.png", "text": "from the metadata"}])
    assert {entry.id: entry.text for entry in open_corpus(tmp_path, captions="txt")} == {
        "in/a.png": "rot", "b.png": "from the metadata", "c.png": None, "note.txt": "an entry",
    }  # fmt: skip
    corpus = open_corpus(tmp_path, captions=".caption")
    assert {entry.id: entry.text for entry in corpus}["c.png"] == "grey" and len(corpus) == 6
    (tmp_path / "c.png").unlink()
    assert open_corpus(tmp_path, captions="caption").skipped == {"captions without an image": 1}
    with caplog.at_level(logging.WARNING):
        assert {entry.id for entry in open_corpus(tmp_path)} == {"b.png", "b.txt", "in/a.png", "in/a.txt", "note.txt"}
    assert "2 .txt files of" in caplog.text and "set captions to txt" in caplog.text


def test_links_are_followed_on_request_and_each_folder_is_read_once(tmp_path: Path) -> None:
    save_image(tmp_path / "disk" / "far.png")
    save_image(tmp_path / "disk" / "secret.png")
    (tmp_path / "disk" / "far.txt").write_text("far away")
    save_image(tmp_path / "photos" / "near.png")
    (tmp_path / "photos" / "disk").symlink_to(tmp_path / "disk")
    (tmp_path / "photos" / "file.png").symlink_to(tmp_path / "disk" / "far.png")
    (tmp_path / "disk" / "loop").symlink_to(tmp_path / "photos")
    corpus = open_corpus(tmp_path / "photos")
    assert [entry.id for entry in corpus] == ["file.png", "near.png"] and corpus.skipped == {"links to folders": 1}
    assert "is outside of" in error_message(corpus[0])
    corpus = open_corpus(tmp_path / "photos", follow_links=True, captions="txt")
    assert [entry.id for entry in corpus] == ["disk/far.png", "disk/secret.png", "file.png", "near.png"]
    assert all(entry.item()["image"].getpixel((0, 0)) == RED for entry in corpus) and corpus[0].text == "far away"
    assert corpus.skipped == {"folders that a link leads to again": 1}
    # The metadata of a stranger names no file outside of the folder, not even on the way through a link.
    for name in ("disk/../../disk/secret.png", "../disk/secret.png", "disk/../near.png"):
        write_lines(tmp_path / "photos" / "metadata.jsonl", [{"file_name": name}])
        (entry,) = [entry for entry in open_corpus(tmp_path / "photos", follow_links=True) if entry.id == name]
        if name.endswith("near.png"):
            assert entry.item()["image"].getpixel((0, 0)) == RED
        else:
            assert "is outside of" in error_message(entry)


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser can read every folder")
def test_a_folder_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    save_image(tmp_path / "in" / "a.png")
    (tmp_path / "in").chmod(0)
    with pytest.raises(OSError, match=r"in cannot be read \(Permission denied\): fix that, or exclude the folder"):
        open_corpus(tmp_path)
