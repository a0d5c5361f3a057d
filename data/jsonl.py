"""JSONL files: rows for stage 2, texts for stage 1, and plain lines for a corpus.

Every line is parsed here with `json`. A table reader would turn texts that look like dates into times and numbers
into texts, and one bad line would make the whole file unreadable.
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
from .row_forms import standard_names
from .rows import (
    TEXT_COLUMNS,
    TransformedStream,
    check_text,
    columns_of_rows,
    parse_teacher_embedding,
    read_row,
    require_columns,
    with_lazy_transform,
)


logger = logging.getLogger(__name__)

_COLUMN_SAMPLE_LINES = 100  # first lines of a file, whose keys are its columns
_CACHE_BATCH_LINES = 1000  # lines copied into the cache at a time
_CACHE_FORMAT = 2  # part of the names of cached tables: raise it when they change


# Rows for stage 2


def load_rows(
    path: str | Path, image_root: str | Path | None = None, streaming: bool = False
) -> Dataset | TransformedStream:
    """Open a JSONL file of rows for stage 2; images are read when a row is read.

    Args:
        path (`str` or `Path`): JSONL file with a row on each line, in one of the forms of [`standard_row`]. The task
            of a line without `task` is the file name.
        image_root (`str` or `Path`, *optional*, defaults to the folder of the file): Folder that relative image
            paths start from.
        streaming (`bool`, *optional*, defaults to `False`): Read the file during training instead of copying it into
            the cache first.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: No line has a query and a positive. Later, when a row is read: it is malformed, or its image is
            missing or unreadable; the message names file, row and image.
    """
    path = _check_file(
        path, ("query", "positive"), ("negatives", "scores", "task", "label"), "stage 2", standard_names
    )
    features = Features(dict.fromkeys(("row", "task", "where"), Value("string")))
    dataset = _open_cached(_stored_rows, path, streaming, features)
    return with_lazy_transform(dataset, partial(_parse_rows, root=Path(image_root or path.parent)))


def _stored_rows(path: str, version: str) -> Iterator[dict[str, str]]:
    name = Path(path).name
    for index, (_, line) in enumerate(json_lines(path)):
        task = (parse_object(line) or {}).get("task")  # task blocks need it before the row is read
        task = name if task is None else str(task).encode(errors="backslashreplace").decode()
        yield {"row": line, "task": task, "where": f"{name}, row {index}"}


def _parse_rows(batch: dict[str, list[str]], root: Path) -> dict[str, list]:
    rows = []
    for line, stored_task, where in zip(batch["row"], batch["task"], batch["where"], strict=True):
        row = _require_object(line, where)
        task = stored_task if row.get("task") is None else row["task"]
        rows.append(read_row(row | {"task": task, "where": where}, root))
    return columns_of_rows(rows)


# Texts for stage 1


def load_texts(path: str | Path, streaming: bool = False) -> Dataset | IterableDataset:
    """Open a JSONL file of texts for stage 1: `text`, and the teacher's embedding `teacher` if the lines have it.

    Args:
        path (`str` or `Path`): JSONL file.
        streaming (`bool`, *optional*, defaults to `False`): Read the file during training instead of copying it into
            the cache first.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: A line has no text; the message names file and row.
    """
    path = _check_file(path, TEXT_COLUMNS, ("teacher",), "stage 1")
    features = {"text": Value("string")}
    if "teacher" in _columns(path):
        features["teacher"] = List(Value("float32"))
    return _open_cached(_stored_texts, path, streaming, Features(features), teacher="teacher" in features)


def _stored_texts(path: str, version: str, teacher: bool) -> Iterator[dict[str, Any]]:
    for index, (_, line) in enumerate(json_lines(path)):
        yield _parse_text(line, f"{Path(path).name}, row {index}", teacher)


def _parse_text(line: str, where: str, teacher: bool) -> dict[str, Any]:
    row = _require_object(line, where)
    text = {"text": check_text(row.get("text"), where)}
    return text | {"teacher": parse_teacher_embedding(row.get("teacher"), where)} if teacher else text


def text_problems(path: str | Path) -> Iterator[str | None]:
    """Yield, for each row of a file of texts, why it cannot be used for training, or `None`."""
    path = _check_file(path, TEXT_COLUMNS, ("teacher",), "stage 1")
    teacher = "teacher" in _columns(path)
    for index, (_, line) in enumerate(json_lines(path)):
        try:
            _parse_text(line, f"{path.name}, row {index}", teacher)
            yield None
        except ValueError as error:
            yield str(error)


# Lines of a corpus


def load_lines(path: Path) -> Dataset:
    """Open the lines of a file as memory-mapped columns `number`, which starts at 1, and `line`, as [`json_lines`]."""
    return _open_cached(_stored_lines, path, False, Features({"number": Value("int64"), "line": Value("string")}))


def _stored_lines(path: str, version: str) -> Iterator[dict[str, Any]]:
    return ({"number": number, "line": line} for number, line in json_lines(path))


def parse_object(line: str) -> dict[str, Any] | None:
    """Return the JSON object on a line, or `None` if there is none."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


# All three kinds of files


def _check_file(
    path: str | Path,
    required: tuple[str, ...],
    optional: tuple[str, ...],
    stage: str,
    names: Callable[[list[str]], list[str]] = list,
) -> Path:
    """Check that a file has the required columns, by the names that `names` gives to those of its first lines."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no dataset file {path}: give a JSONL file of rows, or 'openmoji'")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty: give a JSON object on each line")
    columns = names(_columns(path))
    require_columns(columns, required, stage)
    unused = [name for name in columns if name not in (*required, *optional)]
    if unused:
        logger.warning("%s: %s does not use the columns %s", path.name, stage, ", ".join(unused))
    return path


def _columns(path: Path) -> list[str]:
    objects = (parse_object(line) or {} for _, line in islice(json_lines(path), _COLUMN_SAMPLE_LINES))
    return list(dict.fromkeys(name for row in objects for name in row))


def json_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """Yield the number, which starts at 1, and the text of each line that is not blank.

    A line that is not UTF-8 becomes one that is not valid JSON.
    """
    with open(path, "rb") as file:
        for number, encoded in enumerate(file, start=1):
            line = encoded.decode("utf-8-sig", "backslashreplace")
            if line.strip():
                yield number, line


def _require_object(line: str, where: str) -> dict[str, Any]:
    row = parse_object(line)
    if row is None:
        raise ValueError(f"{where} is not a JSON object: fix or remove the line")
    return row


def _open_cached(
    generate: Callable[..., Iterator[dict[str, Any]]], path: Path, streaming: bool, features: Features, **settings: Any
) -> Dataset | IterableDataset:
    """Open what a generator makes of a file: as a stream, or as a cached table."""
    status = path.stat()
    arguments = {"path": str(path.resolve()), "version": f"{status.st_size}/{status.st_mtime_ns}"} | settings
    if streaming:
        return IterableDataset.from_generator(generate, features=features, gen_kwargs=arguments)

    def batches() -> Iterator[dict[str, list[Any]]]:
        rows = generate(**arguments)
        while batch := list(islice(rows, _CACHE_BATCH_LINES)):
            yield {name: [row[name] for row in batch] for name in features}

    # A changed file has another version, so it is cached under another name.
    file = f"jsonl-{Hasher.hash((_CACHE_FORMAT, generate.__name__, arguments))}.arrow"
    return cached_table(Path(datasets.config.HF_DATASETS_CACHE) / "unime" / file, features, batches)
