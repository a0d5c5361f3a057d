"""How entries lie in an index: the columns of its table, and rows made of entries and vectors."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
import pyarrow as pa

from ..corpus.entry import Entry


THUMBNAIL = 320  # pixels of the longer side: what a gallery shows of an image that has no file
OWN = ("id", "text", "image", "thumbnail", "content_hash", "details_hash", "vector")


def index_schema(dimensions: int) -> pa.Schema:
    """The columns that every index has.

    `image` is a path, `thumbnail` a small image where there is no path, `content_hash` that of what the model saw
    and `details_hash` that of everything else about the entry.
    """
    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("text", pa.string()),
            pa.field("image", pa.string()),
            pa.field("thumbnail", pa.binary()),
            pa.field("content_hash", pa.string(), nullable=False),
            pa.field("details_hash", pa.string(), nullable=False),
            pa.field("vector", pa.list_(pa.float32(), dimensions), nullable=False),
        ]
    )


def metadata_schema(entries: Sequence[Entry], known: pa.Schema) -> pa.Schema:
    """The columns that the metadata of entries need: those of `known`, and new ones.

    Raises:
        ValueError: A name cannot be a column, or a value does not fit the other values of its name; the message names
            the entry.
    """
    for entry in entries:
        for name in entry.metadata:
            if name in OWN or name.startswith("_") or "." in name or not name:
                raise ValueError(
                    f"entry {entry.id!r}: its metadata {name!r} cannot be a column of an index: rename it; taken are "
                    f"{', '.join(OWN)}, names that begin with an underscore and names with a dot"
                )
    try:
        return _merged(known, entries)
    except (pa.ArrowException, ValueError, OverflowError):
        schema = known
        for entry in entries:  # which of them was it?
            try:
                schema = _merged(schema, [entry])
            except (pa.ArrowException, ValueError, OverflowError) as error:
                raise ValueError(
                    f"entry {entry.id!r}: its metadata do not fit the other entries' ({str(error).splitlines()[0]}): "
                    "give a name values of one type everywhere"
                ) from None
        return schema


def _merged(known: pa.Schema, entries: Sequence[Entry]) -> pa.Schema:
    names = dict.fromkeys(name for entry in entries for name in entry.metadata)
    fields = [pa.field(name, pa.array([entry.metadata.get(name) for entry in entries]).type) for name in names]
    # A name that has had no value yet gets its column when it has one.
    present = [field for field in fields if not pa.types.is_null(field.type)]
    return pa.unify_schemas([known, pa.schema(present)], promote_options="permissive")


def entry_details(entry: Entry) -> str:
    """Hex digest of what the index keeps of an entry and the model does not see: its metadata, and where it lies."""
    known = {name: value for name, value in entry.metadata.items() if value is not None}
    path = entry.image if isinstance(entry.image, str) else None
    said = json.dumps([path and os.path.abspath(path), known], sort_keys=True, default=str)
    return hashlib.blake2b(said.encode(), digest_size=8).hexdigest()


def index_rows(
    entries: Sequence[Entry], contents: Mapping[str, str], vectors: np.ndarray, schema: pa.Schema
) -> pa.Table:
    """Rows of the index.

    Args:
        entries (`Sequence[Entry]`): What was embedded.
        contents (`Mapping[str, str]`): Hash of the content of each id.
        vectors (`np.ndarray` of shape `(len(entries), dimensions)`): Their embeddings.
        schema (`pa.Schema`): Columns of the table.
    """
    paths = [entry.image if isinstance(entry.image, str) else None for entry in entries]
    own = {
        "id": [entry.id for entry in entries],
        "text": [entry.text for entry in entries],
        "image": [path and os.path.abspath(path) for path in paths],
        "thumbnail": [thumbnail(entry.image) if isinstance(entry.image, bytes) else None for entry in entries],
        "content_hash": [contents[entry.id] for entry in entries],
        "details_hash": [entry_details(entry) for entry in entries],
    }

    def known(name: str) -> list[Any]:
        return [entry.metadata.get(name) for entry in entries]

    flat = pa.array(np.ascontiguousarray(vectors, dtype=np.float32).ravel())
    columns = [
        pa.FixedSizeListArray.from_arrays(flat, type=field.type)
        if field.name == "vector"
        else pa.array(own[field.name] if field.name in own else known(field.name), field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def thumbnail(picture: str | bytes, longest: int = THUMBNAIL) -> bytes:
    """A small copy of what the model sees of an image (a path, or encoded): WebP, at most `longest` pixels a side.

    Raises:
        ValueError: It cannot be read.
    """
    small = Entry("image", image=picture).item()["image"]
    small.thumbnail((longest, longest))
    data = BytesIO()
    small.save(data, "WEBP", quality=85)
    return data.getvalue()


def metadata_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata in a row that was read: what is neither the index's own nor empty."""
    return {name: value for name, value in row.items() if name not in (*OWN, "_distance") and value is not None}
