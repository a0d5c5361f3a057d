"""One loader for every encoder: UniME, a native backbone, CLIP, SigLIP, or any SentenceTransformer."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel, AutoProcessor, CLIPProcessor, ProcessorMixin
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from ...batching_unime import takes_videos
from ...checkpoint import load_model
from ...checkpoint_safety import forbid_remote_code, read_config
from ...configuration_unime import UniMEConfig
from ...extras import require_extra
from ...image_size import ImageSize
from ...modeling_unime import EMBEDDER_TYPES, require_all_weights
from ...processing_unime import Item, frames_as_images, is_interleaved, to_item_dict, to_messages
from ..tasks import Encode
from .clip import FUSIONS, CLIPEmbedder
from .siglip import siglip_encode


VIDEOS = ("auto", "video", "frames")  # by the video processor if there is one, in any case, or never


@dataclass(frozen=True)
class Encoder:
    """A loaded model.

    Args:
        encode (`Encode`): Takes items, returns `(N, D)` float32 unit vectors.
        processor (`ProcessorMixin`, *optional*): Processor of a transformers model.
        two_towers (`bool`, *optional*, defaults to `False`): Whether it is a CLIP or a SigLIP.
        takes_videos (`bool`, *optional*, defaults to `False`): Whether it reads videos as such; otherwise it gets
            their frames as separate images.
    """

    encode: Encode
    processor: ProcessorMixin | None = None
    two_towers: bool = False
    takes_videos: bool = False

    def with_videos(self, videos: str) -> "Encoder":
        """Return an encoder that reads videos as one of `VIDEOS` says.

        Raises:
            ValueError: It is another word, or the model is to read videos but takes none.
        """
        if videos not in VIDEOS:
            raise ValueError(f"unknown videos {videos!r}: choose from {', '.join(VIDEOS)}")
        if videos == "video" and not self.takes_videos:
            raise ValueError(
                "videos is 'video', but this model has no video processor, or its chat template no place for a video: "
                "leave videos out, or pass frames"
            )
        if videos == "frames" or not self.takes_videos:
            encode = self.encode
            return replace(
                self, encode=lambda items: encode([frames_as_images(item) for item in items]), takes_videos=False
            )
        return self


def load_encoder(
    path: str,
    dtype: str = "float32",
    device: str | torch.device = "cpu",
    max_length: int | None = None,
    micro_batch_tokens: int | None = None,
    image_size: ImageSize | None = None,
    preset: str | None = None,
    fusion: str = FUSIONS[0],
) -> Encoder:
    """Load an encoder.

    Args:
        path (`str`): Folder or Hub id of a UniME checkpoint, a native image-text backbone, a CLIP, a SigLIP, or a
            SentenceTransformer.
        dtype (`str`, *optional*, defaults to `"float32"`): Data type of the weights.
        device (`str` or `torch.device`, *optional*, defaults to `"cpu"`): Device of the model.
        max_length (`int`, *optional*): Maximum number of tokens per item; only for UniME and native backbones.
        micro_batch_tokens (`int`, *optional*, defaults to the model's `default_micro_batch_tokens`): Token budget of a
            micro-batch; only for UniME and native backbones.
        image_size (`int`, `dict` or `str`, *optional*, defaults to the model's own): The size at which the model reads
            images, see [`set_image_size`]; only for UniME and native backbones.
        preset (`str`, *optional*, defaults to the preset of the id): How a published embedder is run, see
            [`load_model`].
        fusion (`str`, *optional*, defaults to `"normalized"`): How a CLIP or a SigLIP joins the features of text and
            image, one of `clip.FUSIONS`.

    Raises:
        FileNotFoundError: There is no such model or preset.
        ValueError: The fusion is unknown, the weights are a pickle, or the model needs code of its own.
    """
    if fusion not in FUSIONS:
        raise ValueError(f"unknown fusion {fusion!r}: choose from {', '.join(FUSIONS)}")
    normalize_features = fusion == FUSIONS[0]
    # A SentenceTransformer may have all its parts in subfolders.
    has_config = Path(path, "config.json").exists() or not Path(path, "modules.json").exists()
    config = read_config(path) if has_config else None
    model_type = "" if config is None else config.model_type
    if model_type == "clip":
        with forbid_remote_code(path):
            processor = CLIPProcessor.from_pretrained(path, trust_remote_code=False)
            model, report = CLIPEmbedder.from_pretrained(
                path, use_safetensors=True, output_loading_info=True, dtype=dtype
            )
        require_all_weights(path, report["missing_keys"])
        encode = partial(model.to(device).encode, processor=processor, normalize_features=normalize_features)
        return Encoder(encode, processor, two_towers=True)
    if model_type in ("siglip", "siglip2"):
        with forbid_remote_code(path):
            processor = AutoProcessor.from_pretrained(path, trust_remote_code=False)
            model, report = AutoModel.from_pretrained(
                path, use_safetensors=True, output_loading_info=True, dtype=dtype
            )
        require_all_weights(path, report["missing_keys"])
        encode = partial(
            siglip_encode,
            model=model.to(device).eval(),
            processor=processor,
            normalize_features=normalize_features,
        )
        return Encoder(encode, processor, two_towers=True)
    is_backbone = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING or model_type in EMBEDDER_TYPES
    if model_type == UniMEConfig.model_type or is_backbone:
        model, processor = load_model(path, image_size, preset, dtype=dtype)
        encode = partial(
            model.to(device).encode, processor=processor, max_length=max_length, micro_batch_tokens=micro_batch_tokens
        )
        return Encoder(encode, processor, takes_videos=takes_videos(processor))
    return Encoder(_load_sentence_transformer(path, dtype, device))


def _load_sentence_transformer(path: str, dtype: str, device: str | torch.device) -> Encode:
    """Load a SentenceTransformer; the instruction of an item becomes its prompt."""
    require_extra("sentence-transformers", "sentence_transformers")

    from sentence_transformers import SentenceTransformer

    with forbid_remote_code(path):
        model = SentenceTransformer(path, device=str(device), model_kwargs={"dtype": dtype, "use_safetensors": True})

    def encode(items: Sequence[Item]) -> np.ndarray:
        dicts = [to_item_dict(item) for item in items]
        embeddings = np.zeros((len(items), model.get_sentence_embedding_dimension()), dtype=np.float32)
        for instruction in dict.fromkeys(item["instruction"] for item in dicts):
            indices = [index for index, item in enumerate(dicts) if item["instruction"] == instruction]
            # sentence-transformers does not mix conversations with other inputs.
            ordered = any(is_interleaved(dicts[index]) for index in indices)
            inputs = [
                to_messages({**dicts[index], "instruction": None}) if ordered else _to_input(dicts[index])
                for index in indices
            ]
            prompt = f"{instruction} " if instruction else None
            embeddings[indices] = model.encode(
                inputs, prompt=prompt, normalize_embeddings=True, show_progress_bar=False
            )
        return embeddings

    return encode


def _to_input(item: dict) -> object:
    """Convert an item for sentence-transformers; a text alone stays a string, so that text models accept it."""
    if not item["images"]:
        return item["text"]
    image = item["images"][0] if len(item["images"]) == 1 else item["images"]
    return image if item["text"] is None else {"image": image, "text": item["text"]}
