"""In training, the last layer runs for last tokens only, and the gradients do not change."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from PIL import Image
from tiny_models import TINY_MODELS
from torch import Tensor
from transformers import ProcessorMixin

from unime import UniMEModel, micro_batches, processor_from_backbone
from unime.trainers import ContrastiveConfig, ContrastiveTrainer, cached_loss
from unime.trainers.gradient_cache import with_last_layer_shortcut


def tokens_of_last_mlp(model: UniMEModel) -> list[int]:
    """Return a list to which each pass through the last layer's MLP appends its number of tokens per row."""
    counts = []
    mlp = model.backbone.get_decoder().layers[-1].mlp
    mlp.register_forward_pre_hook(lambda _, inputs: counts.append(inputs[0].shape[1]))
    return counts


@pytest.mark.parametrize("name", TINY_MODELS)
def test_gradients_do_not_change(
    name: str, tiny_model: Callable[[str], Path], make_image: Callable[[int], Image.Image]
):
    torch.manual_seed(0)
    model, processor = (
        UniMEModel.from_backbone(tiny_model(name)).train(),
        processor_from_backbone(str(tiny_model(name))),
    )
    items = [
        *map(make_image, range(2)),
        "a text",
        {"image": make_image(3), "text": "and a text"},
        "another, longer text",
    ]
    batches = [tensors for _, tensors in micro_batches(processor, items, 100)]

    def embed(tensors: dict[str, Tensor]) -> Tensor:
        return model(**tensors).embeddings

    def gradients(embed: Callable[[dict[str, Tensor]], Tensor]) -> dict[str, Tensor]:
        model.zero_grad()
        loss = cached_loss(embed, batches, lambda embeddings: (embeddings @ embeddings.T).exp().sum())
        loss.backward()
        grads = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
        return grads | {"loss": loss.detach()}

    counts = tokens_of_last_mlp(model)
    whole = gradients(embed)
    assert min(counts) > 1
    counts.clear()
    with_shortcut = gradients(with_last_layer_shortcut(model, embed))
    assert set(counts) == {1}
    assert whole.keys() == with_shortcut.keys() and len(whole) > 10
    largest = max(gradient.abs().max().item() for gradient in whole.values())  # key biases have gradients near 0
    torch.testing.assert_close(with_shortcut, whole, rtol=1e-4, atol=1e-6 * largest)
    model.activation_checkpointing_enable()
    counts.clear()
    checkpointed = gradients(with_last_layer_shortcut(model, embed))
    assert set(counts) == {1}  # when the layer is computed again, too
    torch.testing.assert_close(checkpointed, with_shortcut, rtol=0, atol=0)


@pytest.mark.parametrize("trained", ["all weights", "adapter", "activation checkpointing"])
def test_trainers_use_the_shortcut(
    trained: str,
    make_model: Callable[..., UniMEModel],
    processor: ProcessorMixin,
    rows: list[dict[str, Any]],
    tmp_path: Path,
):
    model = make_model()
    counts = tokens_of_last_mlp(model)
    args = ContrastiveConfig(str(tmp_path), micro_batch_tokens=200, use_cpu=True, report_to="none")
    adapter = LoraConfig(r=2, target_modules="all-linear") if trained == "adapter" else None
    trainer = ContrastiveTrainer(model, args, train_dataset=rows, processing_class=processor, peft_config=adapter)
    if trained == "activation checkpointing":
        model.activation_checkpointing_enable()
    batch = trainer.data_collator(rows)
    trainer.compute_loss(trainer.model.train(), batch).backward()
    assert set(counts) == {1}
    assert any(weight.grad is not None and weight.grad.any() for weight in trainer.model.parameters())
