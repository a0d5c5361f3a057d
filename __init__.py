"""UniME: universal multimodal embeddings from image-text models, with both training stages (arXiv 2504.17432).

Public names are imported when they are first used, so that `import unime` and the command `unime` start at once. Using
any of them registers UniME with `AutoConfig` and `AutoModel`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from .batching_unime import micro_batches
    from .checkpoint import load_model, push_checkpoint, save_checkpoint
    from .configuration_unime import UniMEConfig
    from .modeling_unime import UniMEModel, UniMEOutput
    from .processing_unime import processor_from_backbone

__version__ = "0.2.0"

__all__ = [
    "UniMEConfig",
    "UniMEModel",
    "UniMEOutput",
    "load_model",
    "micro_batches",
    "processor_from_backbone",
    "push_checkpoint",
    "save_checkpoint",
]

_MODULES = {
    "UniMEConfig": "configuration_unime",
    "UniMEModel": "modeling_unime",
    "UniMEOutput": "modeling_unime",
    "load_model": "checkpoint",
    "micro_batches": "batching_unime",
    "processor_from_backbone": "processing_unime",
    "push_checkpoint": "checkpoint",
    "save_checkpoint": "checkpoint",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import_module(".checkpoint", __name__)  # registers UniME with the Auto classes
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
