"""Prepack linear weights for oneDNN: the same products, computed faster on a CPU with AVX-512.

PyTorch sends float32 products to MKL, and MKL uses its AVX-512 kernels on Intel processors only. oneDNN, which PyTorch
ships, has such kernels for all processors; this module calls it in the way that `torch.compile` does.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn


MAX_PREPACKED_BYTES = 2**31  # prepacked weights are copies, so larger models are left as they are
# oneDNN compiles a kernel for each number of rows, and keeps up to 1,024 of them, about half a megabyte each.
ROWS_MULTIPLE = 32
MIN_PREPACKING_TOKENS = 2048  # from here on, prepacking takes a small part of the time that it saves


def _onednn_linear(prepacked: Tensor, layer: nn.Linear, inputs: Tensor) -> Tensor:
    rows = inputs.reshape(-1, inputs.shape[-1])
    padded = nn.functional.pad(rows, (0, 0, 0, -len(rows) % ROWS_MULTIPLE))
    try:
        outputs = torch.ops.mkldnn._linear_pointwise(padded, prepacked, layer.bias, "none", [], "")
        return outputs[: len(rows)].view(*inputs.shape[:-1], -1)
    except RuntimeError:  # oneDNN gives no reason; PyTorch names one, such as missing memory
        return nn.functional.linear(inputs, layer.weight, layer.bias)


def can_prepack(model: nn.Module) -> bool:
    """Return whether prepacking helps: plain float32 weights of at most 2 GiB on a CPU with AVX-512, not compiled."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or torch.is_autocast_enabled("cpu"):
        return False
    if any(module._compiled_call_impl is not None for module in model.modules()):
        return False  # it would be recompiled
    weights = list(model.parameters())
    plain = all(
        type(weight) is nn.Parameter and weight.dtype == torch.float32 and weight.device.type == "cpu"
        for weight in weights
    )
    return plain and sum(weight.nbytes for weight in weights) <= MAX_PREPACKED_BYTES


@contextmanager
def prepacked_weights(model: nn.Module) -> Iterator[None]:
    """Use prepacked copies of the linear weights of `model` inside this context, where that helps.

    Changes of the weights inside the context do not reach the copies. A layer with a replaced `forward` (such as an
    accelerate hook, or an outer context of this kind) is left unchanged.

    Args:
        model (`nn.Module`): The model.
    """
    modules = model.modules() if can_prepack(model) else ()
    layers = [module for module in modules if type(module) is nn.Linear and "forward" not in vars(module)]
    for layer in layers:
        prepacked = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach())
        layer.forward = partial(_onednn_linear, prepacked, layer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer in layers:  # another thread that embeds with the same model may have removed it already
            vars(layer).pop("forward", None)


__all__ = ["MIN_PREPACKING_TOKENS", "prepacked_weights"]
