"""A folder as a corpus: its images, its texts, and their metadata."""

import logging
from pathlib import Path

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
    assert "1 files of" in caplog.text and "table.csv" in caplog.text
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
