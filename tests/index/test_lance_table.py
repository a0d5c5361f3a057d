"""Large tables, and tables of many fragments."""

from pathlib import Path

import numpy as np
import pytest

from unime.corpus.entry import Entry
from unime.index import ann_index
from unime.index.lance_table import EntryTable
from unime.index.metadata_columns import extend_schema


def random_units(size: int, dimensions: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(size, dimensions)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_the_approximate_index_of_a_large_table_has_high_recall(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ann_index, "MAX_EXACT_ROWS", 2500)
    size, dimensions = 4000, 8
    vectors, table = random_units(size, dimensions, 0), EntryTable(tmp_path, dimensions)
    entries = [Entry(str(number), metadata={"remainder": number % 100}) for number in range(size)]
    contents = dict.fromkeys((entry.id for entry in entries), "")
    table.add_columns(extend_schema(entries, table.schema, table.schema)[0])
    table.write(entries[:2000], vectors[:2000], contents, set())
    table.optimize()
    assert not list(table.table.list_indices())  # every row is compared
    table.write(entries[2000:], vectors[2000:], contents, set())
    table.optimize()
    assert [index.index_type for index in table.table.list_indices()] == ["IvfSq"]
    assert not ann_index.needs_build(table.table)
    queries = random_units(30, dimensions, 1)
    exact = np.argsort(-(queries @ vectors.T), axis=1)[:, :10]
    approximate = [[int(row["id"]) for row in table.nearest(query, 10)] for query in queries]
    recall = np.mean(
        [len(set(ids) & set(exact_ids)) / 10 for ids, exact_ids in zip(approximate, exact.tolist(), strict=True)]
    )
    assert recall >= 0.95
    # Few rows pass this filter, and they are spread over all partitions.
    filtered = [row["id"] for row in table.nearest(queries[0], 10, "remainder = 7")]
    passing = np.arange(7, size, 100)
    assert filtered == [str(number) for number in passing[np.argsort(-(vectors[passing] @ queries[0]))[:10]]]
    # Rows added after the index was built are found too.
    table.write([Entry("new")], queries[:1], {"new": ""}, set())
    assert table.nearest(queries[0], 1)[0]["id"] == "new"


def test_many_small_fragments_are_merged(tmp_path: Path):
    table = EntryTable(tmp_path, 4)
    for number, vector in enumerate(random_units(30, 4, 0)):
        table.write([Entry(f"{number}")], vector[None], {f"{number}": ""}, set())
    table.optimize()
    assert table.table.stats()["fragment_stats"]["num_fragments"] == 1 and len(table) == 30
    assert len(table.table.list_versions()) == 1
