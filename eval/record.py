"""What a result needs beside its numbers so that someone else can get them again."""

import hashlib
import platform
import shlex
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from transformers import ProcessorMixin


LIBRARIES = ("torch", "transformers", "sentence-transformers", "datasets", "pillow", "numpy")


def revision(path: str) -> str:
    """What a model is known by: the commit of a Hub id, or a hash of its files' names, sizes and times."""
    folder = Path(path)
    if folder.is_dir():
        files = sorted(file for file in folder.iterdir() if file.is_file())
        listing = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        return hashlib.blake2b(repr(listing).encode(), digest_size=8).hexdigest()
    cached = try_to_load_from_cache(path, "config.json")  # in a folder that has the commit's name
    return Path(cached).parent.name if isinstance(cached, str) else "unknown"


def record(model: str, processor: ProcessorMixin | None, command: Sequence[str], **settings: Any) -> dict[str, Any]:
    """Everything about a run that its numbers depend on, ready for JSON.

    Args:
        model (`str`): Folder or Hub id.
        processor (`ProcessorMixin`, *optional*): Its processor: prompts and pixel budget.
        command (`Sequence[str]`): The arguments of `unime.eval`.
        settings: What else was chosen (`dtype`, `max_length`, `seed`, ...).
    """
    return {
        "model": model,
        "revision": revision(model),
        **settings,
        "prompts": processor and processor.chat_template,
        "pixels": processor and _plain(processor.image_processor.to_dict()),
        "command": shlex.join(["python", "-m", "unime.eval", *command]),
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
