"""What tests of the index share: a corpus of six words, and the rows of an index."""

from pathlib import Path
from typing import Any

from unime.corpus.entry import Entry
from unime.index.index import Index


TINY = str(Path(__file__).resolve().parents[1] / "checkpoints" / "unime-tiny")
WORDS = ("pizza", "dog", "rocket", "tiger", "piano", "snowman")


def corpus(words: tuple[str, ...] = WORDS) -> list[Entry]:
    return [Entry(word, word, metadata={"length": len(word), "first": word[0]}) for word in words]


def not_needed() -> Any:
    raise AssertionError("nothing was to be embedded, and the model was asked for")


def rows(store: Index) -> dict[str, dict]:
    read = store.table.table.to_arrow().to_pylist()
    by_id = {row["id"]: row for row in read}
    assert len(by_id) == len(read), "an id is there twice"
    return by_id
