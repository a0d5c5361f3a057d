"""The metadata that makes a result reproducible."""

import platform
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from transformers import ProcessorMixin

from ..checkpoint import fingerprint, redact_home
from ..presets import find_preset
from .prompts import Prompts, prompts_of_preset


LIBRARIES = ("torch", "transformers", "sentence-transformers", "datasets", "pillow", "numpy")


def run_metadata(
    model: str, processor: ProcessorMixin | None, command: Sequence[str], **settings: Any
) -> dict[str, Any]:
    """Return everything that the scores of a run depend on, ready for JSON.

    Args:
        model (`str`): Folder or Hub id.
        processor (`ProcessorMixin`, *optional*): The processor, which holds the prompts and the pixel budget.
        command (`Sequence[str]`): Arguments of `python -m unime.eval`.
        settings: Other settings of the run (`dtype`, `max_length`, `seed`, ...).
    """
    return {
        "model": redact_home(model),
        "revision": fingerprint(model),
        **settings,
        "prompts": processor and processor.chat_template,
        "pixels": processor and _plain(processor.image_processor.to_dict()),
        "command": redact_home(shlex.join(["python", "-m", "unime.eval", *command])),
        "libraries": {"python": platform.python_version(), **{name: _version(name) for name in LIBRARIES}},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def protocol(
    model: str,
    processor: ProcessorMixin | None,
    prompts: Prompts | None,
    image_size: int | dict[str, Any] | None,
    preset: str | None,
) -> dict[str, Any]:
    """Return what must agree with a published row before scores are comparable, ready for JSON.

    `prompts` is the name of the prompts (`None` for those of the model), `image_prompt` and `text_prompt` hold them,
    and `image_size` is the size that images are read at (`None` for that of the model, see `pixels` of the run).

    Args:
        model (`str`): Folder or Hub id.
        processor (`ProcessorMixin`, *optional*): Its processor; two-tower and text models have no prompts.
        prompts ([`Prompts`], *optional*): The prompts of the evaluation.
        image_size (`int` or `dict`, *optional*): The size of the evaluation.
        preset (`str`, *optional*): How a published embedder is run, see [`find_preset`].
    """
    if processor is None or not getattr(processor, "chat_template", None):
        return {"prompts": None, "image_size": None}
    own = find_preset(model, preset)
    size = image_size or (own.image_size if own is not None else None)
    if prompts is None:
        return {"prompts": prompts_of_preset(model, preset), "image_size": size}
    described = prompts.to_dict()
    return {
        "prompts": described["name"],
        "image_prompt": described["image"],
        "text_prompt": described["text"],
        "prompts_source": described["source"],
        "image_size": size,
    }


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if isinstance(value, (str, int, float, bool, list, dict))}
