"""Items whose images are read when they are embedded or shown, and known by a key until then."""

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ..processing_unime import Item


class LazyItems(Sequence):
    """A sequence of items that holds their images as paths, specs or row numbers.

    Args:
        stored (`Sequence[dict]`): Items as [`unime.processing_unime.to_item_dict`] takes them, but each image is what
            `read` takes; a value of `None` is as good as no key.
        read (`Callable`): Opens an image.
        identity (`Callable`, *optional*, defaults to `str`): What an image is known by: equal for equal images,
            another one when its content has changed.
    """

    def __init__(
        self,
        stored: Sequence[dict[str, Any]],
        read: Callable[[Any], Image.Image],
        identity: Callable[[Any], str] = str,
    ):
        self.stored, self.read, self.identity = stored, read, identity

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        item = {name: value for name, value in self.stored[index].items() if value is not None}
        if "image" in item:
            several = item["image"] if isinstance(item["image"], list) else None
            item["image"] = self.read(item["image"]) if several is None else [self.read(one) for one in several]
        return item

    def keys(self) -> list[str]:
        """What each item is known by, without reading an image: equal for items with the same content."""
        return [self._key(item) for item in self.stored]

    def _key(self, item: dict[str, Any]) -> str:
        images = [self.identity(image) for image in _load_images(item.get("image"))]
        content = repr((item.get("text"), item.get("instruction") or None, images))
        return hashlib.blake2b(content.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _load_images(stored: Any) -> list[Any]:
    return [] if stored is None else stored if isinstance(stored, list) else [stored]


def file_identity(path: str | Path) -> str:
    """A file's name, size and time of change; of a file that is not there, which an error will name, the name."""
    path = Path(path)
    if not os.path.exists(path):
        return str(path)
    status = path.stat()
    return f"{path.name}/{status.st_size}/{status.st_mtime_ns}"
