"""`rejected.jsonl`: bad rows and their reasons, written by `check-data` and mining, left out by training."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from datasets import Dataset

from ..storage.atomic_files import atomic_write
from .jsonl import json_lines


def write_rejected(path: Path, reasons: Mapping[int, str]) -> None:
    """Write one line per bad row: its number, counted from 0, and the reason; without bad rows the file is empty."""
    lines = [json.dumps({"row": row, "reason": reasons[row]}) + "\n" for row in sorted(reasons)]
    with atomic_write(path) as part:
        part.write_text("".join(lines))


def without_rejected(dataset: Dataset, path: str | Path) -> Dataset:
    """Remove the rows that a file lists.

    Args:
        dataset (`Dataset`): The rows, opened with the settings that the file was written with.
        path (`str` or `Path`): File written by `write_rejected`.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: A line is malformed, or lists a row that the dataset does not have.
    """
    rejected = set()
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path} of rejected rows: create it with `unime check-data`")
    for number, line in json_lines(path):
        try:
            row = json.loads(line)["row"]
            in_dataset = row in range(len(dataset))
        except (ValueError, KeyError, TypeError):
            raise ValueError(
                f"{path}, line {number} does not name a row: give a file written by `unime check-data`"
            ) from None
        if not in_dataset:
            raise ValueError(
                f"{path}, line {number} rejects row {row}, but the dataset has {len(dataset)}: open it with the "
                "settings that it was checked with"
            )
        rejected.add(row)
    return dataset.select(np.setdiff1d(np.arange(len(dataset)), sorted(rejected)))
