"""What is wrong with the rows of a dataset, and their images, before a GPU is rented to train on them."""

from typing import Any

from datasets import Dataset
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as Rows
from tqdm.auto import tqdm

from .rows import content_hash


def read_or_explain(dataset: Dataset, row: int) -> dict[str, Any] | str:
    """Read a row with its images; what is wrong with it, in one sentence, if it cannot be trained on."""
    try:
        read = dataset[row]
    except ValueError as error:
        return str(error)
    if content_hash(read["query"]) == content_hash(read["positive"]):
        return f"{read.get('where') or f'row {row}'}: the query is its own positive; mend or remove the row"
    return read


class RowProblems(Rows):
    """What is wrong with each row, None if nothing is."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> str | None:
        found = read_or_explain(self.dataset, index)
        return found if isinstance(found, str) else None


def validate(dataset: Dataset, workers: int) -> dict[int, str]:
    """Read all rows, images included, and say of each bad one why, by its number.

    Args:
        dataset (`Dataset`): Rows of stage 2, as `sources.open_rows` opens them.
        workers (`int`): Processes that read at the same time; 0 for none beside this one.
    """
    loader = DataLoader(RowProblems(dataset), batch_size=64, num_workers=workers, collate_fn=list)
    found, done = {}, 0
    with tqdm(total=len(dataset), unit="row") as bar:
        for batch in loader:
            found |= {row: problem for row, problem in enumerate(batch, done) if problem is not None}
            done += len(batch)
            bar.update(len(batch))
            bar.set_postfix(bad=len(found))
    return found
