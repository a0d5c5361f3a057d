"""Metadata as columns of the index: what fits, what is refused, and conditions on them."""

import numpy as np
import pytest
from small_index import WORDS, corpus, not_needed, rows

from unime.corpus.corpus import Entry
from unime.index.index import Index, SyncResult


def test_new_metadata_are_written_without_the_model(store: Index, loaded):
    store.sync(corpus(), *loaded)
    before = rows(store)
    renamed = [Entry(word, word, metadata={"length": -1, "kind": "noun"}) for word in WORDS]
    assert store.update(renamed, not_needed) == SyncResult(0, 6, 0, 0, 0)
    after = rows(store)
    assert all((row["length"], row["kind"], row["first"]) == (-1, "noun", None) for row in after.values())
    assert {name: row["vector"] for name, row in after.items()} == {n: row["vector"] for n, row in before.items()}
    assert store.update(renamed, not_needed).unchanged == 6


def test_a_filter_selects_by_metadata(store: Index, loaded):
    model, processor = loaded
    store.sync(corpus(), *loaded)
    query = model.encode("dog", processor)
    assert {hit.id for hit in store.search(query, where="first = 'p'")} == {"pizza", "piano"}
    assert [hit.id for hit in store.search(query, k=1, where="length > 5 AND id <> 'rocket'")] == ["snowman"]
    assert store.search(query, where="length > 100") == []


@pytest.mark.parametrize("where", ["colour = 'red'", "length =", "length = 'a' OR", "length", "id = 5"])
def test_a_bad_filter_is_one_sentence(store: Index, loaded, where: str):
    store.sync(corpus(), *loaded)
    with pytest.raises(ValueError) as caught:
        store.search(np.ones(192, np.float32), where=where)
    said = str(caught.value)
    assert said.startswith(f"the condition {where!r} cannot be understood (") and "\n" not in said
    assert "write SQL on the columns id, text, length, first" in said and ".rs" not in said


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ([Entry("a", "x"), Entry("a", "y")], "two entries of the corpus have the id 'a'"),
        (
            [Entry("a", "x", metadata={"year": 1}), Entry("b", "y", metadata={"year": "old"})],
            "entry 'b': its metadata",
        ),
        (
            [Entry("a", "x", metadata={"vector": 1})],
            "entry 'a': its metadata 'vector' cannot be a column",
        ),
        ([Entry("a", "x", metadata={"a.b": 1})], "entry 'a': its metadata 'a.b' cannot be a column"),
    ],
)
def test_entries_that_do_not_fit_a_table_are_refused(store: Index, loaded, entries: list[Entry], reason: str):
    with pytest.raises(ValueError, match=reason):
        store.sync(entries, *loaded)
    assert len(store) == 0


def test_metadata_may_have_any_types_and_gaps(store: Index, loaded):
    kinds = {"flag": True, "price": 1.5, "tags": ["a", "b"], "size": {"w": 3, "h": 4}, "Some Name": "x"}
    entries = [Entry("bare", "dog"), Entry("full", "cat", metadata=kinds), Entry("less", "cow", metadata={"price": 2})]
    entries.append(Entry("none", "pig", metadata={"flag": None, "never": None}))
    store.sync(entries, *loaded)
    hits = {hit.id: hit.metadata for hit in store.search(np.ones(192, np.float32))}
    assert hits == {"bare": {}, "full": kinds, "less": {"price": 2.0}, "none": {}}
    found = store.search(np.ones(192, np.float32), where="`Some Name` = 'x' AND size.w = 3 AND flag")
    assert [hit.id for hit in found] == ["full"]
    assert store.update(entries, not_needed).unchanged == 4


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({"price": "free"}, "entry 'c': its metadata do not fit"),
        ({"price": 0.5}, "the metadata 'price' are int64 in the index and double in the corpus: make them alike"),
        ({"size": {"h": 2}}, "the metadata 'size' are struct<w: int64> in the index"),
    ],
)
def test_metadata_of_another_type_are_refused_before_anything_is_changed(
    store: Index, loaded, metadata: dict, reason: str
):
    store.sync([Entry("a", "x", metadata={"price": 1, "size": {"w": 1}})], *loaded)
    before = rows(store)
    with pytest.raises(ValueError, match=reason):
        store.sync([Entry("c", "z", metadata=metadata)], *loaded)
    assert rows(store) == before


def test_fractions_and_whole_numbers_may_be_mixed_from_the_start(store: Index, loaded):
    store.sync([Entry("a", "x", metadata={"price": 1}), Entry("b", "y", metadata={"price": 0.5})], *loaded)
    assert {name: row["price"] for name, row in rows(store).items()} == {"a": 1.0, "b": 0.5}
