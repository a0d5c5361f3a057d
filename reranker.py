"""A reranker: an image-text model that says how well candidates meet a query, or which of them meets it best."""

from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin

from .checkpoint_safety import check_integrity, forbid_remote_code, give_weights_the_umask
from .image_size import ImageSize, set_image_size
from .modeling_unime import require_all_weights


def load_reranker(
    path: str, image_size: ImageSize | None = None, **kwargs: Any
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Load a reranker, or any image-text model with a language-model head, and its processor.

    Args:
        path (`str`): Folder or Hub id of the model.
        image_size (`int`, `dict` or `str`, *optional*): The size at which the model reads images, see
            [`set_image_size`]. Defaults to the one that was saved with it.
        kwargs: Passed to `from_pretrained` (`dtype`, `device_map`, `attn_implementation`, ...).

    Returns:
        `tuple[PreTrainedModel, ProcessorMixin]`: The model, in evaluation mode, and its processor.

    Raises:
        ValueError: It is no image-text model of transformers, its weights are a pickle, incomplete or damaged, or it
            requires code of its own.
    """
    check_integrity(path)
    options = {"trust_remote_code": False}
    with forbid_remote_code(path):
        model, report = AutoModelForImageTextToText.from_pretrained(
            path, use_safetensors=True, output_loading_info=True, **options, **kwargs
        )
        processor = AutoProcessor.from_pretrained(path, **options)
    require_all_weights(path, report["missing_keys"])
    set_image_size(processor, image_size)
    return model.eval(), processor


def save_reranker(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    directory: str | Path,
    state_dict: dict[str, Tensor] | None = None,
) -> None:
    """Save a model and its processor in the form of the backbone, which every tool for it loads.

    Args:
        model (`PreTrainedModel`): The model, with adapters merged.
        processor (`ProcessorMixin`): Its processor.
        directory (`str` or `Path`): Folder to write to.
        state_dict (`dict`, *optional*, defaults to the model's own): Weights to save, for a sharded model.
    """
    model.save_pretrained(directory, state_dict=state_dict)
    processor.save_pretrained(directory)
    give_weights_the_umask(directory)


__all__ = ["load_reranker", "save_reranker"]
