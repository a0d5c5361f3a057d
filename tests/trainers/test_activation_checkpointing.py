"""What layers keep changes neither results nor gradients, to the bit; the last adapter comes before its product."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import BitsAndBytesConfig, ProcessorMixin

from unime import UniMEModel, micro_batches
from unime.trainers.activation_checkpointing import (
    calling,
    checkpointed_layers,
    checkpointing_function,
    compute_last_adapter_first,
)
from unime.trainers.pass_planning import Checkpointing


def adapted(model: UniMEModel, **options: Any) -> PeftModel:
    """Return a model with adapters in all linear layers that are not zero."""
    torch.manual_seed(0)
    model = get_peft_model(model, LoraConfig(r=2, lora_alpha=8, target_modules="all-linear", **options)).train()
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.05)
    return model


class CountProducts(TorchDispatchMode):
    """Counts the products of 4-bit weights that are computed."""

    calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        self.calls += func.name() == "bitsandbytes::gemm_4bit"
        return func(*args, **(kwargs or {}))


def gradients(model: PeftModel, tensors: dict[str, Tensor], way: Checkpointing | None = None) -> dict[str, Tensor]:
    layers = checkpointed_layers(model.get_base_model().backbone) if way is not None else []
    torch.manual_seed(3)
    model.zero_grad()
    with calling({layer: checkpointing_function(layer, way) for layer in layers}):
        embeddings = model(**tensors).embeddings
    (embeddings @ embeddings.T).exp().sum().backward()
    grads = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return grads | {"embeddings": embeddings.detach(), "random": torch.rand(3)}


def layers_with_gradient(model: UniMEModel) -> list[nn.Module]:
    """Return the layers that have got a gradient; LLaVA does not use the last one of its tower."""
    layers = checkpointed_layers(model.backbone)
    return [layer for layer in layers if any(weight.grad is not None for weight in layer.parameters())]


@pytest.fixture
def tensors(processor: ProcessorMixin, make_image: Callable) -> dict[str, Tensor]:
    items = [{"image": make_image(0), "text": "a text beside"}, {"image": make_image(1), "text": "and one more"}]
    ((_, tensors),) = micro_batches(processor, items, 10**6)
    return tensors


@pytest.mark.parametrize("autocast", [False, True])
def test_gradients_are_the_same_whatever_the_layers_keep(
    autocast: bool, make_model: Callable[..., UniMEModel], tensors: dict[str, Tensor]
):
    model = adapted(make_model(dropout=0.2), lora_dropout=0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        plain = gradients(model, tensors)
        model.get_base_model().activation_checkpointing_enable()
        compute_last_adapter_first(model.get_base_model().backbone)
        assert len(checkpointed_layers(model.get_base_model().backbone)) == 4
        for way in Checkpointing:
            torch.testing.assert_close(gradients(model, tensors, way), plain, atol=0, rtol=0)


def test_only_what_is_not_kept_is_computed_again(make_model: Callable[..., UniMEModel], tensors: dict[str, Tensor]):
    model = adapted(make_model(), lora_dropout=0.1)
    embedder = model.get_base_model()
    embedder.activation_checkpointing_enable()

    def flops(way: Checkpointing) -> int:
        with FlopCounterMode(display=False) as counter:  # counts no attention on a CPU
            gradients(model, tensors, way)
        return counter.get_total_flops()

    operations = {"last weight": 0, "last adapter": 0, "adapter outputs": 0}

    def count(linear: nn.Linear, inputs: tuple[Tensor], output: Tensor, parts: list[nn.Linear]) -> None:
        *_, last_weight, _, last_adapter = parts
        kinds = {"last weight": linear is last_weight, "last adapter": linear is last_adapter}
        kinds["adapter outputs"] = linear.in_features == 2
        for kind in kinds:
            operations[kind] += kinds[kind] * 2 * inputs[0].numel() * linear.out_features

    gradients(model, tensors)
    hooks = []
    for layer in layers_with_gradient(embedder):
        parts = [part for part in layer.modules() if isinstance(part, nn.Linear)]
        hooks += [part.register_forward_hook(partial(count, parts=parts)) for part in parts]
    gradients(model, tensors, Checkpointing.NONE)
    for hook in hooks:
        hook.remove()
    base_first = flops(Checkpointing.FULL)
    compute_last_adapter_first(embedder.backbone)
    full, selective, none = map(flops, Checkpointing)
    # The second product of the last adapter comes before the last weight, which autograd saves.
    assert base_first - full == operations["last weight"] - operations["last adapter"] > 0
    assert selective - none == operations["adapter outputs"] > 0
    assert full - none > 10 * operations["adapter outputs"]


def test_quantized_layers_keep_their_products_and_compute_the_last_adapter_first(
    tiny_model: Callable[[str], Path], processor: ProcessorMixin, tensors: dict[str, Tensor]
):
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    embedder = UniMEModel.from_backbone(
        str(tiny_model("llava")), dtype=torch.bfloat16, quantization_config=config, device_map="cpu"
    )
    model = adapted(embedder, lora_dropout=0.1)

    def is_product(part: nn.Module) -> bool:
        return isinstance(part, nn.Linear) and part.weight.dtype is torch.uint8

    products = sum(map(is_product, embedder.modules()))

    def run(autocast: bool, way: Checkpointing | None = None) -> dict[str, Tensor]:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            return gradients(model, tensors, way)

    plain = {autocast: run(autocast) for autocast in (False, True)}
    embedder.activation_checkpointing_enable()
    compute_last_adapter_first(embedder.backbone)
    layers = layers_with_gradient(embedder)
    again = sum(is_product(part) for layer in layers for part in layer.modules()) - len(layers)
    for autocast in (False, True):
        computed = {}
        for way in Checkpointing:
            with CountProducts() as counter:
                torch.testing.assert_close(run(autocast, way), plain[autocast], atol=0, rtol=0)
            computed[way] = counter.calls
        assert computed[Checkpointing.NONE] == computed[Checkpointing.SELECTIVE] == products > 20
        assert computed[Checkpointing.FULL] == products + again
