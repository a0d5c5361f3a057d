"""The last token: its state is the embedding, and all that the last layer of the decoder has to give.

What follows the attention of the last layer, most of its work, reaches no other token, and so is done for that one
alone.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import get_ident

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


# Decoders whose layers add to their input what attention's `o_proj` gives, and to that what follows a norm.
SHORTCUT_DECODERS = frozenset({"llama", "mistral", "qwen2", "qwen2_5_vl_text", "qwen2_vl_text", "qwen3_vl_text"})


@contextmanager
def last_layer_on_last_token(backbone: PreTrainedModel, mask: Tensor) -> Iterator[None]:
    """Within it, the last layer of the backbone's decoder works for the last tokens; the others' states are void.

    Both additions of the layer spread the state of a row's one token over the row: where that token is, it is right.

    Args:
        backbone (`PreTrainedModel`): Whose decoder is one of `PLAIN_DECODERS`; others are left as they are.
        mask (`Tensor` of shape `(batch, tokens)`): 0 marks padding.
    """
    decoder = backbone.get_decoder()
    own = get_ident()

    def choose(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor] | None:
        # Another thread embeds other rows with the same model.
        return (_last_token_states(inputs[0], mask)[:, None],) if get_ident() == own else None

    hooks = []
    # What is compiled would be compiled anew.
    if decoder.config.model_type in SHORTCUT_DECODERS and not any(m._compiled_call_impl for m in decoder.modules()):
        layer = decoder.layers[-1]
        for module in (layer.self_attn.o_proj, layer.post_attention_layernorm):
            hooks.append(module.register_forward_pre_hook(choose, prepend=True))  # others see what is computed
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
    """Normalise the hidden state of the last token that `mask` attends to, whichever side is padded.

    Args:
        hidden (`Tensor` of shape `(batch, tokens, hidden_size)`): The backbone's last layer, normed.
        mask (`Tensor` of shape `(batch, tokens)`): 0 marks padding.
        truncate_dim (`int`, *optional*): Keep this many leading dimensions (Matryoshka).

    Returns:
        `Tensor` of shape `(batch, dimensions)`, float32: Unit vectors.
    """
    pooled = _last_token_states(hidden, mask).float()
    return nn.functional.normalize(pooled[:, :truncate_dim], dim=-1)


__all__ = ["pool_last_token", "last_layer_on_last_token"]
