"""Items whose images are read when they are embedded or shown; until then a key identifies them."""

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, overload

from PIL import Image

from ..processing_unime import Item, join_content, split_content


class LazyItems(Sequence):
    """A sequence of items that stores their images as paths, specs or row numbers.

    Args:
        stored (`Sequence[dict]`): Items as in [`unime.processing_unime.to_item_dict`], except that each image is an
            argument of `read`; in `content` it stands as `{"type": "image", "image": argument}`. The frames of a
            `video` are a list of such arguments. Keys with the value `None` are ignored.
        read (`Callable`): Opens an image.
        identity (`Callable`, *optional*, defaults to `str`): Returns a string that is equal for equal images and
            changes with the content of an image.
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

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        item = {name: value for name, value in self.stored[index].items() if value is not None}
        if "image" in item:
            image = item["image"]
            item["image"] = [self.read(one) for one in image] if isinstance(image, list) else self.read(image)
        if "video" in item:
            item["video"] = [self.read(frame) for frame in item["video"]]
        if "content" in item:
            content, images = split_content(item["content"])
            item["content"] = join_content(content, [self.read(image) for image in images])
        return item

    def keys(self) -> list[str]:
        """Return the key of each item without reading images; items with the same content have the same key."""
        return [self._key(item) for item in self.stored]

    def num_images(self, index: int) -> int:
        """Return the number of images of an item without reading them."""
        return len(_split(self.stored[index])[1])

    def _key(self, item: dict[str, Any]) -> str:
        text, images = _split(item)
        content = repr((text, item.get("instruction") or None, [self.identity(image) for image in images]))
        if item.get("video") is not None:
            content += f" of which {len(item['video'])} are frames"
        return hashlib.blake2b(content.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _split(item: dict[str, Any]) -> tuple[Any, list[Any]]:
    """Return the texts of a stored item, with the indices of images between them if it is ordered, and its images."""
    if item.get("content") is not None:
        return split_content(item["content"])
    text, image, frames = item.get("text"), item.get("image"), item.get("video") or []
    return text, [*frames, *([] if image is None else image if isinstance(image, list) else [image])]


def file_identity(path: str | Path) -> str:
    """Return a file's name, size and modification time, or only its path if it does not exist.

    A missing file is an error when it is read.
    """
    path = Path(path)
    if not os.path.exists(path):
        return str(path)
    status = path.stat()
    return f"{path.name}/{status.st_size}/{status.st_mtime_ns}"
