"""SigLIP as a peer: two towers and a 64-token text limit; an image with a text is the sum of both, as for CLIP."""

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.functional import normalize
from transformers import ProcessorMixin, Siglip2Model, SiglipModel

from ...processing_unime import Item, to_item_dict, to_rgb


@torch.no_grad()
def siglip_encode(
    items: Sequence[Item], model: SiglipModel | Siglip2Model, processor: ProcessorMixin, batch_size: int = 64
) -> np.ndarray:
    """Embed items with a SigLIP or SigLIP 2 as it is published.

    Args:
        items (`list`): Texts, images, or dicts with `text`, `image` (one) and `instruction`, which stands before the
            text and shares its tokens.
        model (`SiglipModel` or `Siglip2Model`): In evaluation mode.
        processor (`ProcessorMixin`): Its processor.
        batch_size (`int`, *optional*, defaults to 64): Items of one forward pass.

    Returns:
        `np.ndarray` of shape `(len(items), dimensions)`, float32: Unit vectors.

    Raises:
        ValueError: An item has several images.
    """
    spelt = [to_item_dict(item) for item in items]
    texts = [" ".join(part for part in (item["instruction"], item["text"]) if part) for item in spelt]
    # An image that comes with an instruction only is an image: a contrastive tower takes no orders.
    texts = [
        None if item["images"] and item["text"] is None else text for item, text in zip(spelt, texts, strict=True)
    ]
    for position, item in enumerate(spelt):
        if len(item["images"]) > 1:
            raise ValueError(f"item {position} has {len(item['images'])} images, but SigLIP takes one: join them")
    with_text = [position for position, text in enumerate(texts) if text is not None]
    with_image = [position for position, item in enumerate(spelt) if item["images"]]
    embeddings = np.zeros((len(items), model.config.text_config.projection_size), dtype=np.float32)
    for positions, embed in (
        (with_text, lambda some: _texts(model, processor, [texts[position] for position in some])),
        (with_image, lambda some: _images(model, processor, [spelt[position]["images"][0] for position in some])),
    ):
        for start in range(0, len(positions), batch_size):
            some = positions[start : start + batch_size]
            embeddings[some] += normalize(embed(some).float(), dim=-1).cpu().numpy()
    return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)


def _texts(model: SiglipModel | Siglip2Model, processor: ProcessorMixin, texts: list[str]) -> torch.Tensor:
    # The towers were trained on texts padded to the full length, and have no mask.
    length = model.config.text_config.max_position_embeddings
    inputs = processor(text=texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    return model.get_text_features(**inputs.to(model.device)).pooler_output


def _images(model: SiglipModel | Siglip2Model, processor: ProcessorMixin, images: list) -> torch.Tensor:
    inputs = processor(images=[to_rgb(image) for image in images], return_tensors="pt")
    return model.get_image_features(**inputs.to(model.device, model.dtype)).pooler_output
