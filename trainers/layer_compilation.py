"""Regional compilation: `torch_compile` compiles the layers of the backbone, not the backbone.

Layers of one class have the same code, so all of them share what is compiled for the first one, in seconds rather than
minutes. The code around them, which depends on the number of images, stays as it is. Activation checkpointing runs a
compiled layer again as a whole.
"""

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from ..pooling_unime import SHORTCUT_DECODERS


MAX_VARIANTS = 32  # of a layer


def compile_layers(backbone: PreTrainedModel, **options: Any) -> None:
    """Compile the layers of the language model and of the vision tower.

    The last layer of the language model runs for the last tokens only, so it is not worth compiling.

    Args:
        backbone (`PreTrainedModel`): The image-text model, with its adapters.
        options: Arguments of `torch.compile`.
    """
    # Inductor's own random numbers need not be equal in the two forward passes of gradient caching.
    torch._inductor.config.fallback_random = True
    # A layer is compiled for any number of tokens, but once more for one row or several, for a mask or none, with
    # gradients or without, and where its input needs none.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MAX_VARIANTS)
    decoder = backbone.get_decoder()
    skipped = decoder.layers[-1] if decoder.config.model_type in SHORTCUT_DECODERS else None
    compiled: dict[Callable, Callable] = {}
    for layer in backbone.modules():
        if isinstance(layer, GradientCheckpointingLayer) and layer is not skipped:
            forward = type(layer).forward.__wrapped__  # without the check for activation checkpointing
            if forward not in compiled:
                compiled[forward] = torch.compile(forward, **{"dynamic": True, **options})
            layer.forward = MethodType(_checkpointed(compiled[forward]), layer)


def _checkpointed(forward: Callable) -> Callable:
    def call(self: GradientCheckpointingLayer, *args: Any, **kwargs: Any) -> Any:
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(lambda *inputs: forward(self, *inputs, **kwargs), *args)
        return forward(self, *args, **kwargs)

    return call
