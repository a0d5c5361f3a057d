"""Training data: row format, sources, collators, sampler, teacher embeddings, hard-negative mining and validation.

Public names are imported when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..extras import require_extra


require_extra("train", "datasets")

if TYPE_CHECKING:
    from .jsonl import load_rows, load_texts
    from .mining import mine_hard_negatives, with_mined_negatives
    from .row_conversion import as_rows
    from .sources import DataArguments, open_rows, open_texts
    from .teacher import load_teacher, precompute_teacher
    from .validation import validate

__all__ = [
    "DataArguments",
    "as_rows",
    "load_rows",
    "load_teacher",
    "load_texts",
    "mine_hard_negatives",
    "open_rows",
    "open_texts",
    "precompute_teacher",
    "validate",
    "with_mined_negatives",
]

_MODULES = {
    "DataArguments": "sources",
    "as_rows": "row_conversion",
    "load_rows": "jsonl",
    "load_teacher": "teacher",
    "load_texts": "jsonl",
    "mine_hard_negatives": "mining",
    "open_rows": "sources",
    "open_texts": "sources",
    "precompute_teacher": "teacher",
    "validate": "validation",
    "with_mined_negatives": "mining",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
