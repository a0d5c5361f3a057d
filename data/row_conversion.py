"""Datasets and lists as people have them, as training rows."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import datasets
import torch
from datasets import Dataset, IterableDataset

from .rows import (
    ROW_COLUMNS,
    TransformedStream,
    check_text,
    columns_of_rows,
    read_row,
    rows_of_columns,
    with_provenance,
)


Transform = Callable[[dict[str, list]], dict[str, list]]


def as_rows(dataset: Any, name: str) -> Any:
    """Make training rows of a dataset or of a list of rows, see [`standard_row`]; images are read when a row is read.

    Args:
        dataset (`Dataset`, `IterableDataset` or `Sequence` of `dict`): The rows. Rows that `unime.data` has opened
            stay as they are. Relative paths of images start from the working folder.
        name (`str`): Name of the dataset: in errors, and as the task of rows without `task`.

    Returns:
        [`Rows`] or [`ConvertedRows`]: The rows; those of a `Dataset` are a `Dataset`, those of a list a map-style one.

    Raises:
        ValueError: The dataset is empty. Later, when a row is read: it is malformed, or its image is missing or
            unreadable.
    """
    if isinstance(dataset, TransformedStream):
        return dataset
    classes: dict[str, list[str]] = {}
    if isinstance(dataset, IterableDataset) or isinstance(dataset, Dataset) and dataset.format["type"] is None:
        classes = _class_names(dataset)
        dataset = _with_stored_images(dataset)
    first = next(iter(dataset), None)
    if first is None:
        raise ValueError(f"{name} is empty")
    if not isinstance(first, Mapping):
        raise ValueError(
            f"{name} consists of {type(first).__name__} instead of rows: give each row as a dict, such as "
            "{'query': ..., 'positive': ...}"
        )
    if set(ROW_COLUMNS) <= first.keys():
        return dataset
    if isinstance(dataset, IterableDataset):
        stored = with_provenance(dataset, name, "task" if "task" in first else None)
        return TransformedStream(stored, partial(_read_batch, name=name, classes=classes))
    if isinstance(dataset, Dataset) and dataset.format["type"] in (None, "custom"):
        # Its stored columns stay within reach, such as the tasks for task blocks.
        given, render = dataset.column_names, dataset.format["format_kwargs"].get("transform")
        dataset = dataset.with_format(None)
        if "task" not in given:
            dataset = dataset.add_column("task", [name] * len(dataset))
        if "where" not in given:
            dataset = dataset.add_column("where", [f"{name}, row {number}" for number in range(len(dataset))])
        if render is not None:
            render = partial(_render, render=render, columns=given)
        return dataset.with_transform(partial(_read_batch, name=name, classes=classes, render=render))
    return ConvertedRows(dataset, name)


def as_texts(dataset: Any, name: str) -> Any:
    """Return the rows of stage 1; a list of texts becomes rows with the column `text`."""
    if isinstance(dataset, Sequence) and dataset and isinstance(dataset[0], str):
        return Dataset.from_dict(
            {"text": [check_text(text, f"{name}, row {row}") for row, text in enumerate(dataset)]}
        )
    return dataset


class ConvertedRows(torch.utils.data.Dataset):
    """Rows of a list, or of another map-style dataset, in the row format.

    Args:
        source (`Sequence`): The rows, see [`standard_row`].
        name (`str`): Name of the dataset.
    """

    def __init__(self, source: Sequence[Mapping[str, Any]], name: str):
        self.source, self.name = source, name

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.source[int(index)]
        return _read(row, self.name, f"{self.name}, row {index}")


def _with_stored_images(dataset: Any) -> Any:
    """Leave the decoding of images to `read_row`, whose errors name the row."""
    for column, feature in (dataset.features or {}).items():  # a stream may not know its features
        if isinstance(feature, datasets.Image):
            dataset = dataset.cast_column(column, datasets.Image(decode=False))
    return dataset


def _class_names(dataset: Dataset | IterableDataset) -> dict[str, list[str]]:
    features = (dataset.features or {}).items()
    return {column: feature.names for column, feature in features if isinstance(feature, datasets.ClassLabel)}


def _render(batch: dict[str, list], render: Transform, columns: Sequence[str]) -> dict[str, list]:
    """Return the rows that a transform makes of the columns that it knows, with their stored task and place."""
    rendered = render({column: batch[column] for column in columns})
    return {"task": batch["task"], "where": batch["where"]} | rendered


def _read_batch(
    batch: dict[str, list], name: str, classes: Mapping[str, list[str]], render: Transform | None = None
) -> dict[str, list]:
    rows = rows_of_columns(batch if render is None else render(batch))
    for row in rows:
        row.update({column: names[row[column]] for column, names in classes.items() if row[column] is not None})
    return columns_of_rows([_read(row, name, row["where"]) for row in rows])


def _read(row: Mapping[str, Any], name: str, where: str) -> dict[str, Any]:
    task = name if row.get("task") is None else row["task"]
    return read_row({**row, "task": task, "where": row.get("where") or where}, None)
