"""What is wrong with the rows of a dataset, and their pictures, before a GPU is rented to train on them."""

from datasets import Dataset
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as Rows
from tqdm.auto import tqdm

from .rows import content_hash


class Problems(Rows):
    """What is wrong with each row, None if nothing is."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> str | None:
        try:
            row = self.dataset[index]
        except ValueError as error:
            return str(error)
        items = {"query": row["query"], "positive": row["positive"]}
        items |= {f"negative {number}": negative for number, negative in enumerate(row["negatives"])}
        contents = {}
        for name, item in items.items():
            try:
                contents[name] = content_hash(item)
            except ValueError as error:
                return f"row {index} of task {row['task']}, {name}: {error}"
        if contents["query"] == contents["positive"]:
            return f"row {index} of task {row['task']}: the query is its own positive"
        return None


def problems(dataset: Dataset, workers: int) -> list[str]:
    """Read all rows, pictures included, and say of each bad one which it is and why.

    Args:
        dataset (`Dataset`): Rows of stage 2, as `sources.open_rows` opens them.
        workers (`int`): Processes that read at the same time; 0 for none beside this one.
    """
    loader = DataLoader(Problems(dataset), batch_size=64, num_workers=workers, collate_fn=list)
    found = []
    with tqdm(total=len(dataset), unit="row") as bar:
        for batch in loader:
            found += [problem for problem in batch if problem is not None]
            bar.update(len(batch))
            bar.set_postfix(bad=len(found))
    return found
