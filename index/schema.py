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
from .metadata_columns import RESERVED_COLUMNS, from_stored, metadata_array


THUMBNAIL_SIDE = 320  # pixels of the longer side; stored for images that have no file


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
        if field.name in columns:
            return pa.array(columns[field.name], field.type)
        return metadata_array([entry.metadata.get(field.name) for entry in entries], field.type)[0]

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
    return {name: from_stored(value) for name, value in row.items() if name not in hidden and value is not None}
