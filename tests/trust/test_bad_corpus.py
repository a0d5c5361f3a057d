"""Bad corpora: a bad entry is rejected and the others are embedded; a bad table is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from small_index import TINY

from unime.corpus.corpus import open_corpus
from unime.index.index import REJECTED_FILE, Index


ErrorMessage = Callable[..., str]

# name -> (line between two good ones, id of its entry, reason of its rejection)
LINES: dict[str, tuple[bytes, str, str]] = {
    "broken JSON": (b'{"text": "a', "rows.jsonl:2", "line 2 of {path} is not a JSON object: fix it"),
    "JSON list": (b"[1]", "rows.jsonl:2", "line 2 of {path} is not a JSON object: fix it"),
    "JSON 100,000 deep": (b"[" * 100_000, "rows.jsonl:2", "line 2 of {path} is not a JSON object: fix it"),
    "bytes that are not UTF-8": (b'{"text": "\xe4"}', "rows.jsonl:2", "line 2 of {path} is not a JSON object: fix it"),
    "text a number": (b'{"text": 3}', "1", "its text has type int: make it a string"),
    "text a list": (b'{"text": ["a"]}', "1", "its text has type list: make it a string"),
    "text null": (b'{"text": null}', "1", "it has neither a text nor an image: add one of them or remove it"),
    "neither text nor image": (b'{"id": "k"}', "k", "it has neither a text nor an image: add one of them or"),
    "image a number": (b'{"image": 3}', "1", "its image has type int: give one path"),
    "images a list": (b'{"image": ["a.png"]}', "1", "its image has type list: give one path"),
    "image missing": (b'{"image": "gone.png"}', "1", "its image {folder}/gone.png does not exist"),
    "text a lone surrogate": (b'{"text": "a\\ud800"}', "1", "its text is not valid Unicode at character 1: fix it"),
}


@pytest.mark.parametrize("kind", LINES)
def test_a_bad_line_is_rejected_and_the_others_are_indexed(kind: str, tmp_path: Path, tiny: Any):
    line, name, reason = LINES[kind]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a cat"}\r\n' + line + b'\r\n{"text": "a dog"}\r\n')
    index = Index.create(tmp_path / "index", TINY, None)
    synced = index.update(open_corpus(path), lambda: tiny)
    assert (synced.embedded, synced.rejected, len(index)) == (2, 1, 2)
    (rejected,) = [json.loads(line) for line in (tmp_path / "index" / REJECTED_FILE).read_text().splitlines()]
    assert rejected["id"] == name
    assert rejected["reason"].startswith(f"entry {name!r}: {reason.format(path=path, folder=tmp_path)}")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "{path} is empty: there is nothing to embed"),
        (b"\n", "{path} has no column text or image: it has none; name the columns of the text, the image and the id"),
        (
            b'{"id": 1}\n',
            "{path} has no column text or image: it has id; name the columns of the text, the image and the id",
        ),
        (
            b'{"id": 1, "text": "a"}\n{"id": "1", "text": "b"}\n',
            "rows 0 and 1 (counted from 0) have the same id '1': make ids unique, or name another column",
        ),
        (
            b'{"id": "1", "text": "a"}\n{"text": "b"}\n',
            "rows 0 and 1 (counted from 0) have the same id '1': make ids unique, or name another column",
        ),
    ],
    ids=["empty", "blank", "columns missing", "id twice", "id equal to the number of another row"],
)
def test_a_bad_jsonl_file_is_refused(content: bytes, reason: str, tmp_path: Path, error_message: ErrorMessage):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    assert error_message(lambda: open_corpus(path)) == reason.format(path=path)


@pytest.mark.parametrize(
    ("columns", "name", "reason"),
    [
        ({"text": [1]}, "0", "entry '0': its text has type int: make it a string"),
        ({"text": [["a"]]}, "0", "entry '0': its text has type list: make it a string"),
        ({"text": [None], "id": ["k"]}, "k", "entry 'k': it has neither a text nor an image"),
        ({"image": [1]}, "0", "entry '0': its image has type int: give one path"),
        ({"image": [b"no image"]}, "0", "entry '0': "),
    ],
    ids=["text a number", "text a list", "neither text nor image", "image a number", "bytes that are not an image"],
)
def test_the_error_of_a_bad_row_in_a_table_names_it(
    columns: dict[str, list], name: str, reason: str, tmp_path: Path, error_message: ErrorMessage
):
    Dataset.from_dict(columns).to_parquet(tmp_path / "rows.parquet")
    (entry,) = open_corpus(tmp_path / "rows.parquet")
    assert entry.id == name and error_message(entry.item).startswith(reason)


@pytest.mark.parametrize(
    ("columns", "more", "reason"),
    [
        (
            {"text": ["a", "b"], "id": [1, 1]},
            {},
            "rows 0 and 1 (counted from 0) have the same id '1': make ids unique",
        ),
        (
            {"caption": ["a"]},
            {},
            "has no column text or image: it has caption; name the columns of the text, the image",
        ),
        (
            {"text": ["a"]},
            {"identifier": "key"},
            "has no column key: it has text; name the columns of the text",
        ),
        (
            {"text": ["a"]},
            {"text": "title"},
            "has no column title: it has text; name the columns of the text, the image",
        ),
    ],
    ids=["id twice", "columns missing", "id missing", "text missing"],
)
def test_a_bad_table_is_refused(
    columns: dict[str, list], more: dict[str, str], reason: str, tmp_path: Path, error_message: ErrorMessage
):
    Dataset.from_dict(columns).to_parquet(tmp_path / "rows.parquet")
    assert reason in error_message(lambda: open_corpus(tmp_path / "rows.parquet", **more))
