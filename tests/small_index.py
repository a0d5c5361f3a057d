"""Helpers of index tests: a corpus of six words, and the rows of an index."""

from pathlib import Path
from typing import Any

from unime.corpus.entry import Entry
from unime.index.index import Index


TINY = str(Path(__file__).resolve().parents[1] / "checkpoints" / "unime-tiny")
WORDS = ("pizza", "dog", "rocket", "tiger", "piano", "snowman")


def corpus(words: tuple[str, ...] = WORDS) -> list[Entry]:
    return [Entry(word, word, metadata={"length": len(word), "first": word[0]}) for word in words]


def no_model() -> Any:
    raise AssertionError("the model was loaded although there was nothing to embed")


def rows(index: Index) -> dict[str, dict]:
    stored = index.table.table.to_arrow().to_pylist()
    by_id = {row["id"]: row for row in stored}
    assert len(by_id) == len(stored), "an id occurs twice"
    return by_id
