"""Embed a corpus, store the embeddings, search them, and show the results."""

from ..extras import require_extra


require_extra("index", "datasets", "filelock", "lancedb", "pyarrow")
