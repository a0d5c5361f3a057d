"""Image files: allowed paths, and reading as RGB.

Every part of the package that opens image files does it here. `unime.processing_unime.to_rgb` defines what a file
shows: upright, and on white where it is transparent.
"""

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from datasets import config
from PIL import Image

from ..image_formats import open_image_bytes
from ..processing_unime import to_rgb


URL_PATTERN = re.compile(r"[a-z][a-z0-9+.-]*://|data:", re.IGNORECASE)


def default_image_root(source: str | Path) -> Path:
    """Return the folder that the image paths of a dataset start from by default: the dataset's own folder.

    Args:
        source (`str` or `Path`): A folder, a file, or a Hub id; for a Hub id the result is the cache of all downloads.
    """
    source = Path(source)
    if not source.exists():
        return Path(config.HF_CACHE_HOME).expanduser()
    return source if source.is_dir() else source.parent


def resolve_path(path: str, root: Path, follow_links: bool = False) -> tuple[str, str | None]:
    """Resolve the path of an image or text, and check that it lies inside a folder.

    Args:
        path (`str`): Path as a row gives it, relative to `root` or absolute.
        root (`Path`): Folder that the path must not leave.
        follow_links (`bool`, *optional*, defaults to `False`): Allow symbolic links in the folder that lead out of it.

    Returns:
        `tuple[str, str | None]`: The full path, and why it must not be opened (`None` if it may).
    """
    if "\0" in path:
        return path, f"its path {path!r} cannot be opened (embedded null byte): fix the path"
    if URL_PATTERN.match(path):
        shown = path if len(path) < 100 else path[:100] + "..."
        return path, f"its image {shown} is a URL, and nothing is downloaded: save the file and give its path"
    if follow_links:
        inside = ".." not in Path(path).parts and (root.absolute() / path).is_relative_to(root.absolute())
        problem = f"its file {path} is outside of {root}: use the dataset as published"
        return str(root / path), None if inside else problem
    try:
        inside = Path(os.path.realpath(root / path)).is_relative_to(os.path.realpath(root))
    except (OSError, ValueError) as error:
        return path, f"its path {path!r} cannot be opened ({error}): fix the path"
    if not inside:
        return path, f"its file {path} is outside of {root}: move it there or set another image_root"
    return str(root / path), None


def read_image_bytes(path: Path) -> bytes:
    """Read the encoded bytes of an image file.

    Raises:
        ValueError: The file cannot be read. The message continues a sentence that names the file.
    """
    try:
        if not path.is_file():  # opening a pipe would block forever
            raise ValueError(f"{_describe_path(path)}: fix the path")
        encoded = path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror}): fix that") from None
    if not encoded:
        raise ValueError("is empty: replace it")
    return encoded


def _describe_path(path: Path) -> str:
    if path.is_symlink() and not path.exists():
        return f"is a symbolic link to {path.readlink()}, which does not exist"
    if not path.exists():
        return "does not exist"
    return "is a folder" if path.is_dir() else "is not a regular file"


def read_image(
    image: str | Mapping[str, Any],
    where: str,
    root: Path | None = None,
    draft: Callable[[Image.Image], None] | None = None,
    follow_links: bool = False,
) -> Image.Image:
    """Read an image as RGB.

    Args:
        image (`str` or `Mapping`): Path of the image, or what `datasets` stores for one: its `bytes` and `path`.
        where (`str`): Start of every error message, such as `"pairs.jsonl, row 7, query"`.
        root (`Path`, *optional*): Folder that a path starts from and must not leave. Without it the path is used
            unchecked, because the user typed it.
        draft (`Callable`, *optional*): Called with the opened image before it is decoded, see [`draft_for`].
        follow_links (`bool`, *optional*, defaults to `False`): Allow symbolic links in `root` that lead out of it.

    Raises:
        ValueError: The image is missing, outside `root`, or unreadable.
    """
    stored: Mapping[str, Any] = image if isinstance(image, Mapping) else {"bytes": None, "path": image}
    path, encoded = stored["path"], stored["bytes"]
    if encoded is None:
        if not isinstance(path, str):
            raise ValueError(f"{where}: its image has type {type(path).__name__}: give one path")
        path, problem = (path, None) if root is None else resolve_path(path, root, follow_links)
        if problem is not None:
            raise ValueError(f"{where}: {problem}")
        try:
            encoded = read_image_bytes(Path(path))
        except ValueError as error:
            raise ValueError(f"{where}: cannot read the image {path}: it {error} or remove the row") from None
    try:
        with open_image_bytes(encoded) as opened:
            if draft is not None:
                draft(opened)
            return to_rgb(opened)
    except Exception as error:  # Pillow's decoders raise errors of many types for broken files
        name = "the image" if path is None else f"the image {path}"
        raise ValueError(
            f"{where}: cannot read {name}: it is not a readable image ({error}); fix the path or remove the row"
        ) from None
