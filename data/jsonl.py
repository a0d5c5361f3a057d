"""JSONL files: rows for stage 2, texts for stage 1, lines of anything else, each taken as it is written.

Lines are parsed here, not by a table reader, which would make times of texts that look like dates, numbers into texts
and of one bad line an unreadable file.
"""

import json
import logging
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, Features, IterableDataset, List, Value
from datasets.fingerprint import Hasher

from ..storage.arrow_cache import cached_table
from .rows import ROW_COLUMNS, check_text, parse_teacher_embedding, read_row, with_lazy_transform


logger = logging.getLogger(__name__)

_CACHED_FEATURES = Features(dict.fromkeys(("row", "task", "where"), Value("string")))
_COLUMN_SAMPLE_LINES = 100  # lines whose keys say which columns a file has
_CACHE_BATCH_LINES = 1000  # lines that are copied into the cache at a time


def load_rows(
    path: str | Path, image_root: str | Path | None = None, streaming: bool = False
) -> Dataset | IterableDataset:
    """Open a JSONL file of rows for stage 2; images are read when a row is, not before.

    Args:
        path (`str` or `Path`): JSONL file; each line has at least `query` and `positive`. Rows without `task` are of
            one task, named after the file.
        image_root (`str` or `Path`, *optional*, defaults to the file's folder): Where relative image paths start.
        streaming (`bool`): Read the file as training goes, instead of copying it into the cache first.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: No line has `query` and `positive`. When a row is read: it is malformed, or its image is missing
            or unreadable; the message names file, row and image.
    """
    path = _check_file(path, ROW_COLUMNS[:2], ROW_COLUMNS[2:5], "stage 2")
    dataset = _open_cached(_stored_rows, path, streaming, _CACHED_FEATURES)
    return with_lazy_transform(dataset, partial(_read_lines, root=Path(image_root or path.parent)))


def load_texts(path: str | Path, streaming: bool = False) -> Dataset | IterableDataset:
    """Open a JSONL file of texts for stage 1: `text`, and the embedding `teacher` where the lines have it.

    Args:
        path (`str` or `Path`): JSONL file.
        streaming (`bool`): Read the file as training goes, instead of copying it into the cache first.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A line has no text; the message names file and row.
    """
    path = _check_file(path, ("text",), ("teacher",), "stage 1")
    features = {"text": Value("string")}
    if "teacher" in _columns(path):
        features["teacher"] = List(Value("float32"))
    return _open_cached(_texts, path, streaming, Features(features), teacher="teacher" in features)


def load_lines(path: Path) -> Dataset:
    """The lines of a file in a column `line`, mapped into memory; of bytes that are no UTF-8 no JSON can be read."""
    return _open_cached(_line_rows, path, False, Features({"line": Value("string")}))


def _check_file(path: str | Path, needed: tuple[str, ...], more: tuple[str, ...], stage: str) -> Path:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no dataset file {path}: give a JSONL file of rows, or 'openmoji'")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty: give a JSON object on each line")
    found = _columns(path)
    missing = [name for name in needed if name not in found]
    if missing:
        raise ValueError(
            f"{stage} needs the columns {', '.join(needed)}; missing: {', '.join(missing)}; found: "
            f"{', '.join(found) or 'no JSON object'}. Rename or map the columns first"
        )
    unread = [name for name in found if name not in (*needed, *more)]
    if unread:
        logger.warning("%s: the columns %s are no part of a row of %s", path.name, ", ".join(unread), stage)
    return path


def _columns(path: Path) -> list[str]:
    return list(
        dict.fromkeys(name for line in islice(_lines(path), _COLUMN_SAMPLE_LINES) for name in parse_object(line) or ())
    )


def _open_cached(
    make: Callable[..., Iterator[dict[str, Any]]], path: Path, streaming: bool, features: Features, **settings: Any
) -> Dataset | IterableDataset:
    status = path.stat()
    told = {"path": str(path.resolve()), "version": f"{status.st_size}/{status.st_mtime_ns}"} | settings
    if streaming:
        return IterableDataset.from_generator(make, features=features, gen_kwargs=told)

    def batches() -> Iterator[dict[str, list[Any]]]:
        rows = make(**told)
        while batch := list(islice(rows, _CACHE_BATCH_LINES)):
            yield {name: [row[name] for row in batch] for name in features}

    # Kept under all that it was made from: a changed file is another one.
    file = f"jsonl-{Hasher.hash((make.__name__, told))}.arrow"
    return cached_table(Path(datasets.config.HF_DATASETS_CACHE) / "unime" / file, features, batches)


def _lines(path: str | Path) -> Iterator[str]:
    with open(path, "rb") as file:
        for line in file:
            yield line.decode("utf-8-sig", "backslashreplace")  # bytes that are no UTF-8 make a line that is no JSON


def parse_object(line: str) -> dict[str, Any] | None:
    """The JSON object that a line holds; None if it holds none."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _object(line: str, where: str) -> dict[str, Any]:
    row = parse_object(line)
    if row is None:
        raise ValueError(f"{where} is no JSON object: mend or remove the line")
    return row


def _line_rows(path: str, version: str) -> Iterator[dict[str, str]]:
    return ({"line": line} for line in _lines(path))


def _stored_rows(path: str, version: str) -> Iterator[dict[str, str]]:
    name = Path(path).name
    for number, line in enumerate(_lines(path)):
        task = (parse_object(line) or {}).get("task")  # known before the row is read, as blocks of one task need it
        task = name if task is None else str(task).encode(errors="backslashreplace").decode()
        yield {"row": line, "task": task, "where": f"{name}, row {number}"}


def _read_lines(batch: dict[str, list[str]], root: Path) -> dict[str, list]:
    read = []
    for line, task, where in zip(batch["row"], batch["task"], batch["where"], strict=True):
        row = _object(line, where)
        own = row.get("task")
        read.append(read_row(row | {"task": task if own is None else own, "where": where}, root))
    return {name: [row[name] for row in read] for name in ROW_COLUMNS}


def _texts(path: str, version: str, teacher: bool) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(_lines(path)):
        where = f"{Path(path).name}, row {number}"
        row = _object(line, where)
        text = {"text": check_text(row.get("text"), where)}
        yield text | {"teacher": parse_teacher_embedding(row.get("teacher"), where)} if teacher else text
