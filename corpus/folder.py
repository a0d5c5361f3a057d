"""A folder of images and texts as a corpus, with optional metadata in `metadata.jsonl`."""

import json
import logging
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ..data.image_files import resolve_path
from ..image_formats import IMAGE_SUFFIXES
from .entry import Entry


METADATA_FILE = "metadata.jsonl"

logger = logging.getLogger(__name__)


def read_folder(folder: Path, root: Path, text: str) -> tuple[list[str], Callable[[str, int], Entry]]:
    """List the files of a folder recursively.

    Args:
        folder (`Path`): The folder. Hidden files are skipped; a warning lists other files that are neither images nor
            texts.
        root (`Path`): Resolved folder that no file may lie outside of.
        text (`str`): Key of an image's text in `metadata.jsonl`.

    Returns:
        `tuple`: Sorted relative paths, and a function that makes an entry from a path and its index.

    Raises:
        ValueError: A line of `metadata.jsonl` is malformed, or two lines name the same file.
    """
    names, skipped, metadata = [], [], {}
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        skipped += [os.path.join(place, name) for name in folders if os.path.islink(os.path.join(place, name))]
        for name in files:
            path = Path(place, name)
            if name == METADATA_FILE:
                metadata |= _read_metadata(path, folder)
            elif path.suffix.lower() in (*IMAGE_SUFFIXES, ".txt") and not name.startswith("."):
                names.append(path.relative_to(folder).as_posix())
            elif not name.startswith("."):
                skipped.append(str(path))
    if skipped:
        logger.warning(
            "%d files of %s are skipped, because they are neither images nor .txt files, or are links to folders: %s",
            len(skipped), folder, ", ".join(skipped[:5]) + (", ..." if len(skipped) > 5 else ""),
        )  # fmt: skip
    make_entry = partial(_entry, folder=folder.resolve(), root=root, metadata=metadata, text_key=text)
    return sorted({*names, *metadata}), make_entry


def _read_metadata(path: Path, folder: Path) -> dict[str, dict[str, Any]]:
    metadata = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            row = json.loads(line)
            name = (path.parent / row.pop("file_name")).relative_to(folder).as_posix()
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(f"{path}, line {number}: expected an object with a relative `file_name`") from None
        if name in metadata:
            raise ValueError(f"{path}, line {number} names the file {name} again: remove one of the two lines")
        metadata[name] = row
    return metadata


def _entry(
    name: str, index: int, folder: Path, root: Path, metadata: Mapping[str, dict[str, Any]], text_key: str
) -> Entry:
    values = dict(metadata.get(name, {}))
    text = values.pop(text_key, None)
    path, problem = resolve_path(str(folder / name), root)
    if problem is None and text is not None and not isinstance(text, str):
        text, problem = None, f"its text has type {type(text).__name__}: make it a string"
    if not name.lower().endswith(".txt"):
        return Entry(name, text, path, values, problem)
    if problem is None and not Path(path).is_file():  # reading a pipe would block forever
        problem = f"its file {path} does not exist or is not a regular file: fix or remove it"
    if problem is None:
        try:
            # Invalid UTF-8 becomes lone surrogates, which an entry refuses.
            text = Path(path).read_text(encoding="utf-8-sig", errors="surrogateescape")
        except OSError as error:
            problem = f"its file {path} cannot be read ({error.strerror}): fix that"
    return Entry(name, text, None, values, problem)
