"""Four functions that embed with one checkpoint: ours, sentence-transformers, plain batches, the published snippet.

All of them use the same rendered prompts, in float32, on the same device.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from items import Items
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForImageTextToText, BatchFeature, ProcessorMixin

from unime import UniMEModel, load_model
from unime.processing_unime import to_item_dict, to_messages


# Takes items and their common instruction or `None`; returns unit vectors `(items, dimensions)`.
Encode = Callable[[Items, str | None], np.ndarray]
BATCH_SIZE = 32  # default of sentence-transformers


def unime(model: UniMEModel, processor: ProcessorMixin) -> Encode:
    """Return `UniMEModel.encode`."""

    def encode(items: Items, instruction: str | None) -> np.ndarray:
        return model.encode(add_instruction(items, instruction), processor)

    return encode


def sentence_transformer(folder: Path, device: str) -> Encode:
    """Return `SentenceTransformer.encode` with its defaults; the instruction is its prompt."""
    model = SentenceTransformer(
        str(folder), trust_remote_code=True, device=device, model_kwargs={"dtype": torch.float32}
    )

    def encode(items: Items, instruction: str | None) -> np.ndarray:
        prompt = f"{instruction} " if instruction else None
        return model.encode(items, prompt=prompt, batch_size=BATCH_SIZE, show_progress_bar=False)

    return encode


def plain_batches(model: UniMEModel, processor: ProcessorMixin) -> Encode:
    """Return a loop over batches in the order of the items, as in the examples of transformers."""

    @torch.no_grad()
    def encode(items: Items, instruction: str | None) -> np.ndarray:
        items = add_instruction(items, instruction)
        batches = (items[start : start + BATCH_SIZE] for start in range(0, len(items), BATCH_SIZE))
        embeddings = [model(**tensors(processor, batch).to(model.device)).embeddings for batch in batches]
        return torch.cat(embeddings).cpu().numpy()

    return encode


def published_snippet(model: UniMEModel, processor: ProcessorMixin) -> Encode:
    """Return the loop of the published UniME's README: one item at a time, with LM head and all hidden states.

    The head belongs to the generative class around our backbone; its output is computed and discarded.
    """
    config = model.backbone.config
    config = type(config).from_dict(config.to_dict())  # without the attention that loading has set for all parts
    generative = AutoModelForImageTextToText.from_config(config).to(model.device).eval()
    generative.model = model.backbone

    @torch.no_grad()
    def encode(items: Items, instruction: str | None) -> np.ndarray:
        embeddings = []
        for item in add_instruction(items, instruction):
            batch = tensors(processor, [item]).to(model.device)
            output = generative(**batch, output_hidden_states=True, return_dict=True)
            embeddings.append(torch.nn.functional.normalize(output.hidden_states[-1][:, -1, :], dim=-1))
        return torch.cat(embeddings).cpu().numpy()

    return encode


def encode_functions(folder: Path, device: str) -> dict[str, Encode]:
    """Return all functions that embed with a checkpoint, by name; `"unime"` is the first."""
    model, processor = load_model(str(folder), dtype="float32")
    model = model.to(device).eval()
    return {
        "unime": unime(model, processor),
        "sentence-transformers": sentence_transformer(folder, device),
        "plain transformers": plain_batches(model, processor),
        "published snippet": published_snippet(model, processor),
    }


def add_instruction(items: Items, instruction: str | None) -> list[dict]:
    """Return the items as dictionaries with a common instruction, which may be `None`."""
    dicts = [to_item_dict(item) for item in items]
    return [{"text": item["text"], "image": item["images"] or None, "instruction": instruction} for item in dicts]


def tensors(processor: ProcessorMixin, items: list[dict]) -> BatchFeature:
    """Return the model input of one batch of items."""
    items = [to_item_dict(item) for item in items]
    texts = processor.apply_chat_template([to_messages(item) for item in items], tokenize=False)
    images = [image for item in items for image in item["images"]]
    return processor(text=texts, images=images or None, padding=True, return_tensors="pt")
