"""The row contract of training data.

A row has `query` (item), `positive` (item), `negatives` (list of items, may be empty), `task` (str), `label` (str or
none; equal labels within a task mean the same answer) and `where` (str, such as "pairs.jsonl, row 7"; what errors call
it, may be left out). What is stored of an image is its path or its bytes.
"""

import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, IterableDataset

from ..processing_unime import item_hash, to_item_dict, to_rgb
from .image_files import read_image


ROW_COLUMNS = ("query", "positive", "negatives", "task", "label", "where")
TEXT_COLUMNS = ("text",)
ITEM_COLUMNS = ("text", "image", "instruction")
STREAM_SHUFFLE_BUFFER_ROWS = 10_000  # rows of a stream, their images unread, among which the next one is drawn


def column_names(dataset: Dataset | IterableDataset) -> list[str]:
    """The columns of a dataset; a stream may know them only from its first row."""
    return dataset.column_names or list(next(iter(dataset), {}))


def require_columns(dataset: Dataset | IterableDataset, needed: tuple[str, ...], stage: str) -> None:
    """Refuse a dataset that lacks a column of the contract, in one sentence that names what was found.

    Raises:
        ValueError: A needed column is missing.
    """
    found = column_names(dataset)
    missing = [name for name in needed if name not in found]
    if missing:
        raise ValueError(
            f"{stage} needs the columns {', '.join(needed)}; missing: {', '.join(missing)}; "
            f"found: {', '.join(found)}. Rename or map the columns first"
        )


def with_provenance(
    dataset: Dataset | IterableDataset, name: str, task: str | None = None
) -> Dataset | IterableDataset:
    """Add to each row where it stands, for errors, and its task: of a column, or else the dataset's name."""

    def place(batch: Mapping[str, list], numbers: list[int]) -> dict[str, list]:
        tasks = [name] * len(numbers) if task is None else batch[task]
        return {"task": tasks, "where": [f"{name}, row {number}" for number in numbers]}

    # Kept on disk by `datasets`: a list in memory would grow with the rows.
    return dataset.map(place, with_indices=True, batched=True)


def with_images(dataset: Dataset | IterableDataset, root: str | Path) -> Dataset | IterableDataset:
    """Have the images of [`with_provenance`] rows, still paths under `root`, read when a row is."""
    return with_lazy_transform(dataset, partial(_read_batch, root=Path(root)))


def with_lazy_transform(
    dataset: Dataset | IterableDataset, transform: Callable[[dict[str, list]], dict[str, list]]
) -> Dataset | IterableDataset:
    """Have a transform, from stored columns to those of rows, done when a row is read; a stream is shuffled first."""
    if isinstance(dataset, IterableDataset):
        shuffled = dataset.shuffle(seed=0, buffer_size=STREAM_SHUFFLE_BUFFER_ROWS)
        return shuffled.map(transform, batched=True, batch_size=1, remove_columns=column_names(dataset))
    return dataset.with_transform(transform)


def _read_batch(batch: dict[str, list], root: Path) -> dict[str, list]:
    rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
    read = [read_row(row, root) for row in rows]
    return {name: [row[name] for row in read] for name in ROW_COLUMNS}


def check_text(text: Any, where: str) -> str:
    """The text of a row of stage 1.

    Raises:
        ValueError: It is none, or no string of valid Unicode.
    """
    if not isinstance(text, str):
        raise ValueError(f"{where}: 'text' must be a string, got {type(text).__name__}: mend it or remove the row")
    return _checked_item({"text": text}, where)["text"]


def parse_teacher_embedding(vector: Any, where: str) -> np.ndarray:
    """The teacher's embedding of a text, (dimensions,) float32.

    Raises:
        ValueError: It is no list of finite numbers.
    """
    try:
        numbers = np.asarray(vector, dtype=np.float32)
    except (TypeError, ValueError):
        numbers = np.empty(0)
    if numbers.ndim != 1 or not len(numbers) or not np.isfinite(numbers).all():
        raise ValueError(f"{where}: its teacher embedding is no list of finite numbers: compute it anew")
    return numbers


def read_row(row: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """Read the images of one [`with_provenance`] row and fill in what it leaves out.

    Raises:
        ValueError: An item, the task or the label is malformed, or an image is missing or unreadable; the message
            names dataset, row, item and image.
    """
    where, negatives, label = row["where"], row.get("negatives"), row.get("label")
    negatives = [] if negatives is None else negatives
    if not isinstance(negatives, list):
        raise ValueError(f"{where}: 'negatives' must be a list of items, got {type(negatives).__name__}: mend the row")
    for name in ("task", "label"):
        if not isinstance(row.get(name), str | int | None):
            raise ValueError(f"{where}: '{name}' must be a string, got {type(row[name]).__name__}: mend the row")
    return {
        "query": _read_item(row.get("query"), f"{where}, query", root),
        "positive": _read_item(row.get("positive"), f"{where}, positive", root),
        "negatives": [_read_item(item, f"{where}, negative {n}", root) for n, item in enumerate(negatives)],
        "task": str(row["task"]),
        "label": None if label is None else str(label),
        "where": where,
    }


def _read_item(item: Mapping[str, Any] | None, where: str, root: Path) -> dict[str, Any]:
    if not isinstance(item, Mapping):
        raise ValueError(f"{where}: expected an item such as {{'text': ...}}, got {type(item).__name__}: mend the row")
    unknown = [key for key in item if key not in ITEM_COLUMNS]
    if unknown:
        raise ValueError(
            f"{where}: an item has {', '.join(ITEM_COLUMNS)}, but no {unknown[0]!r}: rename or remove the key"
        )
    item = {name: value for name, value in item.items() if value is not None}
    if "image" in item:
        images = item["image"] if isinstance(item["image"], list) else [item["image"]]
        for image in images:
            if not isinstance(image, str | Mapping):
                raise ValueError(f"{where}: 'image' must be a path or a list of them, got {type(image).__name__}")
        item["image"] = [read_image(image, where, root) for image in images]
    return _checked_item(item, where)


def _checked_item(item: dict[str, Any], where: str) -> dict[str, Any]:
    try:
        to_item_dict(item)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    return item


def content_hash(item: Mapping[str, Any]) -> int:
    """63-bit hash of what an item shows the model: equal items have equal hashes in every process."""
    item = to_item_dict(item)
    return item_hash(item | {"images": [to_rgb(image) for image in item["images"]]})


def label_hash(task: str, label: str | None) -> int:
    """63-bit hash of a label within its task; -1 where a row has none."""
    if label is None:
        return -1
    encoded = f"{task}\0{label}".encode(errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(encoded, digest_size=8).digest(), "big") >> 1
