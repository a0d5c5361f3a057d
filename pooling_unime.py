"""Pooling, and a last decoder layer that is computed for the last token only.

The embedding is the hidden state of the last token, or the mean over all tokens. With the former, in the last decoder
layer, everything after the attention scores affects no other token, so most of that layer's work can be skipped for
the others.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import get_ident

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


# Decoders with a plain pre-norm layer: h += o_proj(attention), then h += mlp(post_attention_layernorm(h)).
SHORTCUT_DECODERS = frozenset(
    {"llama", "mistral", "phi3", "qwen2", "qwen2_5_vl_text", "qwen2_vl_text", "qwen3_vl_text"}
)


@contextmanager
def last_layer_on_last_token(backbone: PreTrainedModel, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Compute the last decoder layer for the last token of each item only.

    Inside this context the last layer is valid at last-token positions only. Both residual additions of the layer
    broadcast the one computed state over the row, so the state at the last token is exact; in a packed row, they add
    zeros to the other tokens. Decoders outside `SHORTCUT_DECODERS` and compiled models are left unchanged.

    Args:
        backbone (`PreTrainedModel`): The backbone.
        tensors (`Mapping[str, Tensor]`): Inputs of the model: `attention_mask` of shape `(batch, tokens)`, in which 0
            marks padding, or `item_ends` of shape `(items,)`, the positions of last tokens in one packed row.
    """
    decoder = backbone.get_decoder()
    calling_thread = get_ident()
    item_ends = tensors.get("item_ends")

    def select_last(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor] | None:
        # Another thread may be embedding other rows with the same model.
        if get_ident() != calling_thread:
            return None
        (hidden,) = inputs
        if item_ends is not None:
            return (hidden[:, item_ends.to(hidden.device)],)
        return (_last_token_states(hidden, tensors["attention_mask"])[:, None],)

    def put_back(_: nn.Module, __: tuple[Tensor], output: Tensor) -> Tensor | None:
        if item_ends is None or get_ident() != calling_thread:
            return None
        row = output.new_zeros(1, tensors["input_ids"].shape[1], output.shape[-1])
        return row.index_copy(1, item_ends.to(output.device), output)

    hooks = []
    layer = decoder.layers[-1] if decoder.config.model_type in SHORTCUT_DECODERS else None
    # A hook would trigger recompilation.
    if layer is not None and not any(module._compiled_call_impl for module in (decoder, *layer.modules())):
        for module in (layer.self_attn.o_proj, layer.post_attention_layernorm):
            # First in line, so that other hooks see what is really computed.
            hooks.append(module.register_forward_pre_hook(select_last, prepend=True))
        hooks += [module.register_forward_hook(put_back) for module in (layer.self_attn.o_proj, layer.mlp)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _last_token_states(hidden: Tensor, mask: Tensor) -> Tensor:
    positions = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    last = (mask.long() * positions).argmax(dim=1).to(hidden.device)
    return hidden[torch.arange(hidden.shape[0], device=hidden.device), last]


def pool(hidden: Tensor, mask: Tensor, truncate_dim: int | None = None, pooling: str = "last") -> Tensor:
    """Return the normalized hidden state of an item, for left and right padding alike.

    Args:
        hidden (`Tensor` of shape `(batch, tokens, hidden_size)`): Last hidden states of the backbone.
        mask (`Tensor` of shape `(batch, tokens)`): Attention mask; 0 marks padding.
        truncate_dim (`int`, *optional*): Number of leading dimensions to keep (Matryoshka embeddings).
        pooling (`str`, *optional*, defaults to `"last"`): `"last"` for the last attended token, `"mean"` for the mean
            over all attended tokens.

    Returns:
        `Tensor` of shape `(batch, dimensions)`, float32: Embeddings of unit length.
    """
    if pooling == "last":
        return _unit_length(_last_token_states(hidden, mask), truncate_dim)
    weights = mask.to(hidden.device, torch.float32)[..., None]
    return _unit_length((hidden.float() * weights).sum(dim=1) / weights.sum(dim=1), truncate_dim)


def pool_packed(hidden: Tensor, item_ends: Tensor, truncate_dim: int | None = None, pooling: str = "last") -> Tensor:
    """Return the normalized hidden states of items that are packed into one row.

    Args:
        hidden (`Tensor` of shape `(1, tokens, hidden_size)`): Last hidden states of the backbone.
        item_ends (`Tensor` of shape `(items,)`): Position of each item's last token.
        truncate_dim (`int`, *optional*): Number of leading dimensions to keep (Matryoshka embeddings).
        pooling (`str`, *optional*, defaults to `"last"`): See [`pool`].

    Returns:
        `Tensor` of shape `(items, dimensions)`, float32: Embeddings of unit length.
    """
    item_ends = item_ends.to(hidden.device)
    if pooling == "last":
        return _unit_length(hidden[0, item_ends], truncate_dim)
    lengths = item_ends.diff(prepend=item_ends.new_tensor([-1]))
    items = torch.arange(len(lengths), device=hidden.device).repeat_interleave(lengths)
    sums = hidden.new_zeros(len(lengths), hidden.shape[-1], dtype=torch.float32)
    return _unit_length(sums.index_add(0, items, hidden[0].float()) / lengths[:, None], truncate_dim)


def _unit_length(states: Tensor, truncate_dim: int | None) -> Tensor:
    return nn.functional.normalize(states.float()[:, :truncate_dim], dim=-1)


__all__ = ["last_layer_on_last_token", "pool", "pool_packed"]
