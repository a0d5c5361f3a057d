"""Tables and JSON files in their published layout, checked when they are opened."""

import json
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from .dataset_loading import load_table


def select_subsets(names: Iterable[str] | None, available: Collection[str], dataset: str) -> list[str]:
    """Return the names of the subsets to open: all available ones if no names are given.

    Args:
        names (`Iterable[str]`, *optional*): Requested subsets.
        available (`Collection[str]`): Names of all subsets.
        dataset (`str`): Name of the dataset, for errors.

    Raises:
        ValueError: A name is unknown.
    """
    names = list(names or available)
    for name in names:
        if name not in available:
            raise ValueError(f"unknown subset {name!r} of {dataset}: choose from {', '.join(available)}")
    return names


def open_hub_table(
    name: str, source: str, columns: Iterable[str], config: str | None = None, split: str = "test"
) -> Dataset:
    """Open a table and check that it has the needed columns.

    Args:
        name (`str`): Name of the table, for errors.
        source (`str`): Hub id, a folder with the same layout, or a JSONL file with the rows of one configuration and
            split.
        columns (`Iterable[str]`): Needed columns.
        config (`str`, *optional*): Configuration, as in `datasets.load_dataset`.
        split (`str`, *optional*, defaults to `"test"`): Split, as in `datasets.load_dataset`.

    Raises:
        ValueError: A column is missing; the message lists the columns that exist.
    """
    if Path(source).is_file():
        table = load_table("json", data_files=source, split="train")
    else:
        table = load_table(source, config, split=split)
    missing = [column for column in columns if column not in table.column_names]
    if missing:
        raise ValueError(
            f"{name}: {source} lacks the column(s) {', '.join(missing)}; found: {', '.join(table.column_names)}. "
            "Use the dataset as published"
        )
    return table


def check_text_columns(name: str, table: Dataset, single: Iterable[str] = (), several: Iterable[str] = ()) -> None:
    """Check that columns of a table hold texts in every row.

    Args:
        name (`str`): Name of the table, for errors.
        table (`Dataset`): The table.
        single (`Iterable[str]`, *optional*): Columns with one text per row.
        several (`Iterable[str]`, *optional*): Columns with a list of texts per row.

    Raises:
        ValueError: A column has another type, or a text is missing; the message names the row.
    """
    for column, listed in (*((column, False) for column in single), *((column, True) for column in several)):
        values, expected = table.data.column(column), "a list of texts" if listed else "a text"
        is_list = pa.types.is_list(values.type) or pa.types.is_large_list(values.type)
        text = values.type.value_type if is_list else values.type
        if is_list != listed or not (pa.types.is_string(text) or pa.types.is_large_string(text)):
            raise ValueError(
                f"{name}: column {column} holds {values.type}, not {expected}: use the dataset as published"
            )
        if values.null_count or (listed and pc.list_flatten(values).null_count):
            missing = (value is None or (listed and None in value) for value in table[column])
            row = next(index for index, is_missing in enumerate(missing) if is_missing)
            raise ValueError(f"{name}, row {row}: {column} lacks {expected}: use the dataset as published")


def read_json(name: str, path: str | Path, kind: type) -> Any:
    """Read a JSON file.

    Args:
        name (`str`): Name of the file's dataset, for errors.
        path (`str` or `Path`): The file.
        kind (`type`): Expected type of its content: `list` or `dict`.

    Raises:
        ValueError: The file does not exist, is not JSON, or holds another type.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{name}: there is no file {path}: use the file as published")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{name}: {path} is not valid JSON ({error}): use the file as published") from None
    if not isinstance(content, kind):
        raise ValueError(
            f"{name}: {path} holds a {type(content).__name__}, not a {kind.__name__}: use the file as published"
        )
    return content
