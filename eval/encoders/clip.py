"""CLIP as a baseline for the same items, trainer and metrics, with two towers and a 77-token text limit.

The embedding of an item with text and image is the normalized sum of both normalized features (score fusion: UniIR's
CLIP_SF). An instruction is prepended to the text, as in MMEB, and shares its 77 tokens. Two towers know no order:
texts around an image are joined.

MMEB's CLIP rows were measured in other ways, by VLM2Vec's code (branch v1, `evaluation/eval_clip.py`), which `FUSIONS`
names: "mmeb-sum" (its `multimodal`) adds the features as they are, without normalizing them first. "mmeb-sides" (its
`unimodal`) takes one side in the sets that the code lists, and the sum in the others. Which of the two a published
score has is not stated. NIGHTS, whose queries have one text for all, tells them apart: with sides it is at the level
of random guesses, as EVA-CLIP 8B's 0.2 is, unlike CLIP ViT-L's 60.4. Scores are cosines here; the code's flag
`--normalize` decides between them and dot products, and the command is not published.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm
from transformers import (
    BatchFeature,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    PreTrainedTokenizerBase,
)
from transformers.utils import ModelOutput

from ...image_input_unime import images_before_processor
from ...processing_unime import Item, to_item_dict, to_rgb
from ...windows_unime import MAX_WINDOW_PIXELS, item_pixels, windows
from ..lazy_items import LazyItems
from ..tasks import RetrievalTask, SimilarityTask


FUSIONS = ("normalized", "mmeb-sum", "mmeb-sides")
# Sets of MMEB in which "mmeb-sides" compares the text of queries with the image of candidates, and the reverse.
TEXT_TO_IMAGE = tuple("CIRR NIGHTS EDIS MSCOCO_t2i VisDial VisualNews_t2i WebQA Wiki-SS-NQ OVEN".split())
IMAGE_TO_TEXT = tuple(
    """
    MSCOCO_i2t VisualNews_i2t ImageNet-1K N24News HatefulMemes VOC2007 SUN397 Place365 ImageNet-A ImageNet-R ObjectNet
    Country211
    """.split()
)
ENCODE_WINDOW_ITEMS = 512  # whose tensors are in memory together: 310 MB at 224 pixels


@dataclass
class CLIPEmbedderOutput(ModelOutput):
    """Output of [`CLIPEmbedder`].

    Args:
        embeddings (`Tensor` of shape `(batch, projection_dim)`, float32): Unit vectors.
    """

    embeddings: Tensor | None = None


class CLIPEmbedder(CLIPModel):
    """A `CLIPModel` that returns one embedding per item; loads and saves standard CLIP checkpoints."""

    def __init__(self, config: CLIPConfig):
        super().__init__(config)
        self.logit_scale.requires_grad_(False)  # the loss has its own temperature

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        normalize_features: bool = True,
    ) -> CLIPEmbedderOutput:
        """Embed a micro-batch in which every item has a text, every item has an image, or every item has both.

        Args:
            input_ids (`Tensor` of shape `(batch, tokens)`, *optional*): Tokens, padded on the right.
            attention_mask (`Tensor` of shape `(batch, tokens)`, *optional*): 1 for tokens, 0 for padding.
            pixel_values (`Tensor` of shape `(batch, 3, height, width)`, *optional*): One image per item.
            normalize_features (`bool`, *optional*, defaults to `True`): Normalize the features of text and image
                before they are added.
        """
        features = []
        if input_ids is not None:
            hidden = self.text_model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            # The last attended token ends the text. `CLIPTextModel` itself takes the greatest token id if the
            # configuration has `eos_token_id` 2, which is correct for OpenAI's vocabulary only.
            end = cast(Tensor, attention_mask).sum(dim=1) - 1
            pooled = hidden[torch.arange(len(hidden), device=hidden.device), end]
            features.append(self.text_projection(pooled).float())
        if pixel_values is not None:
            pooled = self.vision_model(pixel_values=pixel_values.to(self.dtype)).pooler_output
            features.append(self.visual_projection(pooled).float())
        if normalize_features:
            features = [normalize(feature, dim=-1) for feature in features]
        return CLIPEmbedderOutput(embeddings=normalize(sum(features[1:], start=features[0]), dim=-1))

    @torch.no_grad()
    def encode(
        self,
        items: Sequence[Item],
        processor: CLIPProcessor,
        batch_size: int = 64,
        show_progress_bar: bool = False,
        normalize_features: bool = True,
    ) -> np.ndarray:
        """Embed items.

        Args:
            items (`Sequence[Item]`): Texts, images, or dicts with `text`, `image` and `instruction`.
            processor (`CLIPProcessor`): The processor saved with the model.
            batch_size (`int`, *optional*, defaults to 64): Items per micro-batch.
            show_progress_bar (`bool`, *optional*, defaults to `False`): Show a progress bar.
            normalize_features (`bool`, *optional*, defaults to `True`): Normalize the features of text and image
                before they are added.

        Returns:
            `np.ndarray` of shape `(len(items), projection_dim)`, float32: Unit vectors in the order of `items`.
        """
        embeddings = np.zeros((len(items), self.config.projection_dim), dtype=np.float32)
        training = self.training
        self.eval()
        with tqdm(total=len(items), desc="Embedding", unit="item", disable=not show_progress_bar) as progress:
            start = 0
            for window in windows(items, item_pixels, ENCODE_WINDOW_ITEMS, MAX_WINDOW_PIXELS):
                for indices, batch in clip_micro_batches(processor, window, batch_size, start):
                    output = self(**batch.to(self.device), normalize_features=normalize_features)
                    embeddings[[start + index for index in indices]] = output.embeddings.cpu().numpy()
                    progress.update(len(indices))
                start += len(window)
        self.train(training)
        return embeddings


def clip_micro_batches(
    processor: CLIPProcessor, items: Sequence[Item], batch_size: int = 64, first_index: int = 0
) -> list[tuple[list[int], BatchFeature]]:
    """Sort items by modality and length and split them into micro-batches of one modality.

    This is the `prepare` function of the collators for CLIP.

    Args:
        processor (`CLIPProcessor`): Any fast tokenizer with an end-of-sequence token, and an image processor. Texts
            are truncated to the tokenizer's `model_max_length`, as in CLIP.
        items (`Sequence[Item]`): The items, with at most one image each.
        batch_size (`int`, *optional*, defaults to 64): Items per micro-batch.
        first_index (`int`, *optional*, defaults to 0): Number of the first item in error messages.

    Returns:
        `list[tuple[list[int], BatchFeature]]`: Indices of the items and inputs of the model, per micro-batch.

    Raises:
        ValueError: An item is invalid or has several images; the message names it.
    """
    dicts = []
    for index, item in enumerate(items, first_index):
        try:
            dicts.append(to_item_dict(item))
        except ValueError as error:
            raise ValueError(f"item {index}: {error}") from None
        num_images = len(dicts[-1]["images"])
        if num_images > 1:
            raise ValueError(f"item {index} has {num_images} images, but CLIP takes one; give one, or join them")
    texts = [" ".join(part for part in (item["instruction"], item["text"]) if part) for item in dicts]
    token_lists = _token_lists(processor.tokenizer, texts) if texts else []
    tokens = [
        [] if item["images"] and not text else ids for item, text, ids in zip(dicts, texts, token_lists, strict=True)
    ]

    def modality(index: int) -> tuple[bool, bool]:
        return bool(tokens[index]), bool(dicts[index]["images"])

    batches = []
    for wanted in sorted({modality(index) for index in range(len(dicts))}):
        indices = [index for index in range(len(dicts)) if modality(index) == wanted]
        indices.sort(key=lambda index: len(tokens[index]))
        for start in range(0, len(indices), batch_size):
            batch = indices[start : start + batch_size]
            images = [dicts[index]["images"] for index in batch]
            batches.append((batch, _tensors(processor, [tokens[index] for index in batch], images)))
    return batches


def with_mmeb_sides(tasks: Sequence[RetrievalTask | SimilarityTask]) -> list[RetrievalTask | SimilarityTask]:
    """Return tasks in which the items of MMEB's listed sets have one side, for the fusion "mmeb-sides".

    Args:
        tasks (`Sequence`): Tasks; those of other names stay as they are.
    """
    return [_one_side(task) if isinstance(task, RetrievalTask) else task for task in tasks]


def _one_side(task: RetrievalTask) -> RetrievalTask:
    if task.name not in (*TEXT_TO_IMAGE, *IMAGE_TO_TEXT):
        return task

    def text_of(item: dict[str, Any]) -> dict[str, Any]:
        return {"text": item.get("text") or "", "instruction": item.get("instruction")}

    def image_of(item: dict[str, Any]) -> dict[str, Any]:
        return {"image": item["image"]}

    def only(items: Sequence[Item], side: Callable[[dict[str, Any]], dict[str, Any]]) -> LazyItems:
        lazy = cast(LazyItems, items)
        return LazyItems([side(item) for item in lazy.stored], lazy.read, lazy.identity)

    query, candidate = (text_of, image_of) if task.name in TEXT_TO_IMAGE else (image_of, text_of)
    return replace(task, queries=only(task.queries, query), candidates=only(task.candidates, candidate))


def tiny_clip(
    tokenizer: PreTrainedTokenizerBase,
    image_size: int = 96,
    patch_size: int = 32,
    width: int = 192,
    layers: int = 4,
    heads: int = 4,
    dimensions: int = 192,
    max_length: int = 77,
) -> tuple[CLIPEmbedder, CLIPProcessor]:
    """Create a tiny random CLIP with two towers of the same shape, and its processor.

    With a vocabulary of 4,096 tokens the defaults give 4.7 M parameters, as many as the tiny backbone.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): A tokenizer with an end-of-sequence token; a copy of it truncates to
            `max_length`.
        image_size (`int`, *optional*, defaults to 96): Height and width of images in pixels.
        patch_size (`int`, *optional*, defaults to 32): Height and width of patches in pixels.
        width (`int`, *optional*, defaults to 192): Hidden size of each tower; its MLPs are 3.5 times as wide.
        layers (`int`, *optional*, defaults to 4): Layers of each tower.
        heads (`int`, *optional*, defaults to 4): Attention heads of each tower.
        dimensions (`int`, *optional*, defaults to 192): Embedding dimension.
        max_length (`int`, *optional*, defaults to 77): Maximum number of text tokens, start and end included.
    """
    tower = {
        "hidden_size": width,
        "intermediate_size": 7 * width // 2,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "projection_dim": dimensions,
    }
    config = CLIPConfig(
        text_config={
            **tower,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": max_length,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={**tower, "image_size": image_size, "patch_size": patch_size},
        projection_dim=dimensions,
    )
    size = {"height": image_size, "width": image_size}
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.model_max_length = max_length
    return CLIPEmbedder(config), CLIPProcessor(CLIPImageProcessor(size=size, crop_size=size), tokenizer)


def _token_lists(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Tokenize as CLIP does, with start and end of text; control tokens in a text are tokenized as plain text."""
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    max_text_tokens = tokenizer.model_max_length - len(start) - 1
    token_lists = tokenizer(
        texts, add_special_tokens=False, split_special_tokens=True, truncation=True, max_length=max_text_tokens
    )["input_ids"]
    return [[*start, *ids, tokenizer.eos_token_id] for ids in token_lists]


def _tensors(processor: CLIPProcessor, tokens: list[list[int]], images: list[list[Image.Image]]) -> BatchFeature:
    tensors = BatchFeature()
    if tokens[0]:
        rows = [torch.tensor(ids) for ids in tokens]
        tensors["input_ids"] = pad_sequence(rows, batch_first=True, padding_value=processor.tokenizer.eos_token_id)
        tensors["attention_mask"] = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    if images[0]:
        rgb_images = images_before_processor(processor, [to_rgb(image) for (image,) in images])
        tensors["pixel_values"] = processor.image_processor(rgb_images, return_tensors="pt")["pixel_values"]
    return tensors
