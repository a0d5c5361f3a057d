"""Safety of checkpoint folders: complete files only, and no code of the checkpoint is run."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from zipfile import is_zipfile

from jinja2 import Environment, TemplateSyntaxError
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, PreTrainedConfig
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file, has_file

from .configuration_unime import SETTINGS_KEY, UniMEConfig


TRAINING_RECORD = "training.json"  # the stages and settings that a checkpoint was trained with
# Weights, configurations, chat template and tokenizer.
MODEL_FILE_SUFFIXES = {".safetensors", ".json", ".jinja", ".model", ".txt"}
NON_MODEL_PREFIXES = ("results-", TRAINING_RECORD)  # files that describe a model without affecting it
# Pickled weights, under the names that transformers, PEFT and sentence-transformers look for.
ADAPTER_CONFIG = "adapter_config.json"
PICKLE_PATTERNS = ("pytorch_model.bin", "pytorch_model-*.bin", "adapter_model.bin", "[0-9]*_*/pytorch_model.bin")


def give_weights_the_umask(folder: str | Path) -> None:
    """Give weights the mode of the other files of a folder, which follows the umask.

    safetensors 0.8 writes files that only their owner may read, so that a server of another user could not load them.

    Args:
        folder (`str` or `Path`): Folder of weights and at least one JSON file.
    """
    modes = [file.stat().st_mode & 0o777 for file in Path(folder).glob("*.json")]
    for file in Path(folder).glob("*.safetensors") if modes else ():
        file.chmod(modes[0])


@contextmanager
def forbid_remote_code(checkpoint: str | Path) -> Iterator[None]:
    """Forbid a checkpoint to run code while it is loaded.

    Calls inside this context must pass `trust_remote_code=False`, because transformers would otherwise ask on the
    terminal, and `use_safetensors=True` for weights, which rejects pickles on the Hub.

    Args:
        checkpoint (`str` or `Path`): Folder or Hub id.

    Raises:
        ValueError: The weights are a pickle, or the checkpoint requires code of its own.
    """
    for pickle in (file for name in PICKLE_PATTERNS for file in sorted(Path(checkpoint).glob(name))):
        if not any(pickle.parent.glob("*.safetensors")):
            refuse_pickle(checkpoint, pickle.relative_to(checkpoint))
    try:
        yield
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ValueError(
            f"{checkpoint} requires code of its own, which UniME never runs: use a model of a type that transformers "
            "or sentence-transformers supports natively"
        ) from None


def refuse_pickle(checkpoint: str | Path, name: str | Path) -> None:
    """Refuse a checkpoint with a pickle.

    Args:
        checkpoint (`str` or `Path`): Folder or Hub id.
        name (`str` or `Path`): Path of the pickle in it; nothing happens if there is no such file.

    Raises:
        ValueError: The checkpoint contains the file.
    """
    if _has_file(checkpoint, str(name)):
        how = "as docs/guides/adapters.md shows, " if Path(name).name == "adapter_model.bin" else ""
        raise ValueError(
            f"{checkpoint} stores its weights as a pickle ({Path(name).name}), which can run code when it is loaded: "
            f"use a checkpoint in safetensors format, or convert this one {how}where you trust its author"
        )


def _has_file(checkpoint: str | Path, name: str) -> bool:
    try:
        return has_file(checkpoint, name)
    except OSError:  # no such repository, or no network
        return False


def adapter_base(checkpoint: str | Path) -> str | None:
    """Return the folder or Hub id of the model that an adapter was trained on, or None if `checkpoint` is no adapter.

    Args:
        checkpoint (`str` or `Path`): Folder or Hub id.

    Raises:
        ValueError: The adapter does not name its base, or lies beside the weights of a full model.
    """
    file = cached_file(
        str(checkpoint),
        ADAPTER_CONFIG,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if file is None:
        return None
    if _has_file(checkpoint, CONFIG_NAME):
        for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME):
            if _has_file(checkpoint, name):
                raise ValueError(
                    f"{checkpoint} contains both a full model ({name}) and an adapter ({ADAPTER_CONFIG}), and nothing "
                    "says whether they are already merged: move one of them to another folder"
                )
    base = json.loads(Path(file).read_text()).get("base_model_name_or_path")
    if not base or Path(base) == Path(checkpoint):
        raise ValueError(
            f"{checkpoint} is an adapter that does not name the model it was trained on: set base_model_name_or_path "
            f"in its {ADAPTER_CONFIG} to the folder or Hub id of that model"
        )
    return str(Path(base).expanduser()) if base.startswith("~") else base


def refuse_adapter(checkpoint: str) -> None:
    """Refuse an adapter where the files of a whole model are read.

    Args:
        checkpoint (`str`): Folder or Hub id.

    Raises:
        ValueError: The checkpoint is an adapter.
    """
    base = adapter_base(checkpoint)
    if base is not None:
        raise ValueError(
            f"{checkpoint} is an adapter for {base} and not a whole model: write that with "
            f'`unime.save_checkpoint(*unime.load_model("{checkpoint}"), "OUTPUT")` and give the folder OUTPUT'
        )


def read_config(checkpoint: str) -> PreTrainedConfig:
    """Read the configuration of a checkpoint without running any of its code; an adapter has that of its base.

    Args:
        checkpoint (`str`): Folder or Hub id.

    Raises:
        FileNotFoundError: The checkpoint is a path that does not exist, and the Hub is not asked for it; or the base
            of an adapter is not found.
        ValueError: The checkpoint is damaged, or requires code of its own (see [`check_integrity`] and
            [`forbid_remote_code`]).
    """
    _check_exists(checkpoint)
    check_integrity(checkpoint)
    with forbid_remote_code(checkpoint):
        base = adapter_base(checkpoint)
        if base is not None:
            return _read_config_of_base(checkpoint, base)
        config = AutoConfig.from_pretrained(checkpoint, trust_remote_code=False)
        return UniMEConfig.from_pretrained(checkpoint) if SETTINGS_KEY in config.to_dict() else config


def _read_config_of_base(adapter: str, base: str) -> PreTrainedConfig:
    try:
        return read_config(base)
    except OSError:
        raise FileNotFoundError(
            f"{adapter} is an adapter for {base}, which is not a folder here and cannot be downloaded: set "
            f"base_model_name_or_path in its {ADAPTER_CONFIG} to the folder or Hub id of that model"
        ) from None


def _check_exists(checkpoint: str) -> None:
    name = str(checkpoint)
    parent = Path(name).expanduser().parent
    # A Hub id is "name" or "organization/name"; "checkpoints/typo" is a path where a folder `checkpoints` exists.
    is_path = name.startswith((".", "/", "~")) or name.count("/") > 1 or (parent != Path() and parent.is_dir())
    if is_path and not Path(name).exists():
        raise FileNotFoundError(f"there is no folder {name}: check the path of the checkpoint, or give a Hub id")


def check_integrity(checkpoint: str | Path) -> None:
    """Reject a checkpoint folder with incomplete files, for example after an interrupted copy or download.

    Args:
        checkpoint (`str` or `Path`): Folder or Hub id; Hub ids are not checked.

    Raises:
        ValueError: A file is damaged, or a weight file that the index lists is missing.
    """
    folder = Path(checkpoint)
    for file in model_files(folder) if folder.is_dir() else ():
        if (error := integrity_error(file)) is not None:
            raise ValueError(f"{file} is damaged ({error}): copy or download the checkpoint again")


def model_files(folder: Path) -> list[Path]:
    """Return the files of a checkpoint that determine its embeddings, sorted by name."""
    files = (path for path in sorted(folder.iterdir()) if path.is_file() and path.suffix in MODEL_FILE_SUFFIXES)
    return [path for path in files if not path.name.startswith(NON_MODEL_PREFIXES)]


def integrity_error(file: Path) -> str | None:
    """Return what is wrong with a file of a checkpoint, or None if it is intact or of a type that is not checked."""
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, "pt"):  # compares the sizes in the header with the size of the file
                return None
        if file.suffix == ".jinja":
            Environment().parse(file.read_text())
        elif file.suffix == ".json":
            content = json.loads(file.read_text())
            if file.name.endswith(".safetensors.index.json"):
                present = {path.name for path in file.parent.iterdir()}
                missing = min({*content["weight_map"].values()} - present, default=None)
                return missing and f"it lists {missing}, which is missing"
        elif file.suffix in (".pt", ".pth", ".bin") and not is_zipfile(file):  # the zip directory is at the end
            return "it is truncated"
    except (ValueError, SafetensorError, TemplateSyntaxError) as error:
        return str(error)
    return None
