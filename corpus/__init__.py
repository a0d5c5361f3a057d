"""Corpora to embed: a folder, a file or a dataset, read as entries with an id, a text, an image and metadata."""

from ..extras import require_extra


require_extra("index", "datasets", "pyarrow")
