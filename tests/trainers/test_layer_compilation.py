"""`torch_compile` compiles layers: few variants for all shapes, and the gradients of layers that are not compiled."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from tiny_models import TINY_MODELS
from torch import Tensor
from torch._dynamo.eval_frame import _debug_get_cache_entry_list
from transformers import ProcessorMixin
from transformers.modeling_layers import GradientCheckpointingLayer

from unime import UniMEModel, micro_batches
from unime.trainers.layer_compilation import MAX_VARIANTS, compile_layers


@pytest.fixture(autouse=True)
def restored_settings() -> Iterator[None]:
    with torch._dynamo.config.patch(recompile_limit=8), torch._inductor.config.patch(fallback_random=False):
        yield


def layers(model: UniMEModel) -> list[GradientCheckpointingLayer]:
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


@pytest.mark.parametrize("name", TINY_MODELS)
def test_all_layers_but_the_last_one_of_the_language_model_are_compiled(name: str, tiny_model: Callable[[str], Path]):
    model = UniMEModel.from_backbone(tiny_model(name))
    compile_layers(model.backbone, backend="eager")
    last = model.backbone.get_decoder().layers[-1]
    assert [layer for layer in layers(model) if "forward" not in vars(layer)] == [last] and len(layers(model)) > 3
    assert torch._dynamo.config.recompile_limit == MAX_VARIANTS and torch._inductor.config.fallback_random


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [True])
def test_compiled_layers_give_the_same_gradients_in_few_variants(
    checkpointing: bool,
    make_model: Callable[..., UniMEModel],
    processor: ProcessorMixin,
    make_image: Callable[[int], Image.Image],
):
    torch._dynamo.reset()

    def make() -> torch.nn.Module:
        torch.manual_seed(0)
        adapter = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, lora_dropout=0.1)
        model = get_peft_model(make_model(), adapter).train()
        if checkpointing:
            model.get_base_model().activation_checkpointing_enable()
        return model

    def gradients(model: torch.nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        torch.manual_seed(1)
        with torch.no_grad():
            model(**tensors)
        model.zero_grad()
        embeddings = model(**tensors).embeddings
        (embeddings @ embeddings.T).exp().sum().backward()
        return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}

    plain, compiled = make(), make()
    compile_layers(compiled.get_base_model().backbone, backend="eager")
    for step in range(2):
        texts = [f"text {i}" + " and so on" * (i * step % 7) for i in range(1 + 3 * step)]
        items = texts + [[make_image(i), "which one?" * (i % 3)] for i in range(1 + step % 3)]
        for _, tensors in micro_batches(processor, items, 150):
            expected = gradients(plain, tensors)
            largest = max(gradient.abs().max().item() for gradient in expected.values())
            torch.testing.assert_close(gradients(compiled, tensors), expected, rtol=1e-3, atol=1e-5 * largest)
    forwards = {type(layer).forward.__wrapped__ for layer in layers(compiled)}
    variants = [len(_debug_get_cache_entry_list(forward.__code__)) for forward in forwards]
    assert len(variants) == 2 and min(variants) > 1 and max(variants) < 16
