"""A folder of images and texts: which files count, what `metadata.jsonl` adds, which paths are refused."""

import json
import logging
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ..data.image_files import resolve_path
from .entry import Entry


IMAGE_SUFFIXES = (
    ".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp",
)  # fmt: skip
METADATA_FILE = "metadata.jsonl"

logger = logging.getLogger(__name__)


def read_folder(folder: Path, root: Path, text: str) -> tuple[list[str], Callable[[str, int], Entry]]:
    """Find the files of a folder.

    Args:
        folder (`Path`): The folder. Hidden files in it are passed over; other files that are no images and no texts
            are named in a warning.
        root (`Path`): Resolved folder which nothing is read outside of.
        text (`str`): Key of an image's text in `metadata.jsonl`.

    Returns:
        `tuple`: Relative paths in order, and what makes an entry of one of them and its number.

    Raises:
        ValueError: A line of `metadata.jsonl` is malformed, or names a file again.
    """
    found, others, known = [], [], {}
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        others += [os.path.join(place, name) for name in folders if os.path.islink(os.path.join(place, name))]
        for name in names:
            path = Path(place, name)
            if name == METADATA_FILE:
                known |= _metadata(path, folder)
            elif path.suffix.lower() in (*IMAGE_SUFFIXES, ".txt") and not name.startswith("."):
                found.append(path.relative_to(folder).as_posix())
            elif not name.startswith("."):
                others.append(str(path))
    if others:
        logger.warning(
            "%d files of %s are no images or .txt files, or are links to folders, and are left out: %s",
            len(others), folder, ", ".join(others[:5]) + (", ..." if len(others) > 5 else ""),
        )  # fmt: skip
    names = sorted({*found, *known})
    return names, partial(_entry, folder=folder.resolve(), root=root, known=known, text=text)


def _metadata(path: Path, folder: Path) -> dict[str, dict[str, Any]]:
    known = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            row = json.loads(line)
            name = (path.parent / row.pop("file_name")).relative_to(folder).as_posix()
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(
                f"{path}, line {number} is no JSON object whose `file_name` is a relative path: mend it"
            ) from None
        if name in known:
            raise ValueError(f"{path}, line {number} names the file {name} again: remove one of the two lines")
        known[name] = row
    return known


def _entry(name: str, number: int, folder: Path, root: Path, known: Mapping[str, dict[str, Any]], text: str) -> Entry:
    metadata = dict(known.get(name, {}))
    said = metadata.pop(text, None)
    path, problem = resolve_path(str(folder / name), root)
    if problem is None and said is not None and not isinstance(said, str):
        said, problem = None, f"its text is of type {type(said).__name__}: make it a string"
    if not name.lower().endswith(".txt"):
        return Entry(name, said, path, metadata, problem)
    if problem is None and not Path(path).is_file():  # a pipe would be read for ever
        problem = f"its file {path} does not exist or is no ordinary file: mend or remove it"
    if problem is None:
        try:
            # Bytes that are no UTF-8 become lone surrogates, which an entry refuses.
            said = Path(path).read_text(encoding="utf-8-sig", errors="surrogateescape")
        except OSError as error:
            problem = f"its file {path} cannot be read ({error.strerror}): mend that"
    return Entry(name, said, None, metadata, problem)
