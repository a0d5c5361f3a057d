"""The settings of a run that can be interrupted, beside the files that it writes."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .atomic_files import atomic_write


def keep_settings(file: Path, settings: Mapping[str, Any], others: str) -> None:
    """Write the settings that the files of a folder depend on, or check that an earlier run had the same.

    Args:
        file (`Path`): File of the settings, in that folder.
        settings (`Mapping`): The settings; a value that JSON does not know is written as a string.
        others (`str`): What files of other settings are, such as `"scores of another judge"`.

    Raises:
        ValueError: The folder holds files of other settings.
    """
    text = json.dumps(settings, indent=2, default=str)
    if file.exists() and file.read_text() != text:
        raise ValueError(f"{file.parent} holds {others}: choose another folder")
    with atomic_write(file) as part:
        part.write_text(text)
