"""LoRA adapters: attached to one part of a model, loaded strictly, merged for release."""

import re
import shutil
from copy import copy
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from torch.nn import Module
from transformers import PreTrainedModel
from transformers.trainer import TRAINING_ARGS_NAME

from ..checkpoint import load_model, redact_home, save_checkpoint
from ..checkpoint_safety import TRAINING_RECORD, check_integrity, forbid_remote_code


MIN_MERGE_COSINE = (
    0.999  # cosine of an embedding before and after merging; weights in half precision are rounded once more
)


def restrict_to(peft_config: PeftConfig, prefix: str) -> PeftConfig:
    """Return a copy of an adapter's configuration that leaves out every module outside `prefix`.

    Args:
        peft_config ([`~peft.PeftConfig`]): The configuration, for instance with `target_modules="all-linear"`.
        prefix (`str`): Name of the module inside which adapters may be attached, `"backbone.language_model"` say.
    """
    already = peft_config.exclude_modules or []
    # PEFT reads a string as a regular expression of full names, a list as names or their endings.
    patterns = [already] if isinstance(already, str) else [rf"(?:.*\.)?{re.escape(name)}" for name in already]
    confined = copy(peft_config)
    confined.exclude_modules = "|".join([rf"(?!{re.escape(prefix)}\.).*", *patterns])
    return confined


def load_adapter(model: PreTrainedModel, path: str | Path) -> PeftModel:
    """Attach a saved adapter to a model, refusing any key that does not match.

    Args:
        model (`PreTrainedModel`): The model that the adapter was trained on.
        path (`str` or `Path`): Folder with `adapter_config.json` and `adapter_model.safetensors`.

    Returns:
        `PeftModel`: The model with the adapter, in evaluation mode.

    Raises:
        ValueError: Keys or shapes of the file and of the model differ; PEFT itself would only warn, and leave the
            adapter without effect. Or its weights are a pickle, or cut short.
    """
    check_integrity(path)
    with forbid_remote_code(path):
        adapted = get_peft_model(model, PeftConfig.from_pretrained(path))
        found = load_file(Path(path) / "adapter_model.safetensors")
    expected = get_peft_model_state_dict(adapted)
    faults = {
        "missing": [key for key in expected if key not in found],
        "unexpected": [key for key in found if key not in expected],
        "of another shape": [key for key in expected if key in found and expected[key].shape != found[key].shape],
    }
    if any(faults.values()):
        counts = "; ".join(f"{len(keys)} {kind}, such as {keys[0]}" for kind, keys in faults.items() if keys)
        raise ValueError(f"the adapter in {path} does not fit this model ({counts}): load the model it was trained on")
    set_peft_model_state_dict(adapted, found)
    return adapted.eval()


def make_publishable(adapter: str | Path) -> None:
    """Take out of a saved adapter what only concerns this machine.

    `Trainer` leaves its settings there, with the Hub's token and as a pickle, and PEFT the path of the model.
    """
    Path(adapter, TRAINING_ARGS_NAME).unlink(missing_ok=True)
    for name in ("adapter_config.json", "README.md"):
        file = Path(adapter, name)
        file.write_text(redact_home(file.read_text()))


def merge_adapter(model: PeftModel) -> Module:
    """Return the model with its adapter added into the weights: an ordinary model, to be saved as a checkpoint."""
    return model.merge_and_unload()


def merge_checkpoint(base: str, adapter: str | Path, directory: str | Path, **kwargs: Any) -> Path:
    """Fold a trained adapter into the model it was trained on, and write the checkpoint.

    The base is read anew without quantization: an adapter trained over 4-bit weights is merged into the full ones.

    Args:
        base (`str`): Folder or Hub id that the adapter was trained on: a backbone or a UniME checkpoint.
        adapter (`str` or `Path`): Folder of the adapter.
        directory (`str` or `Path`): Where to write the checkpoint.
        kwargs: Passed to [`load_model`] (`dtype`, ...).

    Raises:
        ValueError: The adapter does not fit the base (see [`load_adapter`]), or the merged model embeds otherwise.
    """
    model, processor = load_model(base, **kwargs)
    adapted = load_adapter(model, adapter)
    texts = ["a text to check the merged model by", "another one"]
    before = adapted.get_base_model().encode(texts, processor)
    merged = merge_adapter(adapted)
    cosine = float((before * merged.encode(texts, processor)).sum(axis=1).min())
    if not cosine > MIN_MERGE_COSINE:
        raise ValueError(f"merged with {adapter}, {base} embeds otherwise (cosine {cosine:.4f}): merge it in float32")
    output = save_checkpoint(merged, processor, directory)
    record = Path(adapter, TRAINING_RECORD)
    if record.is_file():
        shutil.copyfile(record, output / TRAINING_RECORD)
    return output
