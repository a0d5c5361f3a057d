"""Validation of training data: finds bad rows and unreadable images before training starts."""

from typing import Any

from datasets import Dataset
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from tqdm.auto import tqdm

from .rows import content_hash


def read_or_explain(dataset: Dataset, index: int) -> dict[str, Any] | str:
    """Return a row with its images, or the reason why it cannot be used for training."""
    try:
        row = dataset[index]
    except ValueError as error:
        return str(error)
    if content_hash(row["query"]) == content_hash(row["positive"]):
        return f"{row.get('where') or f'row {index}'}: the query equals its positive; fix or remove the row"
    return row


class RowProblems(TorchDataset):
    """Dataset of the problem of each row, `None` for a good row."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> str | None:
        row = read_or_explain(self.dataset, index)
        return row if isinstance(row, str) else None


def validate(dataset: Dataset, workers: int) -> dict[int, str]:
    """Read all rows with their images, and return the reason for each bad row by its number.

    Args:
        dataset (`Dataset`): Stage-2 rows, as `open_rows` returns them.
        workers (`int`): Number of processes that read at the same time; 0 reads in this process.
    """
    loader = DataLoader(RowProblems(dataset), batch_size=64, num_workers=workers, collate_fn=list)
    problems, num_read = {}, 0
    with tqdm(total=len(dataset), unit="row") as bar:
        for batch in loader:
            problems |= {row: problem for row, problem in enumerate(batch, num_read) if problem is not None}
            num_read += len(batch)
            bar.update(len(batch))
            bar.set_postfix(bad=len(problems))
    return problems
