"""Read every row and picture that a recipe would train on, and report what is bad, before a GPU is rented.

    python recipes/check_data.py --config recipes/llava-1.6-7b/stage2.yaml --workers 8

Takes the data settings of a stage-2 recipe and passes all others over. Ends with status 1 if a row is bad.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from datasets import Dataset
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as Rows
from tqdm.auto import tqdm
from trl import TrlParser

from unime.data.rows import content_hash
from unime.data.sources import DataArguments, open_rows


@dataclass
class ScriptArguments:
    """How to read."""

    workers: int = field(default=2, metadata={"help": "Processes that read at the same time."})
    shown: int = field(default=100, metadata={"help": "Most problems to print; all are counted."})


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
    """Read all rows and list what is wrong."""
    loader = DataLoader(Problems(dataset), batch_size=64, num_workers=workers, collate_fn=list)
    found = []
    with tqdm(total=len(dataset), unit="row") as bar:
        for batch in loader:
            found += [problem for problem in batch if problem is not None]
            bar.update(len(batch))
            bar.set_postfix(bad=len(found))
    return found


def main(data: DataArguments, script: ScriptArguments, others: Sequence[str] = ()) -> None:
    dataset = open_rows(data)
    found = problems(dataset, script.workers)
    for problem in found[: script.shown]:
        print(problem)
    print(f"{len(found)} of {len(dataset)} rows are bad" if found else f"all {len(dataset)} rows can be trained on")
    sys.exit(bool(found))


if __name__ == "__main__":
    main(*TrlParser((DataArguments, ScriptArguments)).parse_args_and_config(return_remaining_strings=True))
