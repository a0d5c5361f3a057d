"""The last layer works for the last tokens alone in training too: no other token of it leads to the loss."""

from collections.abc import Callable

from torch import Tensor

from ..modeling_unime import UniMEModel
from ..pooling_unime import last_layer_for
from .gradient_cache import MicroBatch


def for_last_tokens(embedder: UniMEModel, embed: Callable[[MicroBatch], Tensor]) -> Callable[[MicroBatch], Tensor]:
    """Return an `embed` that leaves out what the last layer would do for other tokens, or the same where it may not.

    Their states have no part in the loss and get no gradient: the gradients stay what they are.

    Args:
        embedder ([`UniMEModel`]): The model within.
        embed (`Callable`): Maps the tensors of one micro-batch to its embeddings.
    """
    # What checkpointed layers compute again in the backward pass, they would compute for all tokens.
    if not embedder.reads_texts_alone or embedder.backbone.is_activation_checkpointing:
        return embed

    def embed_last(tensors: MicroBatch) -> Tensor:
        with last_layer_for(embedder.backbone, tensors["attention_mask"]):
            return embed(tensors)

    return embed_last
