"""Datasets as their authors publish them: the sets by name, and each file with what is read of it."""

import json
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from .dataset_loading import load_table


def select_subsets(names: Iterable[str] | None, sets: Collection[str], of: str) -> list[str]:
    """Names of the sets to open, all where none are given.

    Args:
        names (`Iterable[str]`, *optional*): What was asked for.
        sets (`Collection[str]`): All there are.
        of (`str`): What they are sets of.

    Raises:
        ValueError: There is no such set.
    """
    names = list(names or sets)
    for name in names:
        if name not in sets:
            raise ValueError(f"there is no set {name!r} of {of}: choose from {', '.join(sets)}")
    return names


def open_hub_table(
    name: str, place: str, columns: Iterable[str], config: str | None = None, split: str = "test"
) -> Dataset:
    """Open a table and see that it has the columns that are read.

    Args:
        name (`str`): What errors call it.
        place (`str`): Hub id, or a folder with the same layout.
        columns (`Iterable[str]`): What it must have.
        config, split (`str`, *optional*): As `datasets.load_dataset` takes them.

    Raises:
        ValueError: A column is missing; the message names those found.
    """
    rows = load_table(place, config, split=split)
    missing = [column for column in columns if column not in rows.column_names]
    if missing:
        raise ValueError(
            f"{name}: {place} lacks the column(s) {', '.join(missing)}; found: {', '.join(rows.column_names)}. "
            "Give the dataset as it is published"
        )
    return rows


def check_text_columns(name: str, rows: Dataset, single: Iterable[str] = (), several: Iterable[str] = ()) -> None:
    """See that columns of a table hold texts, in every row.

    Args:
        name (`str`): What errors call it.
        rows (`Dataset`): The table, as it was opened.
        single (`Iterable[str]`, *optional*): Columns that hold one text a row.
        several (`Iterable[str]`, *optional*): Columns that hold a list of texts a row.

    Raises:
        ValueError: A column is of another type, or a text is missing; the message names the row.
    """
    for column, listed in (*((column, False) for column in single), *((column, True) for column in several)):
        values, wanted = rows.data.column(column), "a list of texts" if listed else "a text"
        is_list = pa.types.is_list(values.type) or pa.types.is_large_list(values.type)
        text = values.type.value_type if is_list else values.type
        if is_list != listed or not (pa.types.is_string(text) or pa.types.is_large_string(text)):
            raise ValueError(f"{name}: its column {column} holds {values.type}, not {wanted}: give it as published")
        if values.null_count or (listed and pc.list_flatten(values).null_count):
            missing = (value is None or (listed and None in value) for value in rows[column])
            row = next(number for number, found in enumerate(missing) if found)
            raise ValueError(f"{name}, row {row}: {column} lacks {wanted}: give the dataset as it is published")


def read_json(name: str, path: str | Path, kind: type) -> Any:
    """Read a JSON file.

    Args:
        name (`str`): What errors call it.
        path (`str` or `Path`): The file.
        kind (`type`): What it must hold: `list` or `dict`.

    Raises:
        ValueError: There is no such file, or it holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{name}: there is no file {path}: give the file as it is published")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{name}: {path} is no JSON ({error}): give the file as it is published") from None
    if not isinstance(found, kind):
        raise ValueError(
            f"{name}: {path} holds a {type(found).__name__}, not a {kind.__name__}: give the file as it is published"
        )
    return found
