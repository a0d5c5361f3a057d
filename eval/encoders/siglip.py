"""SigLIP as a baseline: two towers and a 64-token text limit; image plus text is the sum of both, as for CLIP."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize
from transformers import ProcessorMixin, Siglip2Model, SiglipModel

from ...image_input_unime import images_before_processor
from ...processing_unime import Item, to_item_dict, to_rgb
from ...windows_unime import MAX_WINDOW_PIXELS, item_pixels, windows


ENCODE_WINDOW_ITEMS = 512  # sorted by modality together


@torch.no_grad()
def siglip_encode(
    items: Sequence[Item],
    model: SiglipModel | Siglip2Model,
    processor: ProcessorMixin,
    batch_size: int = 64,
    normalize_features: bool = True,
) -> np.ndarray:
    """Embed items with a published SigLIP or SigLIP 2.

    Args:
        items (`Sequence[Item]`): Texts, images, or dicts with `text`, `image` (one) and `instruction`. The instruction
            is prepended to the text; with an image alone it is ignored. Texts around an image are joined.
        model (`SiglipModel` or `Siglip2Model`): The model, in evaluation mode.
        processor (`ProcessorMixin`): Its processor.
        batch_size (`int`, *optional*, defaults to 64): Items per forward pass.
        normalize_features (`bool`, *optional*, defaults to `True`): Normalize the features of text and image before
            they are added; see `clip.FUSIONS`.

    Returns:
        `np.ndarray` of shape `(len(items), dimensions)`, float32: Unit vectors.

    Raises:
        ValueError: An item has several images.
    """
    embeddings = [np.zeros((0, model.config.text_config.projection_size), dtype=np.float32)]
    start = 0
    for window in windows(items, item_pixels, ENCODE_WINDOW_ITEMS, MAX_WINDOW_PIXELS):
        dicts = [to_item_dict(item) for item in window]
        for index, item in enumerate(dicts, start):
            if len(item["images"]) > 1:
                raise ValueError(f"item {index} has {len(item['images'])} images, but SigLIP takes one; join them")
        embeddings.append(_embed_window(dicts, model, processor, batch_size, normalize_features))
        start += len(window)
    return np.concatenate(embeddings)


def _embed_window(
    dicts: list[dict[str, Any]],
    model: SiglipModel | Siglip2Model,
    processor: ProcessorMixin,
    batch_size: int,
    normalize_features: bool,
) -> np.ndarray:
    texts = [
        None
        if item["images"] and item["text"] is None
        else " ".join(part for part in (item["instruction"], item["text"]) if part)
        for item in dicts
    ]
    with_text = [index for index, text in enumerate(texts) if text is not None]
    with_image = [index for index, item in enumerate(dicts) if item["images"]]
    embeddings = np.zeros((len(dicts), model.config.text_config.projection_size), dtype=np.float32)
    for indices, embed in (
        (with_text, lambda batch: _embed_texts(model, processor, [texts[index] for index in batch])),
        (with_image, lambda batch: _embed_images(model, processor, [dicts[index]["images"][0] for index in batch])),
    ):
        for start in range(0, len(indices), batch_size):
            batch = indices[start : start + batch_size]
            features = embed(batch).float()
            embeddings[batch] += (normalize(features, dim=-1) if normalize_features else features).cpu().numpy()
    return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)


def _embed_texts(model: SiglipModel | Siglip2Model, processor: ProcessorMixin, texts: list[str]) -> torch.Tensor:
    # The towers were trained on texts padded to the full length, without a mask.
    length = model.config.text_config.max_position_embeddings
    inputs = processor(text=texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    return model.get_text_features(**inputs.to(model.device)).pooler_output


def _embed_images(model: SiglipModel | Siglip2Model, processor: ProcessorMixin, images: list) -> torch.Tensor:
    rgb_images = images_before_processor(processor, [to_rgb(image) for image in images])
    inputs = processor(images=rgb_images, return_tensors="pt")
    return model.get_image_features(**inputs.to(model.device, model.dtype)).pooler_output
