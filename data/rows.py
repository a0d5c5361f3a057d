"""The row contract of training data, and JSONL files in it.

A row has `query` (item), `positive` (item), `negatives` (list of items, may be empty), `task` (str) and `label` (str
or none; equal labels within a task mean the same answer). In a file a picture is a path, relative to the file's folder
or to `image_root`.
"""

import hashlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset
from PIL import Image

from ..processing_unime import as_item


ROW = ("query", "positive", "negatives", "task", "label")
TEXT_ROW = ("text",)


def require_columns(dataset: Any, needed: tuple[str, ...], stage: str) -> None:
    """Refuse a dataset that lacks a column of the contract, in one sentence that names what was found.

    Raises:
        ValueError: A needed column is missing.
    """
    missing = [name for name in needed if name not in dataset.column_names]
    if missing:
        raise ValueError(
            f"{stage} needs the columns {', '.join(needed)}; missing: {', '.join(missing)}; "
            f"found: {', '.join(dataset.column_names)}. Rename or map the columns first"
        )


def load_rows(path: str | Path, image_root: str | Path | None = None) -> Dataset:
    """Open a JSONL file of rows; pictures are read when a row is, not before.

    Args:
        path (`str` or `Path`): JSONL file; each line has at least `query` and `positive`, or `text` for stage 1.
            Rows without `task` are of one task, named after the file.
        image_root (`str` or `Path`, *optional*, defaults to the file's folder): Where relative picture paths start.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: When a row is read whose picture is missing or unreadable; it names file, row and picture.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no dataset file {path}: give a JSONL file of rows, or 'openmoji'")
    dataset = load_dataset("json", data_files=str(path), split="train")
    if "query" not in dataset.column_names:
        return dataset
    if "task" not in dataset.column_names:
        dataset = dataset.add_column("task", [path.name] * len(dataset))
    dataset = dataset.add_column("row", list(range(len(dataset))))
    return dataset.with_transform(partial(_read_pictures, source=path.name, root=Path(image_root or path.parent)))


def _read_pictures(batch: dict[str, list], source: str, root: Path) -> dict[str, list]:
    rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
    for row in rows:
        where = f"{source}, row {row.pop('row')}"
        for side in ("query", "positive"):
            row[side] = _read_item(row[side], f"{where}, {side}", root)
        negatives = row.get("negatives") or []
        row["negatives"] = [_read_item(item, f"{where}, negative {i}", root) for i, item in enumerate(negatives)]
        row.setdefault("label", None)
    return {name: [row[name] for row in rows] for name in ROW}


def _read_item(item: Mapping[str, Any], where: str, root: Path) -> dict[str, Any]:
    item = {name: value for name, value in item.items() if value is not None}
    if "image" in item:
        paths = item["image"] if isinstance(item["image"], list) else [item["image"]]
        item["image"] = [_read_picture(root / path, where) for path in paths]
    return item


def _read_picture(path: Path, where: str) -> Image.Image:
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except OSError as error:
        reason = "it does not exist" if not path.exists() else f"it is not a readable picture ({error})"
        raise ValueError(
            f"{where}: cannot read the picture {path}: {reason}; mend the path or remove the row"
        ) from None


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
