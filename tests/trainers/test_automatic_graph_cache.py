"""The automatic graph cache: gradients do not change, and the memory that it was given is used and not exceeded."""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import ProcessorMixin

from unime import UniMEModel, micro_batches
from unime.trainers import ContrastiveConfig, ContrastiveTrainer, cached_loss
from unime.trainers.activation_checkpointing import compute_last_adapter_first
from unime.trainers.automatic_graph_cache import AutomaticGraphCache, HostMemory, memory_of
from unime.trainers.gradient_cache import CachedVisionFeatures, with_last_layer_shortcut
from unime.trainers.pass_planning import checkpointing_of_layers


@pytest.fixture
def model(make_model: Callable[..., UniMEModel]) -> PeftModel:
    torch.manual_seed(0)
    config = LoraConfig(r=2, lora_alpha=8, target_modules="all-linear", lora_dropout=0.1)
    model = get_peft_model(make_model(dropout=0.2), config).train()
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.05)
    model.get_base_model().activation_checkpointing_enable()
    compute_last_adapter_first(model.get_base_model().backbone)
    return model


@pytest.fixture
def batches(processor: ProcessorMixin, make_image: Callable) -> list[dict[str, Tensor]]:
    texts = [f"text {i}" + " longer" * i for i in range(8)]
    items = [*texts, *({"image": make_image(i), "text": text} for i, text in enumerate(texts))]
    return [tensors for _, tensors in micro_batches(processor, items, 100)]


def step(model: PeftModel, batches: list[dict[str, Tensor]], cache: AutomaticGraphCache | None) -> dict[str, Tensor]:
    embedder = model.get_base_model()
    torch.manual_seed(7)
    model.zero_grad()
    embed: Any = with_last_layer_shortcut(embedder, lambda tensors: model(**tensors).embeddings)
    if not any(weight.requires_grad for weight in embedder.backbone.vision_tower.parameters()):
        embed = CachedVisionFeatures(embedder.backbone, embed)
    loss = cached_loss(embed, batches, lambda embeddings: (embeddings @ embeddings.T).exp().sum(), cache)
    loss.backward()
    grads = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return grads | {"loss": loss.detach(), "random": torch.rand(3)}


def letters(cache: AutomaticGraphCache) -> str:
    """Return a letter for each pass: f, s, n if all layers keep as much, otherwise m; capital if it is kept."""
    letters = []
    for planned in cache.passes:
        ways = {way.name[0].lower() for way in checkpointing_of_layers(planned.level, len(cache._layers))} or {"n"}
        letter = ways.pop() if len(ways) == 1 else "m"
        letters.append(letter.upper() if planned.kept else letter)
    return "".join(letters)


@pytest.mark.slow
@pytest.mark.parametrize("vision", ["trained", "frozen"])
def test_gradients_are_the_same_and_the_memory_is_not_exceeded(
    vision: str, model: PeftModel, batches: list[dict[str, Tensor]]
):
    if vision == "frozen":
        backbone = model.get_base_model().backbone
        backbone.vision_tower.requires_grad_(False)
        backbone.multi_modal_projector.requires_grad_(False)
    plain = step(model, batches, None)
    memory = HostMemory(capacity=0)
    cache = AutomaticGraphCache(model.get_base_model().backbone, memory)
    torch.testing.assert_close(step(model, batches, cache), plain, atol=0, rtol=0)  # measures
    assert letters(cache) == "F" + "f" * (len(batches) - 1)
    rise, plans = cache._rise, []
    for extra in (0, 0.5, 1, 2, 4, 8, 16, 100):
        memory = HostMemory(capacity=(1 + extra) * rise)
        cache._memory = memory
        gc.collect()
        with memory:
            torch.testing.assert_close(step(model, batches, cache), plain, atol=0, rtol=0)
        assert memory.peak() <= 1.1 * (1 + extra) * rise
        plans.append(letters(cache))
    assert plans[0] == "F" + "f" * (len(batches) - 1)
    assert plans[-1] == "N" * len(batches)
    assert {"F", "M", "N", "f"} < set("".join(plans)) and {"s", "m"} & set("".join(plans))


def test_without_checkpointing_whole_graphs_are_kept(model: PeftModel, batches: list[dict[str, Tensor]]):
    model.get_base_model().activation_checkpointing_disable()
    plain = step(model, batches, None)
    cache = AutomaticGraphCache(model.get_base_model().backbone, HostMemory(capacity=1e9))
    for expected in ("N" + "n" * (len(batches) - 1), "N" * len(batches)):
        torch.testing.assert_close(step(model, batches, cache), plain, atol=0, rtol=0)
        assert letters(cache) == expected


@pytest.mark.slow
def test_a_new_kind_of_micro_batch_is_measured(model: PeftModel, batches: list[dict[str, Tensor]]):
    cache = AutomaticGraphCache(model.get_base_model().backbone, HostMemory(capacity=1e9))
    texts = [tensors for tensors in batches if "pixel_values" not in tensors]
    step(model, texts, cache)
    step(model, texts, cache)
    assert letters(cache) == "N" * len(texts)
    step(model, batches, cache)
    assert letters(cache) == "F" + "f" * (len(batches) - 1)
    step(model, batches, cache)
    assert letters(cache) == "N" * len(batches)


@pytest.mark.slow
def test_the_trainer_takes_the_same_steps(
    make_model: Callable[..., UniMEModel], processor: ProcessorMixin, rows: list[dict[str, Any]], tmp_path: Path
):
    weights, plans = {}, set()
    for gigabytes in (0, float("inf")):
        args = ContrastiveConfig(
            str(tmp_path),
            per_device_train_batch_size=12,
            micro_batch_tokens=100,
            max_steps=3,
            learning_rate=1e-2,
            graph_cache_gb=gigabytes,
            activation_checkpointing=True,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
        )
        adapter = LoraConfig(r=2, target_modules="all-linear", lora_dropout=0.1)
        trainer = ContrastiveTrainer(
            make_model(), args, train_dataset=rows, processing_class=processor, peft_config=adapter
        )
        trainer.train()
        weights[gigabytes] = {n: w.detach().clone() for n, w in trainer.model.named_parameters() if w.requires_grad}
        if gigabytes:
            plans = set(letters(trainer._automatic_graph_cache))
    assert plans == {"N"}
    torch.testing.assert_close(weights[float("inf")], weights[0], atol=0, rtol=0)


def test_a_device_whose_memory_cannot_be_counted_is_refused():
    with pytest.raises(ValueError, match="of a device of type 'mps': set a number of gigabytes"):
        memory_of(torch.device("mps"))
