"""Large tables, and tables in many parts."""

from pathlib import Path

import numpy as np
import pytest

from unime.corpus.corpus import Entry
from unime.index import ann_index
from unime.index.lance_table import EntryTable
from unime.index.schema import metadata_schema


def random_units(size: int, dimensions: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(size, dimensions)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_a_large_table_is_searched_through_an_index_that_misses_little(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ann_index, "EXACT_UP_TO", 2500)
    size, dimensions = 4000, 8
    vectors, table = random_units(size, dimensions, 0), EntryTable(tmp_path, dimensions)
    entries = [Entry(str(number), metadata={"remainder": number % 100}) for number in range(size)]
    contents = dict.fromkeys((entry.id for entry in entries), "")
    table.widen(metadata_schema(entries, table.schema))
    table.write(entries[:2000], vectors[:2000], contents, set())
    table.tidy()
    assert not list(table.table.list_indices())  # all are compared
    table.write(entries[2000:], vectors[2000:], contents, set())
    table.tidy()
    assert [index.index_type for index in table.table.list_indices()] == ["IvfSq"]
    assert not ann_index.outdated(table.table)
    queries = random_units(30, dimensions, 1)
    exact = np.argsort(-(queries @ vectors.T), axis=1)[:, :10]
    found = [[int(row["id"]) for row in table.nearest(query, 10)] for query in queries]
    recall = np.mean([len(set(ours) & set(right)) / 10 for ours, right in zip(found, exact.tolist(), strict=True)])
    assert recall >= 0.95
    # Few rows pass the filter, and they lie in any partition.
    rare = [row["id"] for row in table.nearest(queries[0], 10, "remainder = 7")]
    among = np.arange(7, size, 100)
    assert rare == [str(number) for number in among[np.argsort(-(vectors[among] @ queries[0]))[:10]]]
    # Rows that are new since the index was made are found too.
    table.write([Entry("new")], queries[:1], {"new": ""}, set())
    assert table.nearest(queries[0], 1)[0]["id"] == "new"


def test_many_small_parts_are_merged(tmp_path: Path):
    table = EntryTable(tmp_path, 4)
    for number, vector in enumerate(random_units(30, 4, 0)):
        table.write([Entry(f"{number}")], vector[None], {f"{number}": ""}, set())
    table.tidy()
    assert table.table.stats()["fragment_stats"]["num_fragments"] == 1 and len(table) == 30
    assert len(table.table.list_versions()) == 1
