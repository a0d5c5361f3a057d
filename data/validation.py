"""Validation of training data before training starts: bad rows, unreadable images, and queries of several rows."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

from datasets import Dataset
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from tqdm.auto import tqdm

from .row_forms import row_positives
from .rows import check_scores, content_hash, content_hashes


class RowContents(NamedTuple):
    """Hashes of the contents of a good row, and its task."""

    query: int
    task: str
    positives: frozenset[int]
    negatives: frozenset[int]


def read_or_explain(dataset: Dataset, index: int) -> dict[str, Any] | str:
    """Return a row with its images, or the reason why it cannot be used for training."""
    try:
        row = dataset[index]
    except ValueError as error:
        return str(error)
    where = row.get("where") or f"row {index}"
    try:
        positives = row_positives(row, where)
        check_scores(row.get("scores"), len(positives), len(row["negatives"]), where)
    except ValueError as error:
        return str(error)
    if content_hash(row["query"]) in map(content_hash, positives):
        return f"{where}: the query equals its positive; fix or remove the row"
    return row


class CheckedRows(TorchDataset):
    """Dataset of the contents of each row, or of the reason why it cannot be used for training."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> RowContents | str:
        row = read_or_explain(self.dataset, index)
        if isinstance(row, str):
            return row
        _, query = content_hashes(row["query"])
        positives, negatives = (
            frozenset(content for _, content in map(content_hashes, items))
            for items in (row_positives(row, f"row {index}"), row["negatives"])
        )
        return RowContents(query, row["task"], positives, negatives)


def validate(dataset: Dataset, workers: int) -> tuple[dict[int, str], dict[str, int]]:
    """Read all rows with their images.

    Args:
        dataset (`Dataset`): Stage-2 rows, as `open_rows` returns them.
        workers (`int`): Number of processes that read at the same time; 0 reads in this process.

    Returns:
        `tuple[dict[int, str], dict[str, int]]`: The reason for each bad row by its number, and the counts of
            [`count_shared_queries`] over the good rows.
    """
    loader = DataLoader(CheckedRows(dataset), batch_size=64, num_workers=workers, collate_fn=list)
    problems: dict[int, str] = {}
    good: list[RowContents] = []
    num_read = 0
    with tqdm(total=len(dataset), unit="row") as bar:
        for batch in loader:
            for number, row in enumerate(batch, num_read):
                if isinstance(row, str):
                    problems[number] = row
                else:
                    good.append(row)
            num_read += len(batch)
            bar.update(len(batch))
            bar.set_postfix(bad=len(problems))
    return problems, count_shared_queries(good)


def count_shared_queries(rows: Sequence[RowContents]) -> dict[str, int]:
    """Count the rows whose query is part of other rows too.

    Training and mining know these relations and never use a right answer as a negative. Large counts are still worth a
    look: many rows with one query, or a negative that is right, may be a mistake in the data.

    Args:
        rows (`Sequence[RowContents]`): The rows.

    Returns:
        `dict[str, int]`: Number of rows with `several_positives` (another row has the same query content and task, and
            another positive), with `query_as_positive` (the query's content is the positive of another row), and with
            `right_negatives` (an explicit negative is a positive of the query, or the query itself).
    """
    right_answers: dict[tuple[int, str], set[int]] = defaultdict(set)
    for row in rows:
        right_answers[row.query, row.task] |= row.positives
    num_rows_with_positive = Counter(content for row in rows for content in row.positives)
    counts = {"several_positives": 0, "query_as_positive": 0, "right_negatives": 0}
    for row in rows:
        answers = right_answers[row.query, row.task]
        counts["several_positives"] += answers != row.positives
        counts["query_as_positive"] += num_rows_with_positive[row.query] > (row.query in row.positives)
        counts["right_negatives"] += not row.negatives.isdisjoint(answers | {row.query})
    return counts
