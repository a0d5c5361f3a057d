"""Frozen parts are computed once per step, though gradient caching embeds most micro-batches twice."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .gradient_cache import MicroBatch, RandomState


LAYERS = ("last_hidden_state", "hidden_states", "attentions")  # what led to the features, and weighs far more


def sees_frozen(backbone: PreTrainedModel) -> bool:
    """Say whether all that turns pictures into features is frozen: vision tower and projector."""
    language = set(backbone.get_decoder().parameters())
    return not any(weight.requires_grad for weight in backbone.parameters() if weight not in language)


class PicturesOnce:
    """An `embed` whose second pass over a micro-batch takes the picture features of the first.

    Features take the memory of the language model's picture tokens, of the whole batch until its last micro-batch.

    Args:
        backbone (`PreTrainedModel`): The image-text model within; its tower and projector are frozen.
        embed (`Callable`): Maps the tensors of one micro-batch to its embeddings.
    """

    def __init__(self, backbone: PreTrainedModel, embed: Callable[[MicroBatch], Tensor]):
        self._backbone, self._embed = backbone, embed
        self._compute = backbone.get_image_features
        self._seen: dict[int, tuple[BaseModelOutputWithPooling, RandomState]] = {}

    def __call__(self, tensors: MicroBatch) -> Tensor:
        def features(*args: Any, **kwargs: Any) -> BaseModelOutputWithPooling:
            if id(tensors) in self._seen:
                output, after = self._seen.pop(id(tensors))
                after.restore()  # whatever dropout the tower has drew from it: the language model's falls as before
                return output
            output = self._compute(*args, **kwargs)
            if not torch.is_grad_enabled():  # a first pass, with a second to come
                light = type(output)(**{name: value for name, value in output.items() if name not in LAYERS})
                self._seen[id(tensors)] = light, RandomState(tensors)
            return output

        self._backbone.get_image_features = features
        try:
            return self._embed(tensors)
        finally:
            del self._backbone.get_image_features
