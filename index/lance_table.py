"""The LanceDB table of an index: each change is one transaction, which a killed process has either made or not."""

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


TABLE_NAME = "entries"
HIDDEN_COLUMNS = ("vector", "content_hash", "details_hash")  # not returned by searches
MAX_FILTER_IDS = 1000
MAX_SMALL_FRAGMENTS = 20


def _explain_lance_errors(method: Callable) -> Callable:
    """Replace LanceDB's errors by one sentence that tells a disk error from damaged content."""

    @wraps(method)
    def call(self: "EntryTable", *args: Any) -> Any:
        try:
            return method(self, *args)
        except RuntimeError as error:
            reason = re.sub(r"^lance error: |LanceError\(IO\): |, /[^ ]*\.rs:.*$", "", str(error).splitlines()[0])
            if "(os error" in reason:
                raise OSError(
                    f"{self.folder} cannot be read or written ({reason}): fix this and try again; entries that are "
                    "already indexed are kept"
                ) from None
            raise ValueError(
                f"{self.folder} is damaged ({reason}): try again in case it was being written; otherwise delete the "
                "folder and create the index again"
            ) from None

    return call


class EntryTable:
    """The table of entries and their embeddings; [`schema.index_schema`] defines its columns.

    Args:
        folder (`Path`): Folder of the table. An empty table is created if there is none.
        dimensions (`int`): Dimension of the embeddings.

    Raises:
        ValueError: Raised by every method if files of the table are damaged.
        OSError: Raised by every method if files of the table cannot be read or written, such as on a full disk.
    """

    @_explain_lance_errors
    def __init__(self, folder: Path, dimensions: int):
        self.folder = folder
        self._samples: dict[str, tuple[int, np.ndarray]] = {}  # condition -> version of the table, sample
        # An interval of zero makes each search see what other processes have written since.
        database = lancedb.connect(folder, read_consistency_interval=timedelta(0))
        try:
            self.table = database.open_table(TABLE_NAME)
        except ValueError:
            if any(folder.glob(f"{TABLE_NAME}.lance/data/*")):
                raise ValueError(
                    f"{folder} is damaged (the manifest of its table is missing): delete the folder and create the "
                    "index again"
                ) from None
            # There is no table, or only the folder that a killed process created for it.
            mode = "overwrite" if any(folder.glob(f"{TABLE_NAME}*")) else "create"
            self.table = database.create_table(TABLE_NAME, schema=index_schema(dimensions), mode=mode)

    @_explain_lance_errors
    def __len__(self) -> int:
        return self.table.count_rows()

    @property
    def schema(self) -> pa.Schema:
        """Return the columns of the table."""
        return self.table.schema

    @_explain_lance_errors
    def hashes(self) -> dict[str, tuple[str, str]]:
        """Return the content hash and the details hash of each entry by id, in a few hundred bytes per entry."""
        hashes = {}
        for batch in self.table.search().select(["id", "content_hash", "details_hash"]).to_batches():
            ids, contents, details = (batch[name].to_pylist() for name in ("id", "content_hash", "details_hash"))
            hashes.update(zip(ids, zip(contents, details, strict=True), strict=True))
        return hashes

    @_explain_lance_errors
    def add_columns(self, schema: pa.Schema) -> None:
        """Add the columns of `schema` that the table lacks, without values; the others keep their types."""
        missing = [field for field in schema if field.name not in self.schema.names]
        if missing:
            self.table.add_columns(pa.schema(missing))

    @_explain_lance_errors
    def write(
        self, entries: Sequence[Entry], vectors: np.ndarray, contents: Mapping[str, str], existing: set[str]
    ) -> None:
        """Replace the rows of entries with an id in `existing`, and append the others."""
        if not entries:
            return
        rows = index_rows(entries, contents, vectors, self.schema)
        replaced = pa.array([entry.id in existing for entry in entries])
        if pc.any(replaced).as_py():
            self.table.merge_insert("id").when_matched_update_all().execute(rows.filter(replaced))
        if not pc.all(replaced).as_py():
            self.table.add(rows.filter(pc.invert(replaced)))

    @_explain_lance_errors
    def update_metadata(self, entries: Sequence[Entry], contents: Mapping[str, str]) -> None:
        """Rewrite metadata and image paths, keeping the stored embeddings."""
        for start in range(0, len(entries), MAX_FILTER_IDS):
            window = entries[start : start + MAX_FILTER_IDS]
            condition = _id_condition([entry.id for entry in window])
            rows = self.table.search().where(condition).select(["id", "vector"]).to_list()
            vectors = {row["id"]: row["vector"] for row in rows}
            self.write(window, np.array([vectors[entry.id] for entry in window]), contents, vectors.keys())

    @_explain_lance_errors
    def delete(self, ids: Sequence[str]) -> int:
        """Delete rows and return their number."""
        for start in range(0, len(ids), MAX_FILTER_IDS):
            self.table.delete(_id_condition(ids[start : start + MAX_FILTER_IDS]))
        return len(ids)

    @_explain_lance_errors
    def compact(self) -> None:
        """Merge the fragments of the table and delete files of earlier versions and killed runs."""
        with warnings.catch_warnings():
            # LanceDB warns that readers of an earlier version fail; ours always read the latest.
            warnings.simplefilter("ignore", UserWarning)
            self.table.optimize(cleanup_older_than=timedelta(0), delete_unverified=True)

    @_explain_lance_errors
    def optimize(self) -> None:
        """Compact a table of many small fragments, and build the approximate index where it is missing or outdated."""
        fragmented = self.table.stats()["fragment_stats"]["num_small_fragments"] > MAX_SMALL_FRAGMENTS
        if fragmented:
            self.compact()
        # Compaction puts new rows into the old partitions; a rebuild fits the partitions to all rows.
        if ann_index.needs_build(self.table) or fragmented and len(self) > ann_index.MAX_EXACT_ROWS:
            ann_index.build(self.table)

    @_explain_lance_errors
    def count(self, where: str | None) -> int:
        """Return the number of rows that pass a filter.

        Raises:
            ValueError: The filter is not valid.
        """
        try:
            return self.table.count_rows(_whole_condition(where))
        except ValueError as error:
            reason = " ".join(str(error).split()).removeprefix("Invalid input, ")
            reason = re.sub(r"^.*\(sql parser error: (.*)\)$|, /[^ ]*\.rs:.*$| Valid fields are .*$", r"\1", reason)
            reason = reason.rstrip(".")
            names = [name for name in self.schema.names if name not in (*HIDDEN_COLUMNS, "image", "thumbnail")]
            raise ValueError(
                f"the condition {where!r} cannot be understood ({reason}): write SQL on the columns "
                f"{', '.join(names)}, such as \"id = 'a'\""
            ) from None

    @_explain_lance_errors
    def nearest(self, vector: np.ndarray, k: int, where: str | None = None) -> list[dict[str, Any]]:
        """Return the `k` rows nearest to a vector, without [`HIDDEN_COLUMNS`] and with `_distance`: 1 - cosine."""
        count = self.count(where)
        if not count:
            return []
        query = ann_index.nearest(self.table, vector, k, exact=count <= ann_index.MAX_EXACT_ROWS)
        if where is not None:
            query = query.where(_whole_condition(where))
        visible = [name for name in self.schema.names if name not in HIDDEN_COLUMNS]
        return query.select([*visible, "_distance"]).to_list()

    @_explain_lance_errors
    def sample(self, where: str, size: int) -> np.ndarray:
        """Return the embeddings of a random sample of the rows that pass a filter; it is kept until the table changes.

        Args:
            where (`str`): The filter.
            size (`int`): Maximum number of rows.

        Returns:
            `np.ndarray` of shape `(rows, dimensions)`: Embeddings.
        """
        version, sample = self._samples.get(where, (None, np.empty((0, 0))))
        if version != self.table.version:
            version = self.table.version
            rows = self.table.search().where(where).select(["id"]).with_row_id(True).to_arrow()
            ids = rows["_rowid"].to_numpy()
            chosen = np.random.default_rng(0).choice(ids, min(size, len(ids)), replace=False)
            column = self.table.take_row_ids(chosen.tolist()).select(["vector"]).to_arrow()["vector"]
            sample = column.combine_chunks().flatten().to_numpy().reshape(len(chosen), column.type.list_size)
            self._samples[where] = version, sample
        return sample


def _whole_condition(where: str | None) -> str | None:
    """Return a condition in parentheses: LanceDB ignores whatever follows a condition, such as `; DROP TABLE`."""
    if where is None:
        return None
    depth = 0
    for character in re.sub(r"'[^']*'|\"[^\"]*\"|`[^`]*`", "", where):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if depth < 0:
            raise ValueError("a closing parenthesis too many")
    return f"({where}\n)"  # on a line of its own, as a comment may end the condition


def _id_condition(ids: Sequence[str]) -> str:
    quoted = ", ".join("'" + entry_id.replace("'", "''") + "'" for entry_id in ids)
    return f"id IN ({quoted})"
