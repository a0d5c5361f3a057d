"""The metadata that makes a result reproducible."""

import platform
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from transformers import ProcessorMixin

from ..checkpoint import fingerprint, redact_home


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


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if isinstance(value, (str, int, float, bool, list, dict))}
