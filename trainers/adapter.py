"""LoRA adapters: merge them for release."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import PeftModel
from peft.tuners.lora import LoraLayer
from PIL import Image
from transformers import AutoProcessor, BitsAndBytesConfig, PreTrainedModel
from transformers.integrations import deepspeed as hf_deepspeed
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.utils import PROCESSOR_NAME

from ..adapters import load_adapter, take_trained_dimensions
from ..checkpoint import load_model, redact_home, save_checkpoint, share_image_grids
from ..checkpoint_safety import TRAINING_RECORD, forbid_remote_code
from ..json_output import to_json
from ..processing_unime import Item
from ..storage.atomic_files import atomic_write


logger = logging.getLogger(__name__)

MIN_MERGE_COSINE = 0.999  # between embeddings before and after merging, which rounds half-precision weights once more


def make_publishable(adapter: str | Path) -> None:
    """Remove from a saved adapter what concerns this machine only.

    `Trainer` writes its arguments there, with the Hub token and as a pickle, and PEFT the path of the base model.

    Args:
        adapter (`str` or `Path`): Folder of the adapter.
    """
    Path(adapter, TRAINING_ARGS_NAME).unlink(missing_ok=True)
    for name in ("adapter_config.json", "README.md"):
        file = Path(adapter, name)
        file.write_text(redact_home(file.read_text()))


def merge_adapter(model: PeftModel) -> PreTrainedModel:
    """Return the base model with the adapter added to its weights, ready to be saved as a checkpoint.

    Args:
        model (`PeftModel`): The model with its adapter.
    """
    return model.merge_and_unload()


@contextmanager
def without_zero3() -> Iterator[None]:
    """Load models inside this context in this process alone.

    While ZeRO-3 trains, transformers would shard them over all processes, which must then load them together.
    """
    training_config = hf_deepspeed._hf_deepspeed_config_weak_ref
    hf_deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        hf_deepspeed._hf_deepspeed_config_weak_ref = training_config


@without_zero3()
def merge_checkpoint(
    base: str,
    adapter: str | Path,
    directory: str | Path,
    quantization_config: BitsAndBytesConfig | None = None,
    dequantize: bool = False,
    **kwargs: Any,
) -> Path:
    """Merge a trained adapter into the model it was trained on, and write the checkpoint.

    An adapter trained over 4-bit weights is merged into the full weights by default. The merged model then differs
    from the trained one by the rounding of the 4-bit weights; `dequantize` keeps this rounding. The least cosine
    between the embeddings of the trained and of the merged model, over some texts and images, is logged and written
    into the training record.

    Args:
        base (`str`): Folder or Hub id that the adapter was trained on: a backbone or a UniME checkpoint.
        adapter (`str` or `Path`): Folder of the adapter. A processor saved there, with the image size of the training,
            replaces that of the base.
        directory (`str` or `Path`): Where to write the checkpoint.
        quantization_config (`BitsAndBytesConfig`, *optional*): How the base was quantized during training.
        dequantize (`bool`, *optional*, defaults to `False`): Whether to merge into the dequantized base, which is what
            the adapter was trained on, instead of the full weights. Needs `quantization_config`.
        kwargs: Passed to [`load_model`] (`dtype`, ...).

    Returns:
        `Path`: The directory.

    Raises:
        ValueError: The adapter does not fit the base (see [`load_adapter`]) or changes no weight, merging changes the
            embeddings of a model that was not quantized, or `dequantize` lacks a `quantization_config`.
    """
    if quantization_config is not None:
        model, processor = load_model(base, quantization_config=quantization_config, device_map="cpu", **kwargs)
    else:
        model, processor = load_model(base, **kwargs)
    if Path(adapter, PROCESSOR_NAME).is_file():
        with forbid_remote_code(adapter):
            processor = AutoProcessor.from_pretrained(adapter, trust_remote_code=False)
    quantizer = getattr(model, "hf_quantizer", None)
    if dequantize and quantizer is None:
        raise ValueError("there is nothing to dequantize: pass the quantization_config that the base was trained with")
    share_image_grids(processor, model)
    adapted = load_adapter(model, adapter)
    if not changes_weights(adapted):
        raise ValueError(
            f"the adapter in {adapter} changes no weight, so that merging would return {base}: train it with a "
            "learning rate above 0 (with load_best_model_at_end, no evaluation was better than the untrained model's)"
        )
    items = _check_items()
    trained = adapted.get_base_model().encode(items, processor)
    if quantizer is not None:
        dequantize = dequantize or quantizer.pre_quantized  # there are no full weights
        model = adapted.unload().dequantize() if dequantize else load_model(base, **kwargs)[0]
        share_image_grids(processor, model)
        adapted = load_adapter(model, adapter)
    merged = merge_adapter(adapted)
    cosine = float((trained * merged.encode(items, processor)).sum(axis=1).min())
    if quantizer is None and not cosine > MIN_MERGE_COSINE:
        raise ValueError(
            f"merging {adapter} into {base} changed the embeddings (cosine {cosine:.4f}): merge it in float32"
        )
    base_weights = "dequantized" if dequantize else "full"
    logger.warning(
        "merged %s into the %s weights of %s: least cosine %.4f between trained and merged embeddings of %d items%s",
        adapter,
        base_weights,
        base,
        cosine,
        len(items),
        "; the dequantized weights are those it was trained on" if quantizer is not None and not dequantize else "",
    )
    take_trained_dimensions(merged, adapter)
    output = save_checkpoint(merged, processor, directory)
    record = Path(adapter, TRAINING_RECORD)
    if record.is_file():
        *before, stage = json.loads(record.read_text())
        stage["merge"] = {"base weights": base_weights, "least cosine to trained": round(cosine, 6)}
        with atomic_write(output / TRAINING_RECORD) as part:
            part.write_text(to_json([*before, stage], indent=1) + "\n")
    return output


def changes_weights(model: PeftModel) -> bool:
    """Return whether an adapter changes any weight: a new LoRA adapter does not.

    Args:
        model (`PeftModel`): The model with its adapter.
    """
    if model.active_peft_config.modules_to_save:  # weights that replace those of the base
        return True
    layers = (module for module in model.modules() if isinstance(module, LoraLayer))
    return any(bool(layer.get_delta_weight(model.active_adapter).any()) for layer in layers)


def _check_items() -> list[Item]:
    texts = ["a text to check the merged model by", "another one", "Which of two merged models is closer?"]
    images = [Image.effect_mandelbrot((96, 64), (-2, -1, 1, 1), 50), Image.radial_gradient("L").resize((64, 64))]
    images = [image.convert("RGB") for image in images]
    # No text with an image: some published embedders have no prompt for it.
    return [*texts, *({"image": image} for image in images)]
