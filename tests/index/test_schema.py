"""Metadata as columns of the index: valid and invalid values, and conditions on them."""

import numpy as np
import pyarrow as pa
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


@pytest.mark.parametrize(
    "where",
    [
        "colour = 'red'", "length =", "length = 'a' OR", "length", "id = 5", "", "length > 5; DROP TABLE entries",
        "length > 5;", "length > 5 ORDER BY id", "length > 5 length < 3", "length > 5) OR (true", "(length > 5",
    ],
)  # fmt: skip
def test_an_invalid_filter_is_explained_in_one_sentence(index: Index, loaded, where: str):
    index.sync(corpus(), *loaded)
    with pytest.raises(ValueError) as caught:
        index.search(np.ones(192, np.float32), where=where)
    message = str(caught.value)
    assert message.startswith(f"the condition {where!r} cannot be understood (") and "\n" not in message
    assert "write SQL on the columns id, text, length, first" in message and ".rs" not in message
    assert "_rowid" not in message and "SELECT" not in message


@pytest.mark.parametrize(
    "where", ["length > 5 -- longer", "(length > 5)", "first <> ';' AND id <> ')' AND length > 5"]
)
def test_a_filter_may_have_comments_and_quoted_signs(index: Index, loaded, where: str):
    index.sync(corpus(), *loaded)
    assert {hit.id for hit in index.search(np.ones(192, np.float32), where=where)} == {"rocket", "snowman"}


def test_two_entries_with_one_id_are_refused(index: Index, loaded):
    with pytest.raises(ValueError, match="two entries of the corpus have the id 'a'"):
        index.sync([Entry("a", "x"), Entry("a", "y")], *loaded)
    assert len(index) == 0


def deep(levels: int) -> dict:
    return {"in": deep(levels - 1)} if levels else {"in": 1}


# What an index keeps of metadata, given as the values of some entries.
ODD_METADATA = {
    "names": (
        [{name: 1, "fine": 1} for name in ("user.name", "_score", "vector", "a`b", "*", "", "a\0b", "a\ud800")],
        [{"fine": 1}] * 8,
        8,
    ),
    "odd names": ([{"unit price": 1, "Größe": 2, "ID": 3, "select": 4, "a/b": 5}], None, 0),
    "numbers": (
        [{"x": 3}, {"x": 3.5}, {"x": True}, {"x": "n/a"}, {"x": 4}],
        [{"x": 3}, {"x": 3.5}, {"x": 1}, {}, {"x": 4}],
        1,
    ),
    "not finite": ([{"x": float("nan"), "y": [float("inf"), 1]}], [{"y": [None, 1]}], 0),
    "large": ([{"x": 2**60 + 1}, {"x": -(2**70)}], [{"x": str(2**60 + 1)}, {"x": str(-(2**70))}], 0),
    "objects": ([{"x": {"w": 1}}, {"x": {"h": 2, "n": None}}, {"x": {}}], [{"x": {"w": 1}}, {"x": {"h": 2}}, {}], 0),
    "lists": ([{"x": []}, {"x": [1, 2.5]}, {"x": ["a"]}], [{"x": []}, {"x": [1, 2.5]}, {}], 1),
    "empty": ([{"x": [], "y": {}, "z": None}], [{}], 0),
    "deep": ([{"x": deep(7), "y": deep(8)}, {"y": deep(900)}], [{"x": deep(7)}, {}], 2),
}


@pytest.mark.parametrize("name", ODD_METADATA)
def test_odd_metadata_does_not_stop_an_index(index: Index, loaded, caplog, name: str):
    given, kept, left_out = ODD_METADATA[name]
    entries = [Entry(str(number), "a cat", metadata=metadata) for number, metadata in enumerate(given)]
    assert index.sync(entries, *loaded).embedded == len(entries)
    metadata = {hit.id: hit.metadata for hit in index.search(np.ones(192, np.float32), k=20)}
    assert metadata == {str(number): metadata for number, metadata in enumerate(kept or given)}
    assert sum(record.args[1] for record in caplog.records if "values are left out" in record.msg) == left_out
    assert index.update(entries, no_model).unchanged == len(entries)


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


def test_the_columns_of_an_index_keep_their_types(index: Index, loaded):
    index.sync([Entry("a", "x", metadata={"price": 1, "size": {"w": 1}})], *loaded)
    types = index.table.schema
    later = [Entry("a", "x", metadata={"price": 3.5}), Entry("b", "y", metadata={"price": "free", "size": {"h": 2}})]
    index.sync(later, *loaded)
    assert index.table.schema == types
    assert {hit.id: hit.metadata for hit in index.search(np.ones(192, np.float32))} == {"a": {"price": 3.5}, "b": {}}


def test_an_index_with_a_column_of_integers_takes_those_and_no_fractions(index: Index, loaded):
    index.table.add_columns(index.table.schema.append(pa.field("price", pa.int64())))
    index.sync([Entry("a", "x", metadata={"price": 3}), Entry("b", "y", metadata={"price": 3.5})], *loaded)
    assert {hit.id: hit.metadata for hit in index.search(np.ones(192, np.float32))} == {"a": {"price": 3}, "b": {}}
