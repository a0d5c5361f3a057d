"""`rejected.jsonl`: the bad rows of a dataset with the reasons, written by a long job and left out by the next one."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from datasets import Dataset

from ..storage.atomic_files import atomic_write


def write_rejected(path: Path, reasons: Mapping[int, str]) -> None:
    """Write a line for each bad row: its number, counted from 0, and why it is bad; no rows make an empty file."""
    lines = [json.dumps({"row": row, "reason": reasons[row]}) + "\n" for row in sorted(reasons)]
    with atomic_write(path) as part:
        part.write_text("".join(lines))


def without_rejected(dataset: Dataset, path: str | Path) -> Dataset:
    """Leave out the rows that a file lists.

    Args:
        dataset (`Dataset`): The rows, opened with the settings that the file was written with.
        path (`str` or `Path`): What [`write_rejected`] wrote.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A line is malformed, or names a row that the dataset does not have.
    """
    rejected = set()
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path} of rejected rows: make it with `unime check-data`")
    for number, line in enumerate(Path(path).read_bytes().splitlines(), start=1):
        try:
            row = json.loads(line)["row"]
            known = row in range(len(dataset))
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{path}, line {number} names no row: give what `unime check-data` wrote") from None
        if not known:
            raise ValueError(
                f"{path}, line {number} rejects row {row}, but the dataset has {len(dataset)}: open it with the "
                "settings that it was checked with"
            )
        rejected.add(row)
    return dataset.select(np.setdiff1d(np.arange(len(dataset)), sorted(rejected)))
