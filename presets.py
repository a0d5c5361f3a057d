"""Presets: how the authors of a published embedder run it, one JSON file per family in `published/`.

A preset states the prompt (a chat template, beside it), the pooling, the positions, the image size and the dtype of a
family, with its source. [`load_model`] takes the preset whose id patterns match the Hub id, or the folder that a Hub
id was downloaded to. It changes the configuration and the processor, which are saved with a checkpoint.
"""

import json
import sys
import unicodedata
from collections.abc import Collection
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any, Literal

from transformers import ProcessorMixin

from .configuration_unime import UniMEConfig
from .image_size import set_image_size
from .processing_unime import control_tokens


FOLDER = Path(__file__).parent / "published"
NO_PRESET, KEEP = "none", "keep"


@dataclass(frozen=True)
class Preset:
    """How the authors of a family of embedders run it.

    Args:
        name (`str`): Name of the file, without its ending.
        family (`str`): Name of the family.
        ids (`list[str]`): Patterns of Hub ids, with `*`.
        model_types (`list[str]`): Types of the backbone's configuration.
        template (`str`, *optional*): Chat template, a Jinja file beside the JSON file. It follows `prelude.jinja`,
            which gives it `images` and `videos` (numbers), `text`, `instruction` and `only_image`.
        frame (`dict[str, str]`, *optional*): Strings of the template, as `frame.NAME`. A family that reads videos has
            a `video`; one that reads the times of frames has an `untimed`, the error where they are missing.
        tokenizer_adds (`bool`, *optional*, defaults to `True`): Whether the tokenizer adds its own special tokens.
            `False` if the template writes all of them.
        pooling, positions (`str`, *optional*): See [`UniMEConfig`].
        prompts (`dict[str, str]`, *optional*): Default instructions that replace UniME's, see [`UniMEConfig`].
        dtype (`str`, *optional*): Type of the weights, if [`load_model`] gets none.
        image_size (`int` or `dict`, *optional*): The size at which images are read, see [`set_image_size`].
        max_length (`int`, *optional*): Maximum number of tokens of an item, if it is not the tokenizer's.
        base (`str`, *optional*): The backbone of a published adapter.
        certainty (`str`): "Sure" if it was read in the authors' code, "2nd" if in a copy or a port of it.
        source (`str`): Where it was read.
        refused (`str`, *optional*): Why the family cannot be loaded.
    """

    name: str
    family: str
    ids: list[str]
    certainty: str
    source: str
    model_types: list[str] = field(default_factory=list)
    template: str | None = None
    frame: dict[str, str] = field(default_factory=dict)
    tokenizer_adds: bool = True
    pooling: Literal["last", "mean"] = "last"
    positions: Literal["native", "sequential"] = "native"
    prompts: dict[str, str] | None = None
    dtype: str | None = None
    image_size: int | dict[str, Any] | None = None
    max_length: int | None = None
    base: str | None = None
    refused: str | None = None
    folder: Path = FOLDER

    @classmethod
    def read(cls, file: Path) -> "Preset":
        """Read a preset from its JSON file.

        Raises:
            ValueError: The file is no preset.
        """
        try:
            return cls(name=file.stem, folder=file.parent, **json.loads(file.read_text()))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{file} is no preset ({error}): see published/e5-v.json for an example") from None

    def matches(self, checkpoint: str) -> bool:
        """Return whether a Hub id is one of the family's, or a folder holds one of its models."""
        names = _names(checkpoint)
        return any(fnmatchcase(name, pattern.lower()) for name in names for pattern in self.ids) or any(
            fnmatchcase(Path(checkpoint).name.lower(), pattern.lower().rpartition("/")[2])
            for pattern in self.ids
            if Path(checkpoint).is_dir()
        )

    def chat_template(self, control_tokens: Collection[str]) -> str:
        """Return the chat template of the family.

        Args:
            control_tokens (`Collection[str]`): The control tokens of a tokenizer, which are broken up inside texts.
        """
        body = self._body()
        control = sorted(control_tokens, key=lambda token: (-len(token), token))
        frame: dict[str, Any] = {"preset": self.family, **self.frame, "control": control}
        if "frame.punctuation" in body:
            frame["punctuation"] = _punctuation()
        return (FOLDER / "prelude.jinja").read_text().replace("FRAME", json.dumps(frame, ensure_ascii=False)) + body

    def _body(self) -> str:
        return (self.folder / str(self.template)).read_text()

    def apply_to_processor(self, processor: ProcessorMixin) -> None:
        """Give a processor the prompt, the image size and the maximum length of the family."""
        if self.template is not None:
            frame = self._body() + "".join(self.frame.values())
            processor.chat_template = self.chat_template(control_tokens(processor, frame))
        if not self.tokenizer_adds:
            processor.tokenizer.add_bos_token = processor.tokenizer.add_eos_token = False
        if self.max_length is not None:
            processor.tokenizer.model_max_length = self.max_length
        set_image_size(processor, self.image_size)

    def apply_to_config(self, config: UniMEConfig) -> None:
        """Give a configuration the pooling, the positions and the default instructions of the family."""
        config.pooling, config.positions, config.prompts = self.pooling, self.positions, self.prompts


def find_preset(checkpoint: str, preset: str | None = None) -> Preset | None:
    """Return the preset of a checkpoint.

    Args:
        checkpoint (`str`): Folder or Hub id.
        preset (`str`, *optional*, defaults to the one that matches the id): Name of a preset, a JSON file of the same
            form, `"none"` for none, or `"keep"` for the checkpoint's own chat template.

    Raises:
        FileNotFoundError: There is no such preset.
        ValueError: The family cannot be loaded, or a file is no preset.
    """
    if preset == NO_PRESET:
        return None
    if preset == KEEP:
        return Preset(KEEP, "the checkpoint's own chat template", [], "", "the checkpoint")
    presets = all_presets()
    if preset is None:
        match = next((candidate for candidate in presets if candidate.matches(checkpoint)), None)
    elif preset.endswith(".json"):
        match = Preset.read(Path(preset))
    else:
        match = next((candidate for candidate in presets if candidate.name == preset), None)
        if match is None:
            names = ", ".join(candidate.name for candidate in presets if candidate.refused is None)
            raise FileNotFoundError(
                f"there is no preset {preset!r}: choose from {names}, a .json file, '{NO_PRESET}' or '{KEEP}'"
            )
    if match is not None and match.refused is not None:
        raise ValueError(f"{checkpoint} cannot be loaded as its authors run it: {match.refused}")
    return match


def all_presets() -> list[Preset]:
    """Return all presets of the package, sorted by name."""
    return [Preset.read(file) for file in sorted(FOLDER.glob("*.json"))]


def _names(checkpoint: str) -> list[str]:
    """Return the Hub ids, in lower case, that a checkpoint may have: of a folder, those in its files and path."""
    folder = Path(checkpoint)
    if not folder.is_dir():
        return [checkpoint.lower()]
    names = [part[len("models--") :].replace("--", "/", 1) for part in folder.parts if part.startswith("models--")]
    try:
        names.append(str(json.loads((folder / "config.json").read_text())["_name_or_path"]))
    except (OSError, ValueError, KeyError, TypeError):
        pass  # a damaged file is reported by whoever loads the model
    return [name.lower() for name in names]


@cache
def _punctuation() -> str:
    """Return all punctuation characters of Unicode, which a template cannot look up."""
    characters = map(chr, range(sys.maxunicode + 1))
    return "".join(character for character in characters if unicodedata.category(character).startswith("P"))
