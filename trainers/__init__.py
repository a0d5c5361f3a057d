"""Trainers of both stages and of the reranker, their arguments, and the losses as pure functions."""

# ruff: noqa: E402 (a missing extra is reported before anything that needs it is imported)
from ..extras import require_extra


require_extra("train", "accelerate", "datasets", "peft", "trl")

from ..adapters import load_adapter
from .adapter import merge_adapter, merge_checkpoint
from .checkpointing import last_complete_checkpoint, train_and_save
from .contrastive_config import ContrastiveConfig
from .contrastive_trainer import ContrastiveTrainer
from .distillation_config import DistillationConfig
from .distillation_trainer import DistillationTrainer
from .embedding_config import EmbeddingConfig
from .embedding_trainer import EmbeddingTrainer
from .gradient_cache import cached_loss
from .losses import contrastive_loss, distillation_kl, soft_label_loss
from .rerank_config import RerankConfig
from .rerank_trainer import RerankTrainer, train_reranker


__all__ = [
    "ContrastiveConfig",
    "ContrastiveTrainer",
    "DistillationConfig",
    "DistillationTrainer",
    "EmbeddingConfig",
    "EmbeddingTrainer",
    "RerankConfig",
    "RerankTrainer",
    "cached_loss",
    "contrastive_loss",
    "distillation_kl",
    "last_complete_checkpoint",
    "load_adapter",
    "merge_adapter",
    "merge_checkpoint",
    "soft_label_loss",
    "train_and_save",
    "train_reranker",
]
