"""What a trainer asks of its rows, before the first step."""

from collections.abc import Sequence, Sized

from datasets import Dataset, IterableDataset


def check_rows(name: str, dataset: Dataset | IterableDataset, columns: Sequence[str], batch_size: int) -> None:
    """Look at the first row, and at how many there are if that is known.

    Args:
        name (`str`): What errors call the dataset.
        dataset (`Dataset` or `IterableDataset`): The rows.
        columns (`Sequence[str]`): What each row must have.
        batch_size (`int`): Rows of a batch, of which there must be one at least.

    Raises:
        ValueError: There is no row, it lacks a column, or the rows do not fill a batch.
    """
    # The first row, not `column_names`: a transform may make the rows from other columns.
    row = next(iter(dataset), None)
    if row is None:
        raise ValueError(f"{name} is empty")
    missing = [column for column in columns if column not in row]
    if missing:
        raise ValueError(
            f"{name} lacks the column(s) {', '.join(missing)}: this trainer needs {', '.join(columns)}, and found "
            f"{', '.join(row)}"
        )
    if isinstance(dataset, Sized) and len(dataset) < batch_size:
        raise ValueError(f"{name} has {len(dataset)} rows, fewer than one batch of {batch_size}: lower the batch size")
