"""The storage format of an index: the columns of its table, and rows built from entries and embeddings."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from ..corpus.entry import Entry


THUMBNAIL_SIDE = 320  # pixels of the longer side; stored for images that have no file
RESERVED_COLUMNS = ("id", "text", "image", "thumbnail", "content_hash", "details_hash", "vector")


def index_schema(dimensions: int) -> pa.Schema:
    """Return the columns that every index has.

    `image` is a path and `thumbnail` a small copy of an image without a path. `content_hash` covers what the model
    sees, `details_hash` everything else about the entry.
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


def metadata_schema(entries: Sequence[Entry], schema: pa.Schema) -> pa.Schema:
    """Return `schema` with the columns added that the metadata of the entries needs.

    Raises:
        ValueError: A metadata key cannot be a column name, or a value does not match the type of its column. The
            message names the entry.
    """
    for entry in entries:
        for name in entry.metadata:
            if name in RESERVED_COLUMNS or name.startswith("_") or "." in name or not name:
                raise ValueError(
                    f"entry {entry.id!r}: metadata key {name!r} cannot be a column of an index: rename it; reserved "
                    f"are {', '.join(RESERVED_COLUMNS)}, names that start with an underscore, and names with a dot"
                )
    try:
        return _merge_schema(schema, entries)
    except (pa.ArrowException, ValueError, OverflowError):
        for entry in entries:  # merge one by one to find the entry at fault
            try:
                schema = _merge_schema(schema, [entry])
            except (pa.ArrowException, ValueError, OverflowError) as error:
                raise ValueError(
                    f"entry {entry.id!r}: its metadata types conflict with those of other entries "
                    f"({str(error).splitlines()[0]}): give each key values of one type"
                ) from None
        return schema


def _merge_schema(schema: pa.Schema, entries: Sequence[Entry]) -> pa.Schema:
    names = dict.fromkeys(name for entry in entries for name in entry.metadata)
    fields = [pa.field(name, pa.array([entry.metadata.get(name) for entry in entries]).type) for name in names]
    # A key without any value so far gets its column with its first value.
    typed = [field for field in fields if not pa.types.is_null(field.type)]
    return pa.unify_schemas([schema, pa.schema(typed)], promote_options="permissive")


def entry_details(entry: Entry) -> str:
    """Return the hex digest of what the index stores and the model does not see: metadata and image path."""
    metadata = {name: value for name, value in entry.metadata.items() if value is not None}
    path = entry.image if isinstance(entry.image, str) else None
    details = json.dumps([path and os.path.abspath(path), metadata], sort_keys=True, default=str)
    return hashlib.blake2b(details.encode(), digest_size=8).hexdigest()


def index_rows(
    entries: Sequence[Entry], contents: Mapping[str, str], vectors: np.ndarray, schema: pa.Schema
) -> pa.Table:
    """Build rows of the index.

    Args:
        entries (`Sequence[Entry]`): Embedded entries.
        contents (`Mapping[str, str]`): Content hash by id.
        vectors (`np.ndarray` of shape `(len(entries), dimensions)`): Embeddings of the entries.
        schema (`pa.Schema`): Columns of the table.
    """
    paths = [entry.image if isinstance(entry.image, str) else None for entry in entries]
    columns = {
        "id": [entry.id for entry in entries],
        "text": [entry.text for entry in entries],
        "image": [path and os.path.abspath(path) for path in paths],
        "thumbnail": [thumbnail(entry.image) if isinstance(entry.image, bytes) else None for entry in entries],
        "content_hash": [contents[entry.id] for entry in entries],
        "details_hash": [entry_details(entry) for entry in entries],
    }

    def array(field: pa.Field) -> pa.Array:
        if field.name == "vector":
            flat = pa.array(np.ascontiguousarray(vectors, dtype=np.float32).ravel())
            return pa.FixedSizeListArray.from_arrays(flat, type=field.type)
        values = columns.get(field.name)
        return pa.array(
            [entry.metadata.get(field.name) for entry in entries] if values is None else values, field.type
        )

    return pa.Table.from_arrays([array(field) for field in schema], schema=schema)


def thumbnail(image: str | bytes | Image.Image, max_side: int = THUMBNAIL_SIDE) -> bytes:
    """Return a small WebP copy of an image as the model sees it.

    Args:
        image (`str`, `bytes` or `PIL.Image`): A path, an encoded image, or an RGB image.
        max_side (`int`, defaults to 320): Longer side in pixels; smaller images keep their size.

    Raises:
        ValueError: The image cannot be read.
    """
    small = image.copy() if isinstance(image, Image.Image) else Entry("image", image=image).item()["image"]
    small.thumbnail((max_side, max_side))
    encoded = BytesIO()
    small.save(encoded, "WEBP", quality=85)
    return encoded.getvalue()


def metadata_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata of a row of the table: its non-empty columns that are not reserved."""
    hidden = (*RESERVED_COLUMNS, "_distance")
    return {name: value for name, value in row.items() if name not in hidden and value is not None}
