"""Row format of training data.

A row has seven columns:

- `query` (item);
- `positives` (list of items, at least one): right answers. `positive` (item) stands for a list of one. A row with
  several positives trains like as many rows with the same query and one positive each;
- `negatives` (list of items, may be empty);
- `scores` (list of `float` or `None`): how well each positive, then each negative, matches the query, as a judge sees
  it; `None` instead of the list or of a negative's score means not judged;
- `task` (`str`);
- `label` (`str` or `None`): equal labels within a task mean the same answer;
- `where` (`str`): provenance for errors, such as "pairs.jsonl, row 7".

On disk an image is stored as its path or its bytes. In the `content` of an item, which lists texts and images in their
order, it stands as `{"type": "image", "image": path}`.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from PIL import Image

from ..processing_unime import Item, item_hash, join_content, split_content, to_item_dict, to_rgb
from .image_files import read_image
from .row_forms import STORED_KEYS, standard_row


ROW_COLUMNS = ("query", "positives", "negatives", "scores", "task", "label", "where")
TEXT_COLUMNS = ("text",)
NO_VIDEOS = "training rows hold no videos: give the frames of the video as a list of images"
STREAM_SHUFFLE_BUFFER_ROWS = 10_000  # rows of a stream, with unread images, from which the next one is drawn


def column_names(dataset: Dataset | IterableDataset) -> list[str]:
    """Return the columns of a dataset; those of a stream may have to be read from its first row."""
    return dataset.column_names or list(next(iter(dataset), {}))


def require_columns(columns: Sequence[str], needed: Sequence[str], stage: str) -> None:
    """Check that a dataset has the needed columns.

    Args:
        columns (`Sequence[str]`): Columns of the dataset.
        needed (`Sequence[str]`): Columns that it must have.
        stage (`str`): What needs them, for the error.

    Raises:
        ValueError: A needed column is missing.
    """
    missing = [name for name in needed if name not in columns]
    if missing:
        raise ValueError(
            f"{stage} needs the columns {', '.join(needed)}; missing: {', '.join(missing)}; "
            f"found: {', '.join(columns) or 'none'}. Rename or map the columns first"
        )


def with_provenance(
    dataset: Dataset | IterableDataset, name: str, task: str | None = None
) -> Dataset | IterableDataset:
    """Add the columns `where` (name and row number, for errors) and `task` to each row.

    Args:
        dataset (`Dataset` or `IterableDataset`): The rows.
        name (`str`): Name of the dataset.
        task (`str`, *optional*): Column of the task; by default the task is the dataset's name.
    """

    def add_columns(batch: Mapping[str, list], indices: list[int]) -> dict[str, list]:
        tasks = [name] * len(indices) if task is None else batch[task]
        return {"task": tasks, "where": [f"{name}, row {index}" for index in indices]}

    # `map` keeps the columns on disk, so memory does not grow with the rows.
    return dataset.map(add_columns, with_indices=True, batched=True)


class TransformedStream(torch.utils.data.IterableDataset):
    """A stream of stored rows, such as paths of images, and the transform that makes rows of them.

    Iterating gives the rows. Who needs some of them only, such as one of several processes, iterates over `stored` and
    transforms those.

    Args:
        stored (`IterableDataset`): The stored rows.
        transform (`Callable`): Maps stored columns to row columns.
    """

    def __init__(self, stored: IterableDataset, transform: Callable[[dict[str, list]], dict[str, list]]):
        self.stored, self.transform = stored, transform

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which determines the order."""
        self.stored.set_epoch(epoch)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self.stored.iter(1):
            yield from rows_of_columns(self.transform(batch))


Rows = Dataset | IterableDataset | TransformedStream


def with_lazy_transform(
    dataset: Dataset | IterableDataset, transform: Callable[[dict[str, list]], dict[str, list]]
) -> Dataset | TransformedStream:
    """Apply a transform, from stored columns to row columns, whenever a row is read; a stream is shuffled first."""
    if isinstance(dataset, IterableDataset):
        return TransformedStream(dataset.shuffle(seed=0, buffer_size=STREAM_SHUFFLE_BUFFER_ROWS), transform)
    return dataset.with_transform(transform)


def with_images(dataset: Dataset | IterableDataset, root: str | Path) -> Dataset | TransformedStream:
    """Read the images of `with_provenance` rows, stored as paths under `root`, whenever a row is read."""
    return with_lazy_transform(dataset, partial(_read_batch, root=Path(root)))


def _read_batch(batch: dict[str, list], root: Path) -> dict[str, list]:
    return columns_of_rows([read_row(row, root) for row in rows_of_columns(batch)])


def rows_of_columns(columns: Mapping[str, list]) -> list[dict[str, Any]]:
    """Return the rows of a batch that has one list per column."""
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def columns_of_rows(rows: Sequence[Mapping[str, Any]]) -> dict[str, list]:
    """Return rows as one list per column, the form that a transform of `datasets` returns."""
    return {name: [row[name] for row in rows] for name in ROW_COLUMNS}


def check_text(text: Any, where: str) -> str:
    """Return the text of a stage-1 row after checking it.

    Raises:
        ValueError: It is not a string of valid Unicode.
    """
    if not isinstance(text, str):
        raise ValueError(f"{where}: 'text' must be a string, got {type(text).__name__}: fix or remove the row")
    return _check_item({"text": text}, where)["text"]


def parse_teacher_embedding(embedding: Any, where: str) -> np.ndarray:
    """Return the teacher's embedding of a text as an array of shape `(teacher dimensions,)` and type float32.

    Raises:
        ValueError: It is not a list of finite numbers.
    """
    try:
        array = np.asarray(embedding, dtype=np.float32)
    except (TypeError, ValueError):
        array = np.empty(0, dtype=np.float32)
    if array.ndim != 1 or not len(array) or not np.isfinite(array).all():
        raise ValueError(f"{where}: its teacher embedding is not a list of finite numbers: compute it again")
    return array


def read_row(row: Mapping[str, Any], root: Path | None) -> dict[str, Any]:
    """Read the images of one row and fill in its missing columns.

    Args:
        row (`Mapping`): The stored row in one of the forms of [`standard_row`]; it must have `task` and `where`.
        root (`Path`, *optional*): Folder that image paths start from and must not leave. Without it they start from
            the working folder and are not checked, as the caller's own code names them.

    Raises:
        ValueError: An item, the task or the label is malformed, or an image is missing or unreadable. The message
            names the dataset, the row, the item and the image.
    """
    where = row["where"]
    row = standard_row(row, where)
    positives, negatives, label = row["positives"], row["negatives"], row.get("label")
    for name in ("task", "label"):
        if not isinstance(row.get(name), str | int | None):
            raise ValueError(f"{where}: '{name}' must be a string, got {type(row[name]).__name__}: fix the row")
    return {
        "query": read_item(row.get("query"), f"{where}, query", root),
        "positives": [
            read_item(item, positive_place(where, n, len(positives)), root) for n, item in enumerate(positives)
        ],
        "negatives": [read_item(item, f"{where}, negative {n}", root) for n, item in enumerate(negatives)],
        "scores": check_scores(row.get("scores"), len(positives), len(negatives), where),
        "task": str(row["task"]),
        "label": None if label is None else str(label),
        "where": where,
    }


def positive_place(where: str, position: int, num_positives: int) -> str:
    """Return the name of a positive in errors."""
    return f"{where}, positive" if num_positives == 1 else f"{where}, positive {position}"


def check_scores(scores: Any, num_positives: int, num_negatives: int, where: str) -> list[float | None] | None:
    """Return the scores of a row's positives and negatives after checking them.

    Raises:
        ValueError: There is not exactly one score per positive and negative, a score is not a finite number, or a
            positive has none.
    """
    if scores is None:
        return None
    expected = f"one score for each of the {num_positives} positive(s), then for each of the {num_negatives} negatives"
    if not isinstance(scores, list) or len(scores) != num_positives + num_negatives:
        given = f"{len(scores)} scores" if isinstance(scores, list) else type(scores).__name__
        raise ValueError(f"{where}: 'scores' has {given}: give {expected}")
    for position, score in enumerate(scores):
        if score is None and position >= num_positives:
            continue
        if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
            raise ValueError(
                f"{where}: score {position} must be a finite number, got {score!r}; only negatives may have null, for "
                f"not judged: give {expected}"
            )
    return [None if score is None else float(score) for score in scores]


def read_item(item: Mapping[str, Any] | None, where: str, root: Path | None) -> dict[str, Any]:
    """Read the images of one item; see [`read_row`]."""
    if not isinstance(item, Mapping):
        raise ValueError(f"{where}: expected an item such as {{'text': ...}}, got {type(item).__name__}: fix the row")
    unknown = [key for key in item if key not in STORED_KEYS]
    if unknown == ["video"]:
        raise ValueError(f"{where}: {NO_VIDEOS}")
    if unknown:
        raise ValueError(
            f"{where}: unknown item key {unknown[0]!r}; valid keys are {', '.join(STORED_KEYS)}: rename or remove it"
        )
    item = {name: value for name, value in item.items() if value is not None}
    if "image" in item:
        stored = item["image"] if isinstance(item["image"], list) else [item["image"]]
        item["image"] = _read_images(stored, where, root)
    if "content" in item:
        try:
            content, stored = split_content(item["content"])
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        if any(isinstance(part, tuple) for part in content):
            raise ValueError(f"{where}: {NO_VIDEOS}")
        item["content"] = join_content(content, _read_images(stored, where, root))
    return _check_item(item, where)


def _read_images(stored: list[Any], where: str, root: Path | None) -> list[Image.Image]:
    for image in stored:
        if not isinstance(image, str | Mapping | Image.Image):
            raise ValueError(f"{where}: 'image' must be a path or a list of them, got {type(image).__name__}")
    return [image if isinstance(image, Image.Image) else read_image(image, where, root) for image in stored]


def _check_item(item: dict[str, Any], where: str) -> dict[str, Any]:
    try:
        to_item_dict(item)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    return item


def change_images(item: Item, change: Callable[[Image.Image], Image.Image]) -> Item:
    """Return an item with changed images; its texts, its instruction and the order stay."""
    parts = to_item_dict(item)
    if not parts["images"]:
        return item
    images = [change(image) for image in parts["images"]]
    if isinstance(item, Mapping) and item.get("content") is None and item.get("video") is None:
        return {**item, "image": images}
    return {"content": join_content(parts["content"], images), "instruction": parts["instruction"]}


def content_hashes(item: Item) -> tuple[int, int]:
    """Return 63-bit hashes of an item and of its content, which are its text and images without its instruction.

    Equal items have equal hashes in every process. Two items with the same content differ at most in how the model is
    asked to represent it, so neither is a wrong answer where the other is a right one.
    """
    normalized = to_item_dict(item)
    shown = {"instruction": None, "images": [to_rgb(image) for image in normalized["images"]]}
    content = item_hash(normalized | shown)
    instruction = normalized["instruction"]
    return (content if instruction is None else _text_hash(f"{content}\0{instruction}")), content


def content_hash(item: Item) -> int:
    """Return a 63-bit hash of what an item shows the model, its instruction included."""
    return content_hashes(item)[0]


def label_hash(task: str, label: str | None) -> int:
    """Return a 63-bit hash of a label within its task, or -1 if there is no label."""
    return -1 if label is None else _text_hash(f"{task}\0{label}")


def task_hash(task: str) -> int:
    """Return a 63-bit hash of a task's name."""
    return _text_hash(task)


def _text_hash(text: str) -> int:
    digest = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
