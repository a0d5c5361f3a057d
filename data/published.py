"""Datasets as their authors publish them: the sets by name, and each table with the columns that are read."""

from collections.abc import Collection, Iterable

from datasets import Dataset

from .fresh import load_fresh


def chosen_sets(names: Iterable[str] | None, sets: Collection[str], of: str) -> list[str]:
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


def open_published(
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
    rows = load_fresh(place, config, split=split)
    missing = [column for column in columns if column not in rows.column_names]
    if missing:
        raise ValueError(
            f"{name}: {place} lacks the column(s) {', '.join(missing)}; found: {', '.join(rows.column_names)}. "
            "Give the dataset as it is published"
        )
    return rows
