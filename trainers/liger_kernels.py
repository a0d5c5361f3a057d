"""Liger's fused kernels for the norms and the gated MLPs of the language model (Hsu et al., arXiv 2410.10989).

`Trainer` asks Liger to change a model of type `unime`, which Liger does not know and leaves as it is, and Liger's
functions for the backbones replace classes for the whole process. Here each module gets a forward pass that calls a
kernel: weights keep their names, and an MLP still calls its projections, which may be quantized or have adapters.
"""

from collections.abc import Callable
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..extras import require_extra
from ..pooling_unime import SHORTCUT_DECODERS


Kernel = Callable[..., Tensor]


def use_liger_kernels(backbone: PreTrainedModel, config: dict[str, bool] | None, device: torch.device) -> None:
    """Make the norms and MLPs of the language model call Liger's kernels.

    Args:
        backbone (`PreTrainedModel`): The image-text model, with or without adapters.
        config (`dict[str, bool]`, *optional*): `rms_norm` and `swiglu`, both true by default.
        device (`torch.device`): Where the model is trained.

    Raises:
        ValueError: Triton, which Liger's kernels are written in, cannot run on the device, or the family is not
            supported.
        MissingExtraError: Liger is not installed.
    """
    if device.type not in ("cuda", "xpu"):  # PyTorch calls ROCm "cuda" too
        raise ValueError(
            f"use_liger_kernel needs a GPU with CUDA, ROCm or XPU, as Liger's kernels cannot run on '{device.type}': "
            "set it to false"
        )
    require_extra("liger", "liger_kernel")
    from liger_kernel.transformers.functional import liger_rms_norm, liger_swiglu

    chosen = {"rms_norm": True, "swiglu": True, **(config or {})}
    # In place, the kernel would overwrite a gradient that other operations may hold.
    rms_norm = partial(liger_rms_norm, in_place=False) if chosen["rms_norm"] else None
    bind_kernels(backbone, rms_norm, liger_swiglu if chosen["swiglu"] else None)


def bind_kernels(backbone: PreTrainedModel, rms_norm: Kernel | None, swiglu: Kernel | None) -> None:
    """Give the norms and MLPs of the language model a forward pass that calls a kernel.

    Args:
        backbone (`PreTrainedModel`): The image-text model, with or without adapters.
        rms_norm (`Callable`, *optional*): Returns the normalized hidden states; called with them, the weight and
            epsilon.
        swiglu (`Callable`, *optional*): Returns `silu(gate) * up`; called with both. Its backward pass may overwrite
            them.

    Raises:
        ValueError: The decoder is not one of `SHORTCUT_DECODERS`, or its MLPs have another activation than SiLU.
    """
    decoder = backbone.get_decoder()
    family = decoder.config.model_type
    if family not in SHORTCUT_DECODERS or decoder.config.hidden_act not in ("silu", "swish"):
        raise ValueError(
            f"use_liger_kernel supports the language models {', '.join(sorted(SHORTCUT_DECODERS))} with the "
            f"activation SiLU, and not this one of type {family}: set it to false"
        )
    for module in decoder.modules():
        # These decoders have one class of each, named after the family, such as `Qwen2RMSNorm`.
        if rms_norm is not None and type(module).__name__.endswith("RMSNorm"):
            module.forward = MethodType(_norm_forward(rms_norm), module)
        if swiglu is not None and type(module).__name__.endswith("MLP"):
            is_fused = "gate_up_proj" in dict(module.named_children())  # Phi-3
            module.forward = MethodType((_fused_mlp_forward if is_fused else _mlp_forward)(swiglu), module)


def _norm_forward(kernel: Kernel) -> Callable[[Any, Tensor], Tensor]:
    def forward(self: Any, hidden_states: Tensor) -> Tensor:
        return kernel(hidden_states, self.weight, self.variance_epsilon)

    return forward


def _mlp_forward(kernel: Kernel) -> Callable[[Any, Tensor], Tensor]:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.down_proj(kernel(self.gate_proj(x), self.up_proj(x)))

    return forward


def _fused_mlp_forward(kernel: Kernel) -> Callable[[Any, Tensor], Tensor]:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.down_proj(kernel(*self.gate_up_proj(x).chunk(2, dim=-1)))

    return forward
