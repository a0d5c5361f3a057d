"""Whatever embeds items, behind one function: UniME, a native backbone, CLIP, SigLIP, or any SentenceTransformer."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel, AutoProcessor, CLIPProcessor, ProcessorMixin
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from ...checkpoint import load_model
from ...checkpoint_safety import forbid_remote_code, read_config
from ...configuration_unime import UniMEConfig
from ...processing_unime import Item, to_item_dict
from ..tasks import Encode
from .clip import CLIPEmbedder
from .siglip import siglip_encode


@dataclass(frozen=True)
class Encoder:
    """A loaded model: what embeds items with it, and its processor where it has one of transformers'."""

    encode: Encode
    processor: ProcessorMixin | None = None


def load_encoder(
    path: str,
    dtype: str = "float32",
    device: str | torch.device = "cpu",
    max_length: int | None = None,
    micro_batch_tokens: int | None = None,
) -> Encoder:
    """Load a model.

    Args:
        path (`str`): Folder or Hub id of a UniME checkpoint, a native image-text backbone, a CLIP, a SigLIP, or else
            of a SentenceTransformer; one whose parts lie in subfolders only is a SentenceTransformer too.
        dtype (`str`, *optional*, defaults to `"float32"`): Type of its weights.
        device (`str` or `torch.device`, *optional*, defaults to `"cpu"`): Where it computes.
        max_length (`int`, *optional*): UniME: most tokens of one item. Others have limits of their own.
        max_tokens (`int`, *optional*, defaults to the model's `default_micro_batch_tokens`): UniME: of a micro-batch.

    Raises:
        ValueError: Its weights are a pickle, or it wants to run code of its own.
    """
    alone = Path(path, "modules.json").exists() and not Path(path, "config.json").exists()
    kind = "" if alone else read_config(path).model_type
    if kind == "clip":
        with forbid_remote_code(path):
            processor = CLIPProcessor.from_pretrained(path, trust_remote_code=False)
            model = CLIPEmbedder.from_pretrained(path, use_safetensors=True, dtype=dtype).to(device)
        return Encoder(partial(model.encode, processor=processor), processor)
    if kind in ("siglip", "siglip2"):
        with forbid_remote_code(path):
            processor = AutoProcessor.from_pretrained(path, trust_remote_code=False)
            model = AutoModel.from_pretrained(path, use_safetensors=True, dtype=dtype).to(device).eval()
        return Encoder(partial(siglip_encode, model=model, processor=processor), processor)
    if kind == UniMEConfig.model_type or kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        model, processor = load_model(path, dtype=dtype)
        encode = partial(
            model.to(device).encode, processor=processor, max_length=max_length, micro_batch_tokens=micro_batch_tokens
        )
        return Encoder(encode, processor)
    return Encoder(sentence_transformer(path, dtype, device))


def sentence_transformer(path: str, dtype: str = "float32", device: str | torch.device = "cpu") -> Encode:
    """Load a SentenceTransformer; an item's instruction becomes its prompt."""
    from sentence_transformers import SentenceTransformer

    with forbid_remote_code(path):
        model = SentenceTransformer(path, device=str(device), model_kwargs={"dtype": dtype, "use_safetensors": True})

    def encode(items: Sequence[Item]) -> np.ndarray:
        spelt = [to_item_dict(item) for item in items]
        embeddings = np.zeros((len(items), model.get_sentence_embedding_dimension()), dtype=np.float32)
        for instruction in dict.fromkeys(item["instruction"] for item in spelt):
            own = [position for position, item in enumerate(spelt) if item["instruction"] == instruction]
            inputs = [_input(spelt[position]) for position in own]
            prompt = f"{instruction} " if instruction else None
            embeddings[own] = model.encode(inputs, prompt=prompt, normalize_embeddings=True, show_progress_bar=False)
        return embeddings

    return encode


def _input(item: dict) -> object:
    """An item as sentence-transformers takes it: a text alone as it is, so that text models take it too."""
    if not item["images"]:
        return item["text"]
    image = item["images"][0] if len(item["images"]) == 1 else item["images"]
    return image if item["text"] is None else {"image": image, "text": item["text"]}
