"""Training data: row format, sources, collators, sampler, teacher embeddings, hard-negative mining and validation."""

# ruff: noqa: E402 (a missing extra is reported before anything that needs it is imported)
from ..extras import require_extra


require_extra("train", "datasets")

from .jsonl import load_rows, load_texts
from .mining import mine_hard_negatives, with_mined_negatives
from .row_conversion import as_rows
from .sources import DataArguments, open_rows, open_texts
from .validation import validate


__all__ = [
    "DataArguments",
    "as_rows",
    "load_rows",
    "load_texts",
    "mine_hard_negatives",
    "open_rows",
    "open_texts",
    "validate",
    "with_mined_negatives",
]
