"""Whatever embeds items, behind one function: UniME, a native backbone, CLIP, or any SentenceTransformer."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from transformers import AutoConfig, CLIPProcessor
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from ..checkpoint import load_model
from ..configuration_unime import UniMEConfig
from ..processing_unime import Item, as_item
from .clip import CLIPEmbedder
from .tasks import Encode


def load_encode(path: str) -> Encode:
    """Load a model in float32 and return what embeds items with it.

    Args:
        path (`str`): Folder or Hub id of a UniME checkpoint, a native image-text backbone, a CLIP, or else of a
            SentenceTransformer; one whose parts lie in subfolders only is a SentenceTransformer too.
    """
    alone = Path(path, "modules.json").exists() and not Path(path, "config.json").exists()
    kind = "" if alone else AutoConfig.from_pretrained(path).model_type
    if kind == "clip":
        return partial(CLIPEmbedder.from_pretrained(path).encode, processor=CLIPProcessor.from_pretrained(path))
    if kind == UniMEConfig.model_type or kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        model, processor = load_model(path, dtype="float32")
        return partial(model.encode, processor=processor)
    return sentence_transformer(path)


def sentence_transformer(path: str) -> Encode:
    """Load a SentenceTransformer; an item's instruction becomes its prompt."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(path)

    def encode(items: Sequence[Item]) -> np.ndarray:
        spelt = [as_item(item) for item in items]
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
    picture = item["images"][0] if len(item["images"]) == 1 else item["images"]
    return picture if item["text"] is None else {"image": picture, "text": item["text"]}
