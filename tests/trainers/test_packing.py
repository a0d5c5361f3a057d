"""Packed micro-batches give the gradients of padded ones, with a mask and with the boundaries of flash attention."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from PIL import Image
from tiny_models import TINY_MODELS
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, ProcessorMixin
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import flash_attention_mask

from unime import UniMEModel, micro_batches, processor_from_backbone
from unime.batching_unime import count_items
from unime.trainers import ContrastiveConfig, ContrastiveTrainer
from unime.trainers.throughput import count_tokens


def attention_with_boundaries(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Compute what flash attention computes: causal attention in each packed item, found by its boundaries."""
    assert attention_mask is None
    ends = kwargs["cu_seq_lens_q"]
    lengths = ends.diff().tolist()
    assert kwargs["max_length_q"] == kwargs["max_length_k"] == max(lengths) and ends is kwargs["cu_seq_lens_k"]
    parts = [states.split(lengths, dim=2) for states in (query, key, value)]
    scaling = {"dropout": kwargs["dropout"], "scaling": kwargs["scaling"]}
    return torch.cat(
        [sdpa_attention_forward(module, *item, None, **scaling)[0] for item in zip(*parts, strict=True)], dim=1
    ), None


AttentionInterface.register("boundaries", attention_with_boundaries)
AttentionMaskInterface.register("boundaries", flash_attention_mask)


def training_items(make_image: Callable[[int], Image.Image]) -> list[Any]:
    mixed = [make_image(3), "and a text"]
    texts = [f"text {i}" + " and so on" * (i % 3) for i in range(6)]
    return [*map(make_image, range(2)), *texts, mixed, [make_image(4), make_image(5), "two images"]]


@pytest.fixture
def make_trainer(rows: list[dict[str, Any]], tmp_path: Path) -> Callable[..., ContrastiveTrainer]:
    """Return a function that makes a trainer of an adapter; weights and items are the same every time."""

    def make(model: UniMEModel, processor: ProcessorMixin, **options: Any) -> ContrastiveTrainer:
        args = ContrastiveConfig(str(tmp_path), micro_batch_tokens=400, use_cpu=True, report_to="none", **options)
        adapter = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
        return ContrastiveTrainer(model, args, train_dataset=rows, processing_class=processor, peft_config=adapter)

    return make


def gradients(trainer: ContrastiveTrainer, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    loss = trainer.compute_loss(trainer.model.train(), trainer.data_collator(rows))
    loss.backward()
    grads = {name: weight.grad for name, weight in trainer.model.named_parameters() if weight.grad is not None}
    return grads | {"loss": loss.detach()}


@pytest.mark.parametrize("name", [*TINY_MODELS, "fast_vlm"])
def test_packed_items_give_the_gradients_of_padded_ones(
    name: str,
    tiny_model: Callable[[str], Path],
    make_image: Callable[[int], Image.Image],
    make_trainer: Callable[..., ContrastiveTrainer],
    tmp_path: Path,
):
    processor = processor_from_backbone(str(tiny_model(name)))
    items = training_items(make_image)
    rows = [
        {"query": query, "positive": positive, "negatives": ["another"], "task": "task", "label": None}
        for query, positive in zip(items, reversed(items[1:] + ["end"]), strict=True)
    ]

    def gradients_with(attention: str, packed: bool) -> dict[str, Tensor]:
        model = UniMEModel.from_backbone(tiny_model(name), dtype=torch.float64)
        decoder = model.backbone.get_decoder()
        decoder.set_attn_implementation(attention)
        decoder.layers[-1].mlp.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape[:2])))
        if attention == "boundaries":  # with activation checkpointing, as the recipes train
            model.activation_checkpointing_enable()
        trainer = make_trainer(model, processor, packed=packed)
        batches[packed] = trainer.data_collator(rows)["micro_batches"]
        return gradients(trainer, rows)

    batches: dict[bool, list[dict[str, Tensor]]] = {}
    shapes: list[tuple[int, int]] = []
    padded = gradients_with("sdpa", packed=False)
    largest = max(gradient.abs().max().item() for gradient in padded.values())  # key biases have gradients near 0
    for attention in ("sdpa", "boundaries"):
        shapes.clear()
        packed = gradients_with(attention, packed=True)
        assert set(shapes) == {(1, count_items(tensors)) for tensors in batches[True]}  # the last layer's shortcut
        assert packed.keys() == padded.keys() and len(packed) > 10
        torch.testing.assert_close(packed, padded, rtol=1e-4, atol=1e-6 * largest)
    assert {len(tensors["input_ids"]) for tensors in batches[True]} == {1}
    assert any("pixel_values" in tensors and count_items(tensors) > 1 for tensors in batches[True])


def test_packed_micro_batches_count_items_and_tokens_without_padding(
    processor: ProcessorMixin, make_image: Callable[[int], Image.Image]
):
    items = training_items(make_image)
    padded, packed = (
        [tensors for _, tensors in micro_batches(processor, items, 200, packed=packed)] for packed in (False, True)
    )
    assert sum(map(count_items, padded)) == sum(map(count_items, packed)) == len(items)
    assert count_tokens(packed) == count_tokens(packed, padding=True) == count_tokens(padded)
    assert count_tokens(padded) < count_tokens(padded, padding=True)
    assert all(batch["input_ids"].numel() <= 200 for batch in packed)


def test_families_that_cannot_be_packed_are_refused_and_full_masks_are_announced(
    make_model: Callable[..., UniMEModel],
    processor: ProcessorMixin,
    make_trainer: Callable[..., ContrastiveTrainer],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
):
    with caplog.at_level(logging.WARNING):
        make_trainer(make_model(), processor, packed=True)
    assert "packed=True with attn_implementation='sdpa' computes a mask of all tokens by all tokens" in caplog.text
    monkeypatch.setattr("unime.modeling_unime.TEXT_ONLY_DECODER_FAMILIES", frozenset())
    with pytest.raises(ValueError, match="packed=True is exact for .*'llava': leave packed out"):
        make_trainer(make_model(), processor, packed=True)
