"""The row contract of training data, and JSONL files in it.

A row has `query` (item), `positive` (item), `negatives` (list of items, may be empty), `task` (str) and `label` (str
or none; equal labels within a task mean the same answer). In a file a picture is a path, relative to the file's folder
or to `image_root`.
"""

import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, IterableDataset, load_dataset
from PIL import Image, ImageOps, UnidentifiedImageError

from ..processing_unime import as_item


ROW = ("query", "positive", "negatives", "task", "label")
TEXT_ROW = ("text",)
SHUFFLED = 10_000  # rows of a stream, their pictures unread, among which the next one is drawn


def columns_of(dataset: Dataset | IterableDataset) -> list[str]:
    """The columns of a dataset; a stream may know them only from its first row."""
    return dataset.column_names or list(next(iter(dataset), {}))


def require_columns(dataset: Dataset | IterableDataset, needed: tuple[str, ...], stage: str) -> None:
    """Refuse a dataset that lacks a column of the contract, in one sentence that names what was found.

    Raises:
        ValueError: A needed column is missing.
    """
    found = columns_of(dataset)
    missing = [name for name in needed if name not in found]
    if missing:
        raise ValueError(
            f"{stage} needs the columns {', '.join(needed)}; missing: {', '.join(missing)}; "
            f"found: {', '.join(found)}. Rename or map the columns first"
        )


def load_rows(
    path: str | Path, image_root: str | Path | None = None, streaming: bool = False
) -> Dataset | IterableDataset:
    """Open a JSONL file of rows; pictures are read when a row is, not before.

    Args:
        path (`str` or `Path`): JSONL file; each line has at least `query` and `positive`, or `text` for stage 1.
            Rows without `task` are of one task, named after the file.
        image_root (`str` or `Path`, *optional*, defaults to the file's folder): Where relative picture paths start.
        streaming (`bool`): Read the file as training goes, instead of copying it into the cache first.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: When a row is read whose picture is missing or unreadable; it names file, row and picture.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no dataset file {path}: give a JSONL file of rows, or 'openmoji'")
    dataset = load_dataset("json", data_files=str(path), split="train", streaming=streaming)
    if "query" not in columns_of(dataset):
        return dataset
    return with_pictures(located(dataset, path.name), image_root or path.parent)


def located(dataset: Dataset | IterableDataset, name: str) -> Dataset | IterableDataset:
    """Add to each row where it stands, for errors, and its task where it has none: the dataset's name."""
    if isinstance(dataset, IterableDataset):
        return dataset.map(
            lambda row, number: {"task": name, **row, "where": f"{name}, row {number}"}, with_indices=True
        )
    if "task" not in dataset.column_names:
        dataset = dataset.add_column("task", [name] * len(dataset))
    return dataset.add_column("where", [f"{name}, row {number}" for number in range(len(dataset))])


def with_pictures(dataset: Dataset | IterableDataset, root: str | Path) -> Dataset | IterableDataset:
    """Have the pictures of [`located`] rows, still paths under `root`, read when a row is."""
    return when_read(dataset, partial(_read_batch, root=Path(root)))


def when_read(
    dataset: Dataset | IterableDataset, transform: Callable[[dict[str, list]], dict[str, list]]
) -> Dataset | IterableDataset:
    """Have a transform, from stored columns to those of rows, done when a row is read; a stream is shuffled first."""
    if isinstance(dataset, IterableDataset):
        shuffled = dataset.shuffle(seed=0, buffer_size=SHUFFLED)
        return shuffled.map(transform, batched=True, batch_size=1, remove_columns=columns_of(dataset))
    return dataset.with_transform(transform)


def _read_batch(batch: dict[str, list], root: Path) -> dict[str, list]:
    rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
    read = [read_row(row, root) for row in rows]
    return {name: [row[name] for row in read] for name in ROW}


def read_row(row: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """Read the pictures of one [`located`] row and fill in what it leaves out.

    Raises:
        ValueError: A picture is missing or unreadable; the message names dataset, row, item and picture.
    """
    where = row["where"]
    return {
        "query": _read_item(row["query"], f"{where}, query", root),
        "positive": _read_item(row["positive"], f"{where}, positive", root),
        "negatives": [
            _read_item(item, f"{where}, negative {number}", root)
            for number, item in enumerate(row.get("negatives") or [])
        ],
        "task": row["task"],
        "label": row.get("label"),
    }


def _read_item(item: Mapping[str, Any], where: str, root: Path) -> dict[str, Any]:
    item = {name: value for name, value in item.items() if value is not None}
    if "image" in item:
        pictures = item["image"] if isinstance(item["image"], list) else [item["image"]]
        item["image"] = [read_picture(picture, where, root) for picture in pictures]
    return item


def read_picture(picture: str | Mapping[str, Any], where: str, root: Path, upright: bool = False) -> Image.Image:
    """Open a path, or what `datasets` stores for a picture (its bytes and its path), as RGB.

    Of an animation this is the first frame; transparency is dropped, and of 16 bits a pixel the upper 8 are kept.

    Args:
        picture (`str` or `Mapping`): The picture.
        where (`str`): What errors begin with.
        root (`Path`): Folder that the path starts from.
        upright (`bool`): Turn the picture as its EXIF orientation says, as a viewer would show it.

    Raises:
        ValueError: The picture is missing or unreadable, in one sentence.
    """
    stored = picture if isinstance(picture, Mapping) else {"bytes": None, "path": picture}
    path = root / (stored["path"] or "")
    try:
        with Image.open(path if stored["bytes"] is None else BytesIO(stored["bytes"])) as opened:
            return _as_rgb(ImageOps.exif_transpose(opened) if upright else opened)
    except Exception as error:  # for broken files Pillow's decoders raise errors of many kinds
        absent = stored["bytes"] is None and not path.exists()
        # Pillow names the buffer in memory there, whose address is another one each time.
        problem = "its format is unknown" if isinstance(error, UnidentifiedImageError) else error
        reason = "it does not exist" if absent else f"it is not a readable picture ({problem})"
        name = "the picture" if stored["path"] is None else f"the picture {path}"
        raise ValueError(f"{where}: cannot read {name}: {reason}; mend the path or remove the row") from None


def _as_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode in ("I", "F"):  # Pillow would cut all values at 255
        raise ValueError(f"its pixels are numbers of mode {picture.mode}: save it with 8 or 16 bits a pixel")
    if picture.mode.startswith("I;16"):
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.mode in ("P", "PA") and "transparency" in picture.info:  # Pillow warns where it converts at once
        picture = picture.convert("RGBA")
    return picture.convert("RGB")


def content_hash(item: Mapping[str, Any]) -> int:
    """63-bit hash of what an item shows the model: equal items have equal hashes in every process."""
    digest = hashlib.blake2b(digest_size=8)
    item = as_item(item)
    for text in (item["instruction"], item["text"]):
        encoded = b"" if text is None else b"+" + text.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "big") + encoded)
    for image in item["images"]:
        picture = image.convert("RGB")  # as the model sees it: the bytes of a palette picture do not say its colours
        digest.update(f"{picture.size}".encode() + picture.tobytes())
    return int.from_bytes(digest.digest(), "big") >> 1


def label_hash(task: str, label: str | None) -> int:
    """63-bit hash of a label within its task; -1 where a row has none."""
    if label is None:
        return -1
    return int.from_bytes(hashlib.blake2b(f"{task}\0{label}".encode(), digest_size=8).digest(), "big") >> 1
