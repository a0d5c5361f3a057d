"""Metadata as columns of the index: valid and invalid values, and conditions on them."""

import numpy as np
import pytest
from small_index import WORDS, corpus, no_model, rows

from unime.corpus.entry import Entry
from unime.index.index import Index, SyncResult


def test_changed_metadata_is_written_without_the_model(index: Index, loaded):
    index.sync(corpus(), *loaded)
    before = rows(index)
    renamed = [Entry(word, word, metadata={"length": -1, "kind": "noun"}) for word in WORDS]
    assert index.update(renamed, no_model) == SyncResult(0, 6, 0, 0, 0)
    after = rows(index)
    assert all((row["length"], row["kind"], row["first"]) == (-1, "noun", None) for row in after.values())
    assert {name: row["vector"] for name, row in after.items()} == {n: row["vector"] for n, row in before.items()}
    assert index.update(renamed, no_model).unchanged == 6


def test_a_filter_selects_by_metadata(index: Index, loaded):
    model, processor = loaded
    index.sync(corpus(), *loaded)
    query = model.encode("dog", processor)
    assert {hit.id for hit in index.search(query, where="first = 'p'")} == {"pizza", "piano"}
    assert [hit.id for hit in index.search(query, k=1, where="length > 5 AND id <> 'rocket'")] == ["snowman"]
    assert index.search(query, where="length > 100") == []


@pytest.mark.parametrize("where", ["colour = 'red'", "length =", "length = 'a' OR", "length", "id = 5"])
def test_an_invalid_filter_is_explained_in_one_sentence(index: Index, loaded, where: str):
    index.sync(corpus(), *loaded)
    with pytest.raises(ValueError) as caught:
        index.search(np.ones(192, np.float32), where=where)
    message = str(caught.value)
    assert message.startswith(f"the condition {where!r} cannot be understood (") and "\n" not in message
    assert "write SQL on the columns id, text, length, first" in message and ".rs" not in message


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ([Entry("a", "x"), Entry("a", "y")], "two entries of the corpus have the id 'a'"),
        (
            [Entry("a", "x", metadata={"year": 1}), Entry("b", "y", metadata={"year": "old"})],
            "entry 'b': its metadata types conflict",
        ),
        (
            [Entry("a", "x", metadata={"vector": 1})],
            "entry 'a': metadata key 'vector' cannot be a column",
        ),
        ([Entry("a", "x", metadata={"a.b": 1})], "entry 'a': metadata key 'a.b' cannot be a column"),
    ],
)
def test_entries_that_cannot_be_stored_in_a_table_are_rejected(
    index: Index, loaded, entries: list[Entry], reason: str
):
    with pytest.raises(ValueError, match=reason):
        index.sync(entries, *loaded)
    assert len(index) == 0


def test_metadata_may_have_any_type_and_missing_values(index: Index, loaded):
    kinds = {"flag": True, "price": 1.5, "tags": ["a", "b"], "size": {"w": 3, "h": 4}, "Some Name": "x"}
    entries = [Entry("bare", "dog"), Entry("full", "cat", metadata=kinds), Entry("less", "cow", metadata={"price": 2})]
    entries.append(Entry("none", "pig", metadata={"flag": None, "never": None}))
    index.sync(entries, *loaded)
    metadata = {hit.id: hit.metadata for hit in index.search(np.ones(192, np.float32))}
    assert metadata == {"bare": {}, "full": kinds, "less": {"price": 2.0}, "none": {}}
    hits = index.search(np.ones(192, np.float32), where="`Some Name` = 'x' AND size.w = 3 AND flag")
    assert [hit.id for hit in hits] == ["full"]
    assert index.update(entries, no_model).unchanged == 4


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({"price": "free"}, "entry 'c': its metadata types conflict"),
        ({"price": 0.5}, "metadata key 'price' has type int64 in the index and double in the corpus: use one type"),
        ({"size": {"h": 2}}, "metadata key 'size' has type struct<w: int64> in the index"),
    ],
)
def test_metadata_of_another_type_is_rejected_before_anything_changes(
    index: Index, loaded, metadata: dict, reason: str
):
    index.sync([Entry("a", "x", metadata={"price": 1, "size": {"w": 1}})], *loaded)
    before = rows(index)
    with pytest.raises(ValueError, match=reason):
        index.sync([Entry("c", "z", metadata=metadata)], *loaded)
    assert rows(index) == before


def test_floats_and_integers_may_be_mixed_in_the_first_corpus(index: Index, loaded):
    index.sync([Entry("a", "x", metadata={"price": 1}), Entry("b", "y", metadata={"price": 0.5})], *loaded)
    assert {name: row["price"] for name, row in rows(index).items()} == {"a": 1.0, "b": 0.5}
