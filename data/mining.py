"""Hard-negative mining over a whole dataset: search, filters, and rows with mined negatives.

The result of mining is a list of row numbers per row: the positives of those rows are its negatives. The file is
therefore small, images are stored once, and any dataset that can be trained on can be mined.
"""

import json
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from ..extras import require_extra


def mine_hard_negatives(
    queries: np.ndarray,
    candidates: np.ndarray,
    positives: np.ndarray,
    labels: np.ndarray,
    *,
    num_negatives: int,
    range_min: int = 0,
    range_max: int = 100,
    max_score: float | None = None,
    absolute_margin: float | None = None,
    relative_margin: float | None = None,
) -> tuple[list[list[int]], Counter]:
    """Find the hardest candidates of each query that are unlikely to be correct answers.

    The settings have the names and meaning of `mine_hard_negatives` in sentence-transformers. Scores are cosine
    similarities, from -1 to 1.

    Args:
        queries (`np.ndarray` of shape `(queries, dimensions)`): Unit vectors.
        candidates (`np.ndarray` of shape `(candidates, dimensions)`): Unit vectors of distinct contents.
        positives (`np.ndarray` of shape `(queries,)`): Index in `candidates` of each query's positive.
        labels (`np.ndarray` of shape `(queries,)`): Label of each query; equal labels mean the same answer, and -1
            means none. A candidate has the labels of all queries whose positive it is.
        num_negatives (`int`): Maximum number of negatives per query. 1 to 10 are common.
        range_min (`int`, *optional*, defaults to 0): Rank of the first candidate to consider, counted from 0 without
            the positive. Values up to about 30 skip the candidates that are most likely correct answers.
        range_max (`int`, *optional*, defaults to 100): Rank at which to stop (exclusive); larger than
            `range_min + num_negatives`, so that filtered candidates can be replaced.
        max_score (`float`, *optional*): Maximum score of a negative. 0.8 to 0.95 are common.
        absolute_margin (`float`, *optional*): Minimum difference by which a negative scores below the positive.
            0 to 0.2 are common.
        relative_margin (`float`, *optional*): Minimum difference as a share of the positive's score: 0.05 keeps
            negatives that score at most 95% of the positive. 0 to 0.1 are common.

    Returns:
        `tuple[list[list[int]], Counter]`: For each query at most `num_negatives` indices of candidates, hardest
        first; and how many candidates were looked at, taken, and dropped for which reason (the first that applies).
    """
    require_extra("mining", "faiss")

    import faiss

    index = faiss.IndexFlatIP(candidates.shape[1])
    index.add(np.ascontiguousarray(candidates, dtype=np.float32))
    scores, ranked = index.search(np.ascontiguousarray(queries, dtype=np.float32), min(range_max + 1, len(candidates)))
    positive_scores = (queries * candidates[positives]).sum(axis=1)
    candidate_labels: list[set[int]] = [set() for _ in candidates]
    for candidate, label in zip(positives, labels, strict=True):
        candidate_labels[candidate].add(int(label))

    mined, report = [], Counter({"looked at": 0, "taken": 0})
    for query, positive in enumerate(positives):
        others = [
            (candidate, score)
            for candidate, score in zip(ranked[query], scores[query], strict=True)
            if candidate != positive
        ]
        taken: list[int] = []
        for candidate, score in others[range_min:range_max]:
            if len(taken) == num_negatives:
                break
            report["looked at"] += 1
            if labels[query] != -1 and int(labels[query]) in candidate_labels[candidate]:
                report["dropped: same label"] += 1
            elif max_score is not None and score > max_score:
                report["dropped: above max_score"] += 1
            elif absolute_margin is not None and score > positive_scores[query] - absolute_margin:
                report["dropped: within the absolute margin"] += 1
            elif relative_margin is not None and score > positive_scores[query] * (1 - relative_margin):
                report["dropped: within the relative margin"] += 1
            else:
                report["taken"] += 1
                taken.append(int(candidate))
        report["queries with fewer than num_negatives"] += len(taken) < num_negatives
        mined.append(taken)
    return mined, report


def with_mined_negatives(dataset: Dataset, path: str | Path) -> Dataset:
    """Add to each row the negatives that `recipes/mine.py` found for it.

    Args:
        dataset (`Dataset`): The rows that were mined, opened with the same settings.
        path (`str` or `Path`): The file of mined negatives: one line per row, each a list of the numbers of the rows
            whose positives are its negatives.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file was mined from another number of rows, or a line is malformed.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path} of mined negatives: create it with recipes/mine.py")
    lines = Path(path).read_bytes().splitlines()
    if len(lines) != len(dataset):
        raise ValueError(
            f"{path} holds negatives for {len(lines)} rows, but the dataset has {len(dataset)}: open it with the "
            "settings that it was mined with"
        )
    read = dataset.format["format_kwargs"]["transform"]
    mined = [_row_numbers(line, f"{path}, line {number}", len(dataset)) for number, line in enumerate(lines, start=1)]
    with_column = dataset.with_format(None).add_column("mined", mined)
    return with_column.with_transform(partial(_add_mined, read=read, source=dataset))


def _row_numbers(line: bytes, where: str, num_rows: int) -> list[int]:
    try:
        numbers = json.loads(line)
        if all(isinstance(number, int) and 0 <= number < num_rows for number in numbers):
            return numbers
    except (ValueError, TypeError):
        pass
    raise ValueError(f"{where} is not a list of numbers of the {num_rows} rows: mine again")


def _add_mined(batch: dict[str, list], read: Callable[[dict], dict], source: Dataset) -> dict[str, Any]:
    rows = read({column: values for column, values in batch.items() if column != "mined"})
    if "negatives" in rows:
        mined = [[source[row]["positive"] for row in numbers] for numbers in batch["mined"]]
        pairs = zip(rows["negatives"], mined, strict=True)
        rows = rows | {"negatives": [[*negatives, *more] for negatives, more in pairs]}
    return rows
