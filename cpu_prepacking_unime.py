"""Linear layers with weights that oneDNN has packed for its matrix kernels: the same products on a CPU, sooner.

torch leaves products in float32 to MKL, whose AVX-512 kernels run on Intel's processors only. oneDNN, which comes with
torch, has some for all, and is given the work here as `torch.compile` gives it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn


MAX_PREPACKED_BYTES = 2**31  # bytes that the packed copy of the weights may take
MIN_PREPACKING_TOKENS = 2048  # tokens, from which on packing takes a small part of the time that it saves


def _onednn_linear(packed: Tensor, layer: nn.Linear, inputs: Tensor) -> Tensor:
    try:
        return torch.ops.mkldnn._linear_pointwise(inputs, packed, layer.bias, "none", [], "")
    except RuntimeError:  # oneDNN does not say why it could not; torch does, if there is no memory
        return nn.functional.linear(inputs, layer.weight, layer.bias)


def can_prepack(model: nn.Module) -> bool:
    """Whether packing helps: plain float32 weights on a CPU with AVX-512, twice of which fit into memory."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or torch.is_autocast_enabled("cpu"):
        return False
    if any(module._compiled_call_impl is not None for module in model.modules()):
        return False  # it would be compiled anew
    weights = list(model.parameters())
    plain = all(type(weight) is nn.Parameter and weight.dtype == torch.float32 for weight in weights)
    return plain and model.device.type == "cpu" and sum(weight.nbytes for weight in weights) <= MAX_PREPACKED_BYTES


@contextmanager
def prepacked_weights(model: nn.Module) -> Iterator[None]:
    """Pack the weights of the linear layers of `model` until the end of the block, where that helps.

    They are copies: a change of the weights within the block does not reach the products. Layers whose `forward`
    something has replaced, such as a block around this one, are left as they are.
    """
    modules = model.modules() if can_prepack(model) else ()
    layers = [module for module in modules if type(module) is nn.Linear and "forward" not in vars(module)]
    for layer in layers:
        packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach())
        layer.forward = partial(_onednn_linear, packed, layer)
    try:
        yield
    finally:
        for layer in layers:  # another thread, which embeds with the same model, may have been sooner
            vars(layer).pop("forward", None)


__all__ = ["MIN_PREPACKING_TOKENS", "prepacked_weights"]
