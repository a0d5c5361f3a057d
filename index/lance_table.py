"""The LanceDB table of an index: each change of it is one transaction, which a killed process has made or has not."""

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from functools import wraps
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..corpus.entry import Entry
from . import ann_index
from .schema import index_rows, index_schema


NAME = "entries"
HIDDEN = ("vector", "content_hash", "details_hash")  # columns that no search shows
IDS_AT_ONCE = 1000  # in a filter
SMALL_PARTS = 20  # parts of the table: when there are more they are merged


def _in_one_sentence(method: Callable) -> Callable:
    """Say plainly what LanceDB cannot read or write: it tells an error of the disk from damaged content."""

    @wraps(method)
    def call(self: "EntryTable", *args: Any) -> Any:
        try:
            return method(self, *args)
        except RuntimeError as error:
            reason = re.sub(r"^lance error: |LanceError\(IO\): |, /[^ ]*\.rs:.*$", "", str(error).splitlines()[0])
            if "(os error" in reason:
                raise OSError(
                    f"{self.folder} cannot be read or written ({reason}): mend that and try again, for what was "
                    "indexed is kept"
                ) from None
            raise ValueError(
                f"{self.folder} is damaged ({reason}): try again, lest it was just being written, or else remove the "
                "folder and make the index anew"
            ) from None

    return call


class EntryTable:
    """Rows of entries and their vectors; see [`rows.own_schema`] for the columns.

    Args:
        folder (`Path`): Where it lies; an empty table is made where there is none.
        dimensions (`int`): Of a vector.

    Raises:
        ValueError: From all methods: files of the table are damaged.
        OSError: From all methods: files of the table cannot be read or written, because the disk is full, say.
    """

    @_in_one_sentence
    def __init__(self, folder: Path, dimensions: int):
        self.folder = folder
        # Each search sees what another process has written since.
        database = lancedb.connect(folder, read_consistency_interval=timedelta(0))
        try:
            self.table = database.open_table(NAME)
        except ValueError:
            if any(folder.glob(f"{NAME}.lance/data/*")):
                raise ValueError(
                    f"{folder} is damaged (the list of what its table holds is gone): remove the folder and make the "
                    "index anew"
                ) from None
            # There is none, or no more than the folder that a killed run has made for it.
            mode = "overwrite" if any(folder.glob(f"{NAME}*")) else "create"
            self.table = database.create_table(NAME, schema=index_schema(dimensions), mode=mode)

    @_in_one_sentence
    def __len__(self) -> int:
        return self.table.count_rows()

    @property
    def schema(self) -> pa.Schema:
        return self.table.schema

    @_in_one_sentence
    def hashes(self) -> dict[str, tuple[str, str]]:
        """The hashes of content and details by id: a few hundred bytes of memory an entry."""
        known = {}
        for batch in self.table.search().select(["id", "content_hash", "details_hash"]).to_batches():
            ids, contents, details = (batch[name].to_pylist() for name in ("id", "content_hash", "details_hash"))
            known.update(zip(ids, zip(contents, details, strict=True), strict=True))
        return known

    @_in_one_sentence
    def widen(self, schema: pa.Schema) -> None:
        """Add the columns that the table lacks, empty.

        Raises:
            ValueError: A column would need another type.
        """
        types = {field.name: field.type for field in self.schema}
        for field in schema:
            if types.get(field.name, field.type) != field.type:  # LanceDB casts no column, not even to fractions
                raise ValueError(
                    f"the metadata {field.name!r} are {types[field.name]} in the index and {field.type} in the "
                    "corpus: make them alike, or make a new index"
                )
        added = [field for field in schema if field.name not in types]
        if added:
            self.table.add_columns(pa.schema(added))

    @_in_one_sentence
    def write(
        self, entries: Sequence[Entry], vectors: np.ndarray, contents: Mapping[str, str], renewed: set[str]
    ) -> None:
        """Append what is new, and put what has changed (its id is in `renewed`) in its old row's place."""
        if not entries:
            return
        table = index_rows(entries, contents, vectors, self.schema)
        old = pa.array([entry.id in renewed for entry in entries])
        if pc.any(old).as_py():
            self.table.merge_insert("id").when_matched_update_all().execute(table.filter(old))
        if not pc.all(old).as_py():
            self.table.add(table.filter(pc.invert(old)))

    @_in_one_sentence
    def describe(self, entries: Sequence[Entry], contents: Mapping[str, str]) -> None:
        """Write metadata and places of images anew, with the vectors that are there."""
        for start in range(0, len(entries), IDS_AT_ONCE):
            window = entries[start : start + IDS_AT_ONCE]
            found = self.table.search().where(_in([entry.id for entry in window])).select(["id", "vector"]).to_list()
            vectors = {row["id"]: row["vector"] for row in found}
            known = np.array([vectors[entry.id] for entry in window])
            self.write(window, known, contents, vectors.keys())

    @_in_one_sentence
    def delete(self, ids: Sequence[str]) -> int:
        """Remove rows; returns how many."""
        for start in range(0, len(ids), IDS_AT_ONCE):
            self.table.delete(_in(ids[start : start + IDS_AT_ONCE]))
        return len(ids)

    @_in_one_sentence
    def merge(self) -> None:
        """Merge the parts of the table, and free what its former versions and killed runs have left on disk."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # readers of a former version would fail: ours read the last
            self.table.optimize(cleanup_older_than=timedelta(0), delete_unverified=True)

    @_in_one_sentence
    def tidy(self) -> None:
        """Merge many small parts, and make the approximate index where one is needed and does not fit the rows."""
        many = self.table.stats()["fragment_stats"]["num_small_fragments"] > SMALL_PARTS
        if many:
            self.merge()
        # Merging has taken new rows into the old partitions; made anew, these fit all rows.
        if ann_index.outdated(self.table) or many and len(self) > ann_index.EXACT_UP_TO:
            ann_index.build(self.table)

    @_in_one_sentence
    def count(self, where: str | None) -> int:
        """How many rows pass a filter.

        Raises:
            ValueError: The filter cannot be understood.
        """
        try:
            return self.table.count_rows(where)
        except ValueError as error:
            reason = re.sub(r"^Invalid input, |, /[^ ]*\.rs:.*$", "", str(error).splitlines()[0]).rstrip(".")
            names = [name for name in self.schema.names if name not in (*HIDDEN, "image", "thumbnail")]
            raise ValueError(
                f"the condition {where!r} cannot be understood ({reason}): write SQL on the columns "
                f"{', '.join(names)}, such as \"id = 'a'\""
            ) from None

    @_in_one_sentence
    def nearest(self, vector: np.ndarray, k: int, where: str | None = None) -> list[dict[str, Any]]:
        """The rows nearest to a vector, without the [`HIDDEN`] columns, with `_distance`: 1 - cosine."""
        count = self.count(where)
        if not count:
            return []
        query = ann_index.nearest(self.table, vector, k, exact=count <= ann_index.EXACT_UP_TO)
        if where is not None:
            query = query.where(where)
        shown = [name for name in self.schema.names if name not in HIDDEN]
        return query.select([*shown, "_distance"]).to_list()


def _in(ids: Sequence[str]) -> str:
    quoted = ", ".join("'" + name.replace("'", "''") + "'" for name in ids)
    return f"id IN ({quoted})"
