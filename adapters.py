"""Adapters: a saved LoRA or DoRA adapter is loaded strictly, whoever trained it, and merged into its base."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import cached_file

from .checkpoint_safety import TRAINING_RECORD, check_integrity, forbid_remote_code, refuse_pickle
from .configuration_unime import matryoshka_dimensions
from .extras import require_extra
from .modeling_unime import UniMEModel


if TYPE_CHECKING:
    from peft import PeftModel

ADAPTER_WEIGHTS = "adapter_model.safetensors"
PEFT_PREFIX = "base_model.model."

logger = logging.getLogger(__name__)


def load_adapter(model: nn.Module, path: str | Path) -> "PeftModel":
    """Attach a saved adapter to a model; every key must match.

    Weights of an adapter for the language-model head are left out, because embeddings do not depend on it.

    Args:
        model (`Module`): The model that the adapter was trained on.
        path (`str` or `Path`): Folder or Hub id of `adapter_config.json` and `adapter_model.safetensors`.

    Returns:
        `PeftModel`: The model with the adapter, in evaluation mode.

    Raises:
        ValueError: Keys or shapes of the file and the model differ (PEFT would only warn, and the adapter would have
            no effect), it is no LoRA or DoRA adapter, its weights are a pickle, or a file is truncated.
        MissingExtraError: PEFT is not installed.
    """
    require_extra("train", "peft")

    from peft import LoraConfig, PeftConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    check_integrity(path)
    with forbid_remote_code(path):
        config = PeftConfig.from_pretrained(str(path))
        saved = _read_weights(path)
    if not isinstance(config, LoraConfig):
        raise ValueError(f"{path} is an adapter of type {config.peft_type}: only LoRA and DoRA adapters can be merged")
    config.task_type = None  # others need a model that generates
    # PEFT would warn that the base has another name than on the machine of the training.
    base, config.base_model_name_or_path = config.base_model_name_or_path, None
    if config.modules_to_save is not None:
        config.modules_to_save = [name for name in config.modules_to_save if name != "lm_head"]
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:  # no module of the model is a target
        raise ValueError(f"the adapter in {path} does not fit this model ({error})") from None
    config.base_model_name_or_path = base
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


def merge_saved_adapter(model: UniMEModel, path: str | Path) -> None:
    """Merge a saved adapter into the weights of its base.

    The adapter may have been trained on a [`UniMEModel`] or on the native model of any version of transformers. Before
    version 4.52, their modules had other names. The model is shown to PEFT under the names that the adapter uses, so
    that patterns of its configuration (`target_modules`, `rank_pattern`, ...) mean what they meant in training.

    Args:
        model ([`UniMEModel`]): The base; its weights change.
        path (`str` or `Path`): Folder or Hub id of the adapter.

    Raises:
        ValueError: The adapter does not fit the model, see [`load_adapter`].
    """
    backbone, base = model.backbone, model.name_or_path or model.backbone.name_or_path
    modules = {_module_name(key) for key in _read_weights(path)}
    layouts = [(paths, _with_names(backbone, paths)) for paths in _layouts(backbone)]
    fits = [modules.difference(name for name, _ in named.named_modules()) for _, named in layouts]
    missing, (paths, named) = min(zip(fits, layouts, strict=True), key=lambda fit: len(fit[0]))
    if missing:
        raise ValueError(
            f"the adapter in {path} does not fit {base}, a model of type '{backbone.config.model_type}', which has no "
            f"{min(missing)}: name the model it was trained on in its adapter_config.json"
        )
    load_adapter(named, path).merge_and_unload()
    for name, module_path in paths.items():  # `modules_to_save` replaces modules
        setattr(backbone, name, named.get_submodule(module_path))
    take_trained_dimensions(model, path)
    logger.warning("merged the adapter in %s into the weights of its base", path)
    # An adapter that is trained on the result names it as its base.
    backbone.name_or_path = str(path)
    if model.name_or_path:
        model.name_or_path = str(path)


def take_trained_dimensions(model: UniMEModel, path: str | Path) -> None:
    """Give a model the `matryoshka_dimensions` of the training of its adapter, if UniME's trainer wrote its record.

    Args:
        model ([`UniMEModel`]): The model that the adapter is merged into; its configuration changes.
        path (`str` or `Path`): Folder or Hub id of the adapter.
    """
    record = Path(path, TRAINING_RECORD)
    if record.is_file():
        trained = json.loads(record.read_text())[-1]["arguments"].get("matryoshka_dims")
        model.config.matryoshka_dimensions = matryoshka_dimensions(model.config, trained)


def _read_weights(path: str | Path) -> dict[str, Tensor]:
    file = cached_file(
        str(path),
        ADAPTER_WEIGHTS,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if file is None:
        refuse_pickle(path, "adapter_model.bin")
        raise FileNotFoundError(f"{path} has no {ADAPTER_WEIGHTS}: copy or download the adapter again")
    return {key: tensor for key, tensor in load_file(file).items() if "lm_head" not in key.split(".")}


def _module_name(key: str) -> str:
    """Return the module that a key of an adapter belongs to, under the name that it had in training."""
    name, is_lora, _ = key.removeprefix(PEFT_PREFIX).partition(".lora_")
    return name if is_lora else name.rpartition(".")[0]  # a weight of a module in `modules_to_save`


def _layouts(backbone: nn.Module) -> Iterator[dict[str, str]]:
    """Yield the paths that the parts of a backbone have or had in the models that adapters are trained on."""
    parts = dict(backbone.named_children())
    decoder = cast(PreTrainedModel, backbone).get_decoder()
    decoders = [name for name, part in parts.items() if part is decoder]
    towers = [name for name, part in parts.items() if type(part).__name__.endswith("VisionModel")]
    for inside in ("", ".vision_model"):  # CLIP and SigLIP until transformers 5
        paths = {name: name + inside if name in towers else name for name in parts}
        yield {name: f"backbone.{path}" for name, path in paths.items()}  # UniMEModel
        yield {name: f"model.{path}" for name, path in paths.items()}  # ...ForConditionalGeneration
        yield paths  # AutoModel
        # ...ForConditionalGeneration of transformers before 4.52: Qwen-VL, and LLaVA, Mllama and others
        for name in decoders:
            yield paths | {name: "model"}
            yield paths | {name: "language_model.model"}


def _with_names(backbone: nn.Module, paths: dict[str, str]) -> nn.ModuleDict:
    """Return a module with the parts of a backbone at the given paths."""
    root = nn.ModuleDict()
    for name, path in paths.items():
        *parents, last = path.split(".")
        module = root
        for parent in parents:
            if parent not in module:
                module[parent] = nn.ModuleDict()
            module = cast(nn.ModuleDict, module[parent])
        module[last] = getattr(backbone, name)
    return root
