"""Last-token pooling, and a last decoder layer that is computed for the last token only.

The embedding is the hidden state of the last token. In the last decoder layer, everything after the attention scores
affects no other token, so most of that layer's work can be skipped for the others.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import get_ident

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


# Decoders with a plain pre-norm layer: h += o_proj(attention), then h += mlp(post_attention_layernorm(h)).
SHORTCUT_DECODERS = frozenset({"llama", "mistral", "qwen2", "qwen2_5_vl_text", "qwen2_vl_text", "qwen3_vl_text"})


@contextmanager
def last_layer_on_last_token(backbone: PreTrainedModel, mask: Tensor) -> Iterator[None]:
    """Compute the last decoder layer for the last token of each row only.

    Inside this context the last layer is valid at last-token positions only. Both residual additions of the layer
    broadcast the one computed state over the row, so the state at the last token is exact. Decoders outside
    `SHORTCUT_DECODERS` and compiled models are left unchanged.

    Args:
        backbone (`PreTrainedModel`): The backbone.
        mask (`Tensor` of shape `(batch, tokens)`): Attention mask; 0 marks padding.
    """
    decoder = backbone.get_decoder()
    calling_thread = get_ident()

    def select_last(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor] | None:
        # Another thread may be embedding other rows with the same model.
        return (_last_token_states(inputs[0], mask)[:, None],) if get_ident() == calling_thread else None

    hooks = []
    is_compiled = any(module._compiled_call_impl for module in decoder.modules())  # a hook would trigger recompilation
    if decoder.config.model_type in SHORTCUT_DECODERS and not is_compiled:
        layer = decoder.layers[-1]
        for module in (layer.self_attn.o_proj, layer.post_attention_layernorm):
            # First in line, so that other hooks see what is really computed.
            hooks.append(module.register_forward_pre_hook(select_last, prepend=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _last_token_states(hidden: Tensor, mask: Tensor) -> Tensor:
    positions = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    last = (mask.long() * positions).argmax(dim=1).to(hidden.device)
    return hidden[torch.arange(hidden.shape[0], device=hidden.device), last]


def pool_last_token(hidden: Tensor, mask: Tensor, truncate_dim: int | None = None) -> Tensor:
    """Return the normalized hidden state of the last attended token, for left and right padding alike.

    Args:
        hidden (`Tensor` of shape `(batch, tokens, hidden_size)`): Last hidden states of the backbone.
        mask (`Tensor` of shape `(batch, tokens)`): Attention mask; 0 marks padding.
        truncate_dim (`int`, *optional*): Number of leading dimensions to keep (Matryoshka embeddings).

    Returns:
        `Tensor` of shape `(batch, dimensions)`, float32: Embeddings of unit length.
    """
    pooled = _last_token_states(hidden, mask).float()
    return nn.functional.normalize(pooled[:, :truncate_dim], dim=-1)


__all__ = ["last_layer_on_last_token", "pool_last_token"]
