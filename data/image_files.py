"""Files of images: which may be opened, and their reading; in every room that reads images it is this one.

What a file shows is what [`unime.processing_unime.to_rgb`] makes of it: upright, and on white where it is transparent.
"""

import os
import re
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from datasets import config
from PIL import Image, UnidentifiedImageError

from ..processing_unime import to_rgb


# Pillow opens far more, whatever the file is called: some by starting another program (EPS), which strangers' files
# should not reach.
IMAGE_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
URL_PATTERN = re.compile(r"[a-z][a-z0-9+.-]*://|data:", re.IGNORECASE)


def default_image_root(source: str | Path) -> Path:
    """The folder that image paths of a dataset start from, where the user names none: the dataset's own.

    Args:
        source (`str` or `Path`): A folder, a file, or a Hub id, whose folder is that of all downloads.
    """
    source = Path(source)
    if not source.exists():
        return Path(config.HF_CACHE_HOME).expanduser()
    return source if source.is_dir() else source.parent


def resolve_path(path: str, root: Path) -> tuple[str, str | None]:
    """The place of an image or text, and why it must not be opened if so.

    Args:
        path (`str`): What a row says, relative to `root` or absolute.
        root (`Path`): Folder which nothing is read outside of, not even by a link.
    """
    if URL_PATTERN.match(path):
        shown = path if len(path) < 100 else path[:100] + "..."
        return path, f"its image {shown} is an address, and nothing is downloaded: save it and give its path"
    try:
        inside = Path(os.path.realpath(root / path)).is_relative_to(os.path.realpath(root))
    except (OSError, ValueError) as error:
        return path, f"its path {path!r} cannot be opened ({error}): mend it"
    if not inside:
        return path, f"its file {path} is outside of {root}: move it there, or give another image_root"
    return str(root / path), None


def read_image_bytes(path: Path) -> bytes:
    """The bytes of an image's file.

    Raises:
        ValueError: There are none; what is said goes on a sentence that names the file.
    """
    try:
        if not path.is_file():  # opening a pipe would wait for ever
            raise ValueError(f"{_describe_path(path)}: mend the path")
        encoded = path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror}): mend that") from None
    if not encoded:
        raise ValueError("is empty: replace it")
    return encoded


def _describe_path(path: Path) -> str:
    if path.is_symlink() and not path.exists():
        return f"is a link to {path.readlink()}, which does not exist"
    if not path.exists():
        return "does not exist"
    return "is a folder" if path.is_dir() else "is no ordinary file"


def read_image(image: str | Mapping[str, Any], where: str, root: Path | None = None) -> Image.Image:
    """Read a path, or what `datasets` stores for an image (its bytes and its path), as RGB.

    Args:
        image (`str` or `Mapping`): The image.
        where (`str`): What errors begin with.
        root (`Path`, *optional*): Folder that the path starts from, and which nothing is read outside of; without it
            the path is one that the user typed, and taken as it is.

    Raises:
        ValueError: The image is missing, outside of `root` or unreadable, in one sentence.
    """
    stored = image if isinstance(image, Mapping) else {"bytes": None, "path": image}
    path, encoded = stored["path"], stored["bytes"]
    if encoded is None:
        if not isinstance(path, str):
            raise ValueError(f"{where}: its image is of type {type(path).__name__}: make it one path")
        path, problem = (path, None) if root is None else resolve_path(path, root)
        if problem is not None:
            raise ValueError(f"{where}: {problem}")
        try:
            encoded = read_image_bytes(Path(path))
        except ValueError as error:
            raise ValueError(f"{where}: cannot read the image {path}: it {error} or remove the row") from None
    try:
        with Image.open(BytesIO(encoded), formats=IMAGE_FORMATS) as opened:
            return to_rgb(opened)
    except Exception as error:  # for broken files Pillow's decoders raise errors of many kinds
        # Pillow names the buffer in memory there, whose address is another one each time.
        problem = "its format is unknown" if isinstance(error, UnidentifiedImageError) else error
        name = "the image" if path is None else f"the image {path}"
        raise ValueError(
            f"{where}: cannot read {name}: it is not a readable image ({problem}); mend the path or remove the row"
        ) from None
