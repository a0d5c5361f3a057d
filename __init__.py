"""UniME: universal multimodal embeddings from image-text models, with both training stages (arXiv 2504.17432)."""

from transformers import AutoConfig, AutoModel

from .batching_unime import micro_batches
from .checkpoint import load_model, push_checkpoint, save_checkpoint
from .configuration_unime import UniMEConfig
from .modeling_unime import UniMEModel, UniMEOutput
from .processing_unime import processor_from_backbone


# A checkpoint carries the code that loads it (`auto_map`); where this package is installed, its classes are used.
UniMEConfig.register_for_auto_class()
UniMEModel.register_for_auto_class("AutoModel")
AutoConfig.register(UniMEConfig.model_type, UniMEConfig, exist_ok=True)
AutoModel.register(UniMEConfig, UniMEModel, exist_ok=True)

__version__ = "0.1.0"

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
