"""Safety of checkpoint folders: complete files only, and no code of the checkpoint is run."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from zipfile import is_zipfile

from jinja2 import Environment, TemplateSyntaxError
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, PreTrainedConfig


TRAINING_RECORD = "training.json"  # the stages and settings that a checkpoint was trained with
# Weights, configurations, chat template and tokenizer.
MODEL_FILE_SUFFIXES = {".safetensors", ".json", ".jinja", ".model", ".txt"}
NON_MODEL_PREFIXES = ("results-", TRAINING_RECORD)  # files that describe a model without affecting it
# Pickled weights, under the names that transformers, PEFT and sentence-transformers look for.
PICKLE_PATTERNS = ("pytorch_model.bin", "pytorch_model-*.bin", "adapter_model.bin", "[0-9]*_*/pytorch_model.bin")


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
            raise ValueError(
                f"{checkpoint} stores its weights as a pickle ({pickle.name}), which can run code when it is loaded: "
                "use a checkpoint in safetensors format, or convert this one where you trust its author"
            )
    try:
        yield
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ValueError(
            f"{checkpoint} requires code of its own, which UniME never runs: use a model of a type that transformers "
            "or sentence-transformers supports natively"
        ) from None


def read_config(checkpoint: str) -> PreTrainedConfig:
    """Read the configuration of a checkpoint without running any of its code.

    Args:
        checkpoint (`str`): Folder or Hub id.

    Raises:
        FileNotFoundError: The checkpoint is a path that does not exist; the Hub is not asked for it.
        ValueError: The checkpoint is damaged, or requires code of its own (see [`check_integrity`] and
            [`forbid_remote_code`]).
    """
    _check_exists(checkpoint)
    check_integrity(checkpoint)
    with forbid_remote_code(checkpoint):
        return AutoConfig.from_pretrained(checkpoint, trust_remote_code=False)


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
