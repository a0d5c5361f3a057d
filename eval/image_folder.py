"""Images that the user names for an evaluation: all of them are checked before the first embedding, none is read."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from ..data.image_files import default_image_root, read_image, resolve_path
from ..processing_unime import split_content
from .lazy_items import LazyItems, file_identity


@dataclass(frozen=True)
class ImageFolder:
    """A folder of images.

    The user names the folder, so links in it are followed, to other disks too. A path of a row that leaves it in
    another way (by `..`, or an absolute path) is refused.

    Args:
        name (`str`): Start of error messages, such as `"MMEB CIRR"`.
        root (`Path`): The folder.
        advice (`str`): How to fix a missing image; names the option of the folder.
    """

    name: str
    root: Path
    advice: str

    def lazy_items(
        self, items: Iterable[Mapping[str, Any]], place: Callable[[int], str] = "item {}".format
    ) -> LazyItems:
        """Return items whose images exist, and are read when they are embedded.

        Args:
            items (`Iterable[Mapping]`): Items whose images are paths, as in [`LazyItems`].
            place (`Callable`, *optional*): Takes the number of an item, returns where it comes from, such as
                `"row 7"`, for errors.

        Raises:
            ValueError: An image is missing, or its path leaves the folder.
        """
        stored = [dict(item) for item in items]
        checked: set[str] = set()  # frames of a video and images of candidates occur often
        for index, item in enumerate(stored):
            for path in _paths(item):
                if path not in checked:
                    self.check(path, place(index))
                    checked.add(path)
        return LazyItems(stored, self.read, self.identity)

    def check(self, path: str, place: str) -> None:
        """Check that an image exists, without reading it.

        Raises:
            ValueError: It is missing, or its path leaves the folder.
        """
        where = f"{self.name}, {place}"
        full, problem = resolve_path(path, self.root, follow_links=True)
        if problem is not None:
            raise ValueError(f"{where}: {problem}")
        if os.path.isfile(full):
            return
        if os.path.exists(full):
            raise ValueError(f"{where}: the image {full} is not a regular file; {self.advice}")
        # If the first folder of the path is missing, an archive was not unpacked.
        first = self.root / Path(path).parts[0]
        missing = f"the image {full}" if os.path.exists(first) or first == Path(full) else f"the folder {first}"
        raise ValueError(f"{where}: {missing} does not exist; {self.advice}")

    def read(self, path: str) -> Image.Image:
        """Read an image as RGB."""
        return read_image(path, self.name, self.root, follow_links=True)

    def identity(self, path: str) -> str:
        """Return path, size and modification time of an image; archives may give one time to images of one size."""
        return f"{path}/{file_identity(self.root / path)}"


def _paths(item: Mapping[str, Any]) -> list[str]:
    if item.get("content") is not None:
        return split_content(item["content"])[1]
    image, frames = item.get("image"), item.get("video") or []
    return [*frames, *(image if isinstance(image, list) else [] if image is None else [image])]


def table_images(
    table: datasets.Dataset,
    place: Callable[[int], str],
    source: str | Path,
    rows: Sequence[int] | None = None,
    instruction: str | None = None,
) -> LazyItems:
    """Return the images of a table as items; all of them exist, and each is read when it is embedded.

    Args:
        table (`Dataset`): A table with a column `image` of images.
        place (`Callable`): Takes the number of a row, returns where it is, such as `"flickr30k, row 7"`, for errors.
        source (`str` or `Path`): Folder or Hub id of the table. Where it holds paths in place of images, they start
            from the folder, whose links are followed, or may lie in the cache of downloads.
        rows (`Sequence[int]`, *optional*, defaults to all): Row of each item.
        instruction (`str`, *optional*): Instruction of each item.

    Raises:
        ValueError: The column has another type, or an image is missing.
    """
    try:
        # `read_image` decodes, so that the error for a broken image names its row.
        images = table.cast_column("image", datasets.Image(decode=False))
    except pa.ArrowException:
        raise ValueError(
            f"{place(0)}: expected images in the column image, got {table.features['image']}; use the published "
            "dataset"
        ) from None
    rows = range(len(images)) if rows is None else rows
    root, is_folder = default_image_root(source), Path(source).exists()
    is_path = pc.struct_field(images.data.column("image"), "bytes").is_null().to_pylist()
    for row in rows:
        if not is_path[row]:
            continue
        path = (images[row]["image"] or {}).get("path")
        if path is None:
            raise ValueError(f"{place(row)}: there is no image; use the published dataset")
        full, problem = resolve_path(path, root, follow_links=is_folder)
        if problem is None and not os.path.isfile(full):
            problem = f"the image {full} does not exist or is not a regular file; use the published dataset"
        if problem is not None:
            raise ValueError(f"{place(row)}: {problem}")
    return LazyItems(
        [{"image": row, "instruction": instruction} for row in rows],
        lambda row: read_image(images[row]["image"], place(row), root, follow_links=is_folder),
        lambda row: f"{images._fingerprint}/{row}",
    )
