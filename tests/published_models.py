"""Tiny models of published embedders, as their authors publish them."""

from collections.abc import Callable
from pathlib import Path

import torch
from tiny_models import llava_next, qwen2_vl, qwen3_vl
from tiny_tokenizers import llama_3_tokenizer, with_end_token
from transformers import PreTrainedModel, ProcessorMixin
from transformers.conversion_mapping import get_model_conversion_mapping


def e5_v() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Build LLaVA-NeXT with the special tokens of Llama 3."""
    model, processor = llava_next()
    processor.tokenizer = llama_3_tokenizer("<image>")
    model.config.image_token_id = processor.tokenizer.convert_tokens_to_ids("<image>")
    return model, processor


def qwen3_vl_embedding() -> tuple[PreTrainedModel, ProcessorMixin]:
    """Build Qwen3-VL whose tokenizer adds the end token."""
    model, processor = qwen3_vl()
    with_end_token(processor.tokenizer, "<|endoftext|>")
    return model, processor


# Preset -> a tiny model, and the last part of a Hub id of its family.
PUBLISHED: dict[str, tuple[Callable[[], tuple[PreTrainedModel, ProcessorMixin]], str]] = {
    "vlm2vec-qwen2-vl": (qwen2_vl, "VLM2Vec-Qwen2VL-2B"),
    "qwen3-vl-embedding": (qwen3_vl_embedding, "Qwen3-VL-Embedding-2B"),
    "e5-v": (e5_v, "e5-v"),
}


def make_published_model(preset: str, parent: Path) -> Path:
    """Write the tiny model of a family to a folder named after one of its Hub ids, and return the folder."""
    build, name = PUBLISHED[preset]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, processor = build()
    model._weight_conversions = get_model_conversion_mapping(model, add_legacy=False)  # as published weights are named
    model.eval().save_pretrained(parent / name)
    processor.save_pretrained(parent / name)
    return parent / name
