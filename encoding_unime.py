"""Texts read by the decoder alone: after a prefix that is read once for all of them, or packed into one row.

A causal decoder computes the states of a token from itself and from those before it. So the keys and values of a
system prompt and an instruction are the same for every text that follows them. And texts in one row need no padding,
if none sees the others: a block-diagonal mask with `sdpa` and `eager`, the bounds of the texts with flash attention.
"""

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, DynamicLayer, PreTrainedModel


# Families whose text path is their decoder and no more, causal in all layers: the tests compare each with itself.
# A prefix that attends to itself both ways (PaliGemma) or recurrent layers would need something else.
TEXT_ONLY_DECODER_FAMILIES = frozenset(
    {
        "idefics3",
        "llava",
        "llava_next",
        "llava_onevision",
        "qwen2_5_vl",
        "qwen2_vl",
        "qwen3_vl",
        "smolvlm",
    }
)


class PrefixLayer(DynamicLayer):
    """The keys and values of one layer, `(1, heads, prefix, head_dim)`: put before any batch's, and left as they are.

    A cache for generation would keep what it is given, of all layers until the end of the pass.
    """

    def __init__(self, keys: Tensor, values: Tensor):
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        rows = key_states.shape[0]
        return (
            torch.cat([self.keys.expand(rows, -1, -1, -1), key_states], dim=-2),
            torch.cat([self.values.expand(rows, -1, -1, -1), value_states], dim=-2),
        )


def prefill(backbone: PreTrainedModel, tokens: tuple[int, ...]) -> Cache:
    """Return the keys and values of `tokens` in all layers of the backbone's decoder."""
    ids = torch.tensor([tokens], device=backbone.get_input_embeddings().weight.device)
    read = DynamicCache()  # of a configuration, sliding layers would forget
    backbone.get_decoder()(input_ids=ids, past_key_values=read, use_cache=True)
    return Cache(layers=[PrefixLayer(layer.keys, layer.values) for layer in read.layers])


def forward_with_prefix(backbone: PreTrainedModel, prefix: Cache, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Return the last hidden states `(batch, tokens, hidden_size)` of texts, padded right, that follow `prefix`."""
    before = attention_mask.new_ones(len(attention_mask), prefix.get_seq_length())
    mask = torch.cat([before, attention_mask], dim=1)
    decoder = backbone.get_decoder()
    return decoder(input_ids=input_ids, attention_mask=mask, past_key_values=prefix, use_cache=True).last_hidden_state


def forward_packed(backbone: PreTrainedModel, input_ids: Tensor, position_ids: Tensor) -> Tensor:
    """Return the last hidden states `(1, tokens, hidden_size)` of texts in one row, each with positions from 0 on.

    Args:
        input_ids (`Tensor` of shape `(1, tokens)`): The texts' tokens, one text after the other.
        position_ids (`Tensor` of shape `(1, tokens)`): Where they stand in their texts, by which the mask is made.
    """
    decoder = backbone.get_decoder()
    if "mrope_section" in decoder.config.rope_parameters:  # Qwen-VL: of the mask, and of time, height and width
        position_ids = position_ids.expand(4, 1, -1)
    return decoder(input_ids=input_ids, position_ids=position_ids, use_cache=False).last_hidden_state


__all__ = ["TEXT_ONLY_DECODER_FAMILIES", "forward_with_prefix", "forward_packed", "prefill"]
