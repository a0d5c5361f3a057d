"""The folder of a checkpoint, perhaps cut short or of a stranger: its files, and what of them may be read."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from zipfile import is_zipfile

from jinja2 import Environment, TemplateSyntaxError
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, PreTrainedConfig


TRAINING_RECORD = "training.json"  # beside a trained checkpoint: its stages and their settings
MODEL_FILE_SUFFIXES = {
    ".safetensors",
    ".json",
    ".jinja",
    ".model",
    ".txt",
}  # weights, configurations, template, tokenizer
NON_MODEL_PREFIXES = ("results-", TRAINING_RECORD)  # names of files that say how good a model is or how it came about
# Weights as transformers, PEFT and sentence-transformers (whose modules have folders) would look for them.
PICKLE_PATTERNS = ("pytorch_model.bin", "pytorch_model-*.bin", "adapter_model.bin", "[0-9]*_*/pytorch_model.bin")


@contextmanager
def forbid_remote_code(checkpoint: str | Path) -> Iterator[None]:
    """Let nothing run that a checkpoint brings.

    What is loaded inside must pass `trust_remote_code=False`, lest transformers ask on the terminal whether to run it,
    and for weights `use_safetensors=True`, which refuses a pickle of the Hub.

    Args:
        checkpoint (`str` or `Path`): Folder or Hub id.

    Raises:
        ValueError: The weights are a pickle, or the checkpoint wants to run code of its own.
    """
    for pickle in (file for name in PICKLE_PATTERNS for file in sorted(Path(checkpoint).glob(name))):
        if not any(pickle.parent.glob("*.safetensors")):
            raise ValueError(
                f"{checkpoint} holds its weights as a pickle ({pickle.name}), which can run code when it is read: "
                "take safetensors, or convert it where you trust who made it"
            )
    try:
        yield
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ValueError(
            f"{checkpoint} wants to run code of its own, which is never done here: take a model of a type that "
            "transformers or sentence-transformers itself knows"
        ) from None


def read_config(checkpoint: str) -> PreTrainedConfig:
    """Read the configuration of a folder or Hub id, and run no code of it.

    Raises:
        ValueError: See [`forbid_remote_code`] and [`check_integrity`].
    """
    check_integrity(checkpoint)
    with forbid_remote_code(checkpoint):
        return AutoConfig.from_pretrained(checkpoint, trust_remote_code=False)


def check_integrity(checkpoint: str | Path) -> None:
    """Refuse a folder with files that were cut short, when they were copied or downloaded, say.

    Raises:
        ValueError: One is not what its name says; or the weights lack a file that their index names.
    """
    folder = Path(checkpoint)
    for file in model_files(folder) if folder.is_dir() else ():
        if (damage := integrity_error(file)) is not None:
            raise ValueError(f"{file} is damaged ({damage}): copy or download the checkpoint again")


def model_files(folder: Path) -> list[Path]:
    """The files of a checkpoint that decide its vectors, in order of their names."""
    files = (path for path in sorted(folder.iterdir()) if path.is_file() and path.suffix in MODEL_FILE_SUFFIXES)
    return [path for path in files if not path.name.startswith(NON_MODEL_PREFIXES)]


def integrity_error(file: Path) -> str | None:
    """Say what is wrong with a file of a checkpoint, by its name's ending; None for a whole one, or another ending."""
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, "pt"):  # compares the sizes that its head gives with the file's
                return None
        if file.suffix == ".jinja":
            Environment().parse(file.read_text())
        elif file.suffix == ".json":
            content = json.loads(file.read_text())
            if file.name.endswith(".safetensors.index.json"):
                there = {path.name for path in file.parent.iterdir()}
                lacking = min({*content["weight_map"].values()} - there, default=None)
                return lacking and f"it names {lacking}, which is not there"
        elif file.suffix in (".pt", ".pth", ".bin") and not is_zipfile(file):  # whose table of contents comes last
            return "it was cut short"
    except (ValueError, SafetensorError, TemplateSyntaxError) as error:
        return str(error)
    return None
