"""What the layers of a backbone keep for their backward pass: an own choice for each micro-batch.

transformers calls `layer._gradient_checkpointing_func` with the forward pass of every layer that is checkpointed.
Another function in its place makes a layer keep more, or everything, for as long as a micro-batch is embedded.

A checkpointed layer is computed again up to the last tensor that its backward pass needs. That is the input of the
last adapter, so the product of the last frozen weight need not be computed again, provided that the adapter comes
first. PEFT computes it last; [`compute_last_adapter_first`] changes that.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import MethodType
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from .pass_planning import Checkpointing


Layers = list[GradientCheckpointingLayer]

MIN_KEPT_ATTENTION = 0.25  # tokens that are attended to, relative to the width of a layer


def checkpointed_layers(backbone: PreTrainedModel) -> Layers:
    """Return the layers of the decoder and of the vision tower that activation checkpointing is enabled for.

    Args:
        backbone (`PreTrainedModel`): The image-text model.
    """
    layers = (module for module in backbone.modules() if isinstance(module, GradientCheckpointingLayer))
    return [layer for layer in layers if layer.gradient_checkpointing]


@contextmanager
def calling(functions: dict[GradientCheckpointingLayer, Callable]) -> Iterator[None]:
    """Call other functions in place of the usual checkpointing of some layers inside this context.

    Args:
        functions (`dict`): For each layer a function of its forward pass and its inputs.
    """
    usual = {layer: layer._gradient_checkpointing_func for layer in functions}
    for layer, function in functions.items():
        layer._gradient_checkpointing_func = function
    try:
        yield
    finally:
        for layer, function in usual.items():
            layer._gradient_checkpointing_func = function


def checkpointing_function(layer: GradientCheckpointingLayer, checkpointing: Checkpointing) -> Callable:
    """Return the function that runs a layer so that it keeps a given part of its tensors.

    Args:
        layer (`GradientCheckpointingLayer`): A layer that activation checkpointing is enabled for.
        checkpointing ([`Checkpointing`]): What it keeps.
    """
    if checkpointing is Checkpointing.NONE:
        return lambda forward, *args: forward(*args)
    if checkpointing is Checkpointing.SELECTIVE:
        contexts = partial(create_selective_checkpoint_contexts, _selective_policy(layer))
        return partial(checkpoint, use_reentrant=False, context_fn=contexts)
    return layer._gradient_checkpointing_func


def _linear_layers(layer: nn.Module) -> list[nn.Linear]:
    """Return the linear layers in the order in which they are computed, without those of adapters."""
    return [part for name, part in layer.named_modules() if isinstance(part, nn.Linear) and ".lora_" not in name]


def _selective_policy(layer: nn.Module) -> Callable[..., CheckpointPolicy]:
    """Keep what saves most work per byte. The last product is not kept, as no backward pass needs it.

    A byte of the result of a product saves as many operations as the product has input features, one of attention as
    many as there are tokens to attend to. The second products of adapters have few input features.
    """
    linears = _linear_layers(layer)
    last, width = linears[-1], min(linear.in_features for linear in linears)
    last_shape = (last.in_features, last.out_features)

    def keep(shape: tuple[int, ...]) -> bool:
        return shape[0] >= width and shape != last_shape

    def policy(_: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        name = operator.name()
        if name in ("aten::mm", "aten::addmm"):
            kept = keep(tuple(args[-1].shape))
        elif name == "bitsandbytes::gemm_4bit":
            kept = keep(tuple(args[2])[::-1])
        elif "_scaled_dot_product_" in name:
            kept = args[1].shape[-2] >= MIN_KEPT_ATTENTION * width
        else:
            kept = name.startswith("flash_attn::")
        return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE

    return policy


def compute_last_adapter_first(backbone: PreTrainedModel) -> None:
    """Make the last adapter of every layer compute its low-rank branch before the product of the frozen weight.

    The results are the same to the bit, and so are the gradients: nothing else reads the input of the last linear
    layer, so its gradient is the sum of the same two terms. Only plain LoRA of linear and 4-bit layers is changed.

    Args:
        backbone (`PreTrainedModel`): The image-text model with its adapters.
    """
    for layer in backbone.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            adapters = [part for part in layer.modules() if isinstance(part, LoraLayer)]
            if adapters and adapters[-1].get_base_layer() is _linear_layers(layer)[-1]:
                if type(adapters[-1]).__name__ in ("Linear", "Linear4bit"):
                    adapters[-1].forward = MethodType(_forward_adapter_first, adapters[-1])


def _forward_adapter_first(self: LoraLinear, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    (name, *others) = self.active_adapters
    usual = kwargs or others or self.disable_adapters or self.merged or name not in self.lora_A
    if usual or name in self.lora_variant:
        return type(self).forward(self, x, *args, **kwargs)
    down, up = self.lora_A[name], self.lora_B[name]
    in_4_bits, autocast = type(self).__name__ == "Linear4bit", torch.is_autocast_enabled()
    adapted = x if in_4_bits and autocast else self._cast_input_dtype(x, down.weight.dtype)
    branch = up(down(self.lora_dropout[name](adapted))) * self.scaling[name]
    result = self.base_layer(x, *args)
    if in_4_bits:
        return result + (branch if autocast else branch.to(result.dtype))
    return (result + branch).to(result.dtype)
