"""Metadata files of a folder of images: `metadata.jsonl`, `.csv` or `.parquet`, as the image folders of `datasets`."""

import csv
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from ..data.jsonl import json_lines, parse_object


METADATA_FILES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
FILE_NAME = "file_name"
NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?", re.ASCII)  # not 007, which is a name

Rows = Iterator[tuple[str, dict[str, Any] | None]]  # with their places in the file


def read_metadata(folder: Path, files: Iterable[str], text: str) -> dict[str, dict[str, Any]]:
    """Read the metadata of a folder.

    Args:
        folder (`Path`): The folder.
        files (`Iterable[str]`): Its files of metadata, as relative paths.
        text (`str`): Column of the texts.

    Returns:
        `dict[str, dict]`: The other columns of each file, by its relative path.

    Raises:
        ValueError: A file of metadata is malformed, or two rows name the same file.
    """
    metadata: dict[str, dict[str, Any]] = {}
    for path in (folder / file for file in files):
        for place, row in _rows(path, text):
            try:
                name = (path.parent / row.pop(FILE_NAME)).relative_to(folder).as_posix()  # type: ignore[union-attr]
            except (ValueError, KeyError, TypeError, AttributeError):
                expected = "an object" if path.suffix == ".jsonl" else "a row"
                raise ValueError(f"{path}, {place}: expected {expected} with a relative `{FILE_NAME}`") from None
            if name in metadata:
                raise ValueError(f"{path}, {place} names the file {name} again: remove one of the two")
            metadata[name] = cast(dict[str, Any], row)
    return metadata


def _rows(path: Path, text: str) -> Rows:
    if path.suffix == ".jsonl":
        return ((f"line {number}", parse_object(line)) for number, line in json_lines(path))
    return _csv_rows(path, text) if path.suffix == ".csv" else _parquet_rows(path)


def _csv_rows(path: Path, text: str) -> Rows:
    """Read a CSV file; a column whose values are all numbers has numbers, except for names and texts."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            rows = [(reader.line_num, row) for row in reader]
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as CSV in UTF-8 ({error}): fix or remove it") from None
    numeric = {
        name
        for name in reader.fieldnames or ()
        if name not in (FILE_NAME, text) and all(NUMBER.fullmatch(row[name]) for _, row in rows if row[name])
    }
    for number, row in rows:
        if None in row:
            raise ValueError(f"{path}, line {number} has more values than columns: quote values that contain commas")
        yield (
            f"line {number}",
            {
                name: (json.loads(value) if name in numeric else value) if value else None
                for name, value in row.items()
            },
        )


def _parquet_rows(path: Path) -> Rows:
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(
            f"{path} cannot be read as Parquet ({str(error).splitlines()[0]}): fix or remove it"
        ) from None
    binary = [field.name for field in table.schema if "binary" in str(field.type)]  # not metadata
    for index, row in enumerate(table.drop_columns(binary).to_pylist()):
        # Dates and decimals become texts.
        yield f"row {index}", json.loads(json.dumps(row, default=str))
