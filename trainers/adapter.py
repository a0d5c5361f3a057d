"""LoRA adapters: restrict them to a part of the model, load them strictly, merge them for release."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import PreTrainedModel
from transformers.integrations import deepspeed as hf_deepspeed
from transformers.trainer import TRAINING_ARGS_NAME

from ..checkpoint import load_model, redact_home, save_checkpoint
from ..checkpoint_safety import TRAINING_RECORD, check_integrity, forbid_remote_code


MIN_MERGE_COSINE = 0.999  # between embeddings before and after merging, which rounds half-precision weights once more


def restrict_to(peft_config: PeftConfig, prefix: str) -> PeftConfig:
    """Return a copy of an adapter configuration that excludes every module outside `prefix`.

    Args:
        peft_config ([`~peft.PeftConfig`]): The configuration, for instance with `target_modules="all-linear"`.
        prefix (`str`): Full name of the module that may have adapters inside, such as `"backbone.language_model"`.
    """
    excluded = peft_config.exclude_modules or []
    # PEFT reads a string as a regular expression of full names, a list as names or their endings.
    patterns = [excluded] if isinstance(excluded, str) else [rf"(?:.*\.)?{re.escape(name)}" for name in excluded]
    restricted = copy(peft_config)
    restricted.exclude_modules = "|".join([rf"(?!{re.escape(prefix)}\.).*", *patterns])
    return restricted


def load_adapter(model: PreTrainedModel, path: str | Path) -> PeftModel:
    """Attach a saved adapter to a model; every key must match.

    Args:
        model (`PreTrainedModel`): The model that the adapter was trained on.
        path (`str` or `Path`): Folder with `adapter_config.json` and `adapter_model.safetensors`.

    Returns:
        `PeftModel`: The model with the adapter, in evaluation mode.

    Raises:
        ValueError: Keys or shapes of the file and the model differ (PEFT would only warn, and the adapter would have
            no effect), the weights are a pickle, or a file is truncated.
    """
    check_integrity(path)
    with forbid_remote_code(path):
        adapted = get_peft_model(model, PeftConfig.from_pretrained(path))
        saved = load_file(Path(path) / "adapter_model.safetensors")
    expected = get_peft_model_state_dict(adapted)
    mismatches = {
        "missing": [key for key in expected if key not in saved],
        "unexpected": [key for key in saved if key not in expected],
        "of the wrong shape": [key for key in expected if key in saved and expected[key].shape != saved[key].shape],
    }
    if any(mismatches.values()):
        counts = "; ".join(f"{len(keys)} {kind}, such as {keys[0]}" for kind, keys in mismatches.items() if keys)
        raise ValueError(f"the adapter in {path} does not fit this model ({counts}): load the model it was trained on")
    set_peft_model_state_dict(adapted, saved)
    return adapted.eval()


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
def merge_checkpoint(base: str, adapter: str | Path, directory: str | Path, **kwargs: Any) -> Path:
    """Merge a trained adapter into the model it was trained on, and write the checkpoint.

    The base model is loaded again without quantization: an adapter trained over 4-bit weights is merged into the full
    weights.

    Args:
        base (`str`): Folder or Hub id that the adapter was trained on: a backbone or a UniME checkpoint.
        adapter (`str` or `Path`): Folder of the adapter.
        directory (`str` or `Path`): Where to write the checkpoint.
        kwargs: Passed to [`load_model`] (`dtype`, ...).

    Returns:
        `Path`: The directory.

    Raises:
        ValueError: The adapter does not fit the base (see [`load_adapter`]), or merging changes the embeddings.
    """
    model, processor = load_model(base, **kwargs)
    adapted = load_adapter(model, adapter)
    texts = ["a text to check the merged model by", "another one"]
    embeddings = adapted.get_base_model().encode(texts, processor)
    merged = merge_adapter(adapted)
    cosine = float((embeddings * merged.encode(texts, processor)).sum(axis=1).min())
    if not cosine > MIN_MERGE_COSINE:
        raise ValueError(
            f"merging {adapter} into {base} changed the embeddings (cosine {cosine:.4f}): merge it in float32"
        )
    output = save_checkpoint(merged, processor, directory)
    record = Path(adapter, TRAINING_RECORD)
    if record.is_file():
        shutil.copyfile(record, output / TRAINING_RECORD)
    return output
