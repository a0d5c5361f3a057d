"""CLIP as a peer: the same items, trainer and metrics, with two towers and a 77-token text limit.

An item with text and image becomes the normalised sum of both normalised features (score fusion, UniIR's CLIP_SF and
the CLIP of MMEB's tables). An instruction stands before the text, as in MMEB, and shares the 77 tokens with it.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

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

from ...processing_unime import Item, to_item_dict, to_rgb


@dataclass
class CLIPEmbedderOutput(ModelOutput):
    """Output of [`CLIPEmbedder`].

    Args:
        embeddings (`Tensor` of shape `(batch, projection_dim)`, float32): Unit vectors.
    """

    embeddings: Tensor | None = None


class CLIPEmbedder(CLIPModel):
    """A `CLIPModel` whose forward gives one embedding per item; loads and saves any CLIP checkpoint as it is."""

    def __init__(self, config: CLIPConfig):
        super().__init__(config)
        self.logit_scale.requires_grad_(False)  # the loss brings its own temperature

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
    ) -> CLIPEmbedderOutput:
        """Embed a micro-batch whose items all have a text, all an image, or all both.

        Args:
            input_ids, attention_mask (`Tensor` of shape `(batch, tokens)`, *optional*): Texts, padded on the right.
            pixel_values (`Tensor` of shape `(batch, 3, height, width)`, *optional*): One image per item.
        """
        features = []
        if input_ids is not None:
            hidden = self.text_model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            # The last attended token is the end of the text. `CLIPTextModel` itself looks for the greatest token id
            # where a configuration says `eos_token_id` 2, which holds for OpenAI's vocabulary only.
            end = attention_mask.sum(dim=1) - 1
            pooled = hidden[torch.arange(len(hidden), device=hidden.device), end]
            features.append(normalize(self.text_projection(pooled).float(), dim=-1))
        if pixel_values is not None:
            pooled = self.vision_model(pixel_values=pixel_values.to(self.dtype)).pooler_output
            features.append(normalize(self.visual_projection(pooled).float(), dim=-1))
        return CLIPEmbedderOutput(embeddings=normalize(sum(features), dim=-1))

    @torch.no_grad()
    def encode(
        self, items: Sequence[Item], processor: CLIPProcessor, batch_size: int = 64, show_progress_bar: bool = False
    ) -> np.ndarray:
        """Embed items.

        Args:
            items (`list`): Texts, images, or dicts with `text`, `image` and `instruction`.
            processor (`CLIPProcessor`): Saved beside the model.
            batch_size (`int`): Items per micro-batch.
            show_progress_bar (`bool`): Show progress.

        Returns:
            `np.ndarray` of shape `(len(items), projection_dim)`, float32: Unit vectors in the order of `items`.
        """
        embeddings = np.zeros((len(items), self.config.projection_dim), dtype=np.float32)
        training = self.training
        self.eval()
        with tqdm(total=len(items), desc="Embedding", unit="item", disable=not show_progress_bar) as progress:
            window = 4096  # prepared at a time, so that pixels of a large set never lie in memory at once
            for start in range(0, len(items), window):
                for indices, batch in clip_micro_batches(processor, items[start : start + window], batch_size):
                    output = self(**batch.to(self.device))
                    embeddings[[start + i for i in indices]] = output.embeddings.cpu().numpy()
                    progress.update(len(indices))
        self.train(training)
        return embeddings


def clip_micro_batches(
    processor: CLIPProcessor, items: Sequence[Item], batch_size: int = 64
) -> list[tuple[list[int], BatchFeature]]:
    """Sort items by (parts, tokens) and cut them into micro-batches of one kind; the `prepare` of the collators.

    Args:
        processor (`CLIPProcessor`): Any fast tokenizer with an end-of-sequence token, and an image processor. Texts
            are cut at the tokenizer's `model_max_length`, as CLIP does: what comes later is not seen.
        items (`list`): The items, with one image each at most.
        batch_size (`int`): Items per micro-batch.

    Returns:
        `list[tuple[list[int], BatchFeature]]`: Positions of the items and tensors of the model, per micro-batch.
    """
    spelt = []
    for position, item in enumerate(items):
        try:
            spelt.append(to_item_dict(item))
        except ValueError as error:
            raise ValueError(f"item {position}: {error}") from None
        pictures = len(spelt[-1]["images"])
        if pictures > 1:
            raise ValueError(f"item {position} has {pictures} images, but CLIP takes one: give it one, or join them")
    texts = [" ".join(part for part in (item["instruction"], item["text"]) if part) for item in spelt]
    silent = [bool(item["images"]) and not text for item, text in zip(spelt, texts, strict=True)]  # an image alone
    token_lists = _token_lists(processor.tokenizer, texts) if texts else []
    tokens = [[] if quiet else ids for quiet, ids in zip(silent, token_lists, strict=True)]

    def kind(position: int) -> tuple[bool, bool]:
        return bool(tokens[position]), bool(spelt[position]["images"])

    batches = []
    for some in sorted({kind(position) for position in range(len(spelt))}):
        positions = [position for position in range(len(spelt)) if kind(position) == some]
        positions.sort(key=lambda position: len(tokens[position]))
        for start in range(0, len(positions), batch_size):
            group = positions[start : start + batch_size]
            images = [spelt[position]["images"] for position in group]
            batches.append((group, _tensors(processor, [tokens[position] for position in group], images)))
    return batches


def tiny_clip(
    tokenizer: PreTrainedTokenizerBase,
    image_size: int = 96,
    patch_size: int = 32,
    width: int = 192,
    layers: int = 4,
    heads: int = 4,
    dimensions: int = 192,
    micro_batch_tokens: int = 77,
) -> tuple[CLIPEmbedder, CLIPProcessor]:
    """Make a small random CLIP, both towers of the same shape, and its processor.

    The defaults have 4.7 M parameters with a vocabulary of 4,096 tokens, as many as the tiny backbone.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): With an end-of-sequence token; a copy is kept, cut at `micro_batch_tokens`.
        image_size, patch_size (`int`): In pixels, of square images.
        width, layers, heads (`int`): Of each tower; the hidden layers of its MLPs are 3.5 times as wide.
        dimensions (`int`): Of the embedding.
        max_tokens (`int`): CLIP's limit of 77.
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
            "max_position_embeddings": micro_batch_tokens,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={**tower, "image_size": image_size, "patch_size": patch_size},
        projection_dim=dimensions,
    )
    size = {"height": image_size, "width": image_size}
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.model_max_length = micro_batch_tokens
    return CLIPEmbedder(config), CLIPProcessor(CLIPImageProcessor(size=size, crop_size=size), tokenizer)


def _token_lists(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Tokenise as CLIP does, start and end of text included; control tokens in a text are read as text."""
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    room = tokenizer.model_max_length - len(start) - 1
    options = {"add_special_tokens": False, "split_special_tokens": True, "truncation": True, "max_length": room}
    return [[*start, *ids, tokenizer.eos_token_id] for ids in tokenizer(texts, **options)["input_ids"]]


def _tensors(processor: CLIPProcessor, tokens: list[list[int]], images: list[list[Image.Image]]) -> BatchFeature:
    tensors = BatchFeature()
    if tokens[0]:
        rows = [torch.tensor(ids) for ids in tokens]
        tensors["input_ids"] = pad_sequence(rows, batch_first=True, padding_value=processor.tokenizer.eos_token_id)
        tensors["attention_mask"] = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    if images[0]:
        pictures = [to_rgb(image) for (image,) in images]
        tensors["pixel_values"] = processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
    return tensors


__all__ = ["CLIPEmbedder", "CLIPEmbedderOutput", "clip_micro_batches", "tiny_clip"]
