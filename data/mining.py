"""Hard negatives from the whole dataset: search, filters, and rows that carry what was found.

What is mined is a list of row numbers per row: their positives are its negatives. So the file is small, images are
stored once, and any dataset that can be trained on can be mined.
"""

import json
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset


def mine_hard_negatives(
    queries: np.ndarray,
    candidates: np.ndarray,
    positive: np.ndarray,
    label: np.ndarray,
    *,
    num_negatives: int,
    range_min: int = 0,
    range_max: int = 100,
    max_score: float | None = None,
    absolute_margin: float | None = None,
    relative_margin: float | None = None,
) -> tuple[list[list[int]], Counter]:
    """Find the hardest candidates of each query that are not likely to be right.

    The names of the filters are those of sentence-transformers' `mine_hard_negatives`.

    Args:
        queries (`np.ndarray` of shape `(queries, dimensions)`): Unit vectors.
        candidates (`np.ndarray` of shape `(candidates, dimensions)`): Unit vectors, of distinct contents.
        positive (`np.ndarray` of shape `(queries,)`): Index of each query's positive in `candidates`.
        label (`np.ndarray` of shape `(queries,)`): Equal numbers mean the same answer, -1 means none; a candidate has
            the labels of all queries whose positive it is.
        k (`int`): Negatives per query.
        range_min, range_max (`int`, *optional*, default to 0 and 100):
            Look at the candidates from rank `range_min` to before rank `range_max`, counted from 0 without the positive.
        max_score (`float`, *optional*): Drop candidates more similar than this.
        absolute_margin (`float`, *optional*): Drop candidates above the positive's similarity minus this.
        relative_margin (`float`, *optional*): Drop candidates above the positive's similarity times one minus this.

    Returns:
        `tuple[list[list[int]], Counter]`: Indices of candidates, hardest first, at most `num_negatives` per query; and how many
        candidates were looked at, taken, and dropped for which reason (the first that applies).
    """
    import faiss

    index = faiss.IndexFlatIP(candidates.shape[1])
    index.add(np.ascontiguousarray(candidates, dtype=np.float32))
    scores, found = index.search(np.ascontiguousarray(queries, dtype=np.float32), min(range_max + 1, len(candidates)))
    of_positive = (queries * candidates[positive]).sum(axis=1)
    answers: list[set[int]] = [set() for _ in candidates]
    for candidate, answer in zip(positive, label, strict=True):
        answers[candidate].add(int(answer))

    mined, report = [], Counter({"looked at": 0, "taken": 0})
    for query, own in enumerate(positive):
        others = [
            (candidate, score)
            for candidate, score in zip(found[query], scores[query], strict=True)
            if candidate != own
        ]
        taken: list[int] = []
        for candidate, score in others[range_min:range_max]:
            if len(taken) == num_negatives:
                break
            report["looked at"] += 1
            if label[query] != -1 and int(label[query]) in answers[candidate]:
                report["dropped: same label"] += 1
            elif max_score is not None and score > max_score:
                report["dropped: above max_score"] += 1
            elif absolute_margin is not None and score > of_positive[query] - absolute_margin:
                report["dropped: within the absolute margin"] += 1
            elif relative_margin is not None and score > of_positive[query] * (1 - relative_margin):
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
        path (`str` or `Path`): The file: a line per row, each the numbers of rows whose positives are its negatives.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file was mined from another number of rows, or a line is malformed.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path} of mined negatives: make it with recipes/mine.py")
    lines = Path(path).read_bytes().splitlines()
    if len(lines) != len(dataset):
        raise ValueError(
            f"{path} holds negatives for {len(lines)} rows, but the dataset has {len(dataset)}: open it with the "
            "settings that it was mined with"
        )
    read = dataset.format["format_kwargs"]["transform"]
    found = [_numbers(line, f"{path}, line {number}", len(dataset)) for number, line in enumerate(lines, start=1)]
    mined = dataset.with_format(None).add_column("mined", found)
    return mined.with_transform(partial(_add_mined, read=read, source=dataset))


def _numbers(line: bytes, where: str, rows: int) -> list[int]:
    try:
        numbers = json.loads(line)
        if all(isinstance(number, int) and 0 <= number < rows for number in numbers):
            return numbers
    except (ValueError, TypeError):
        pass
    raise ValueError(f"{where} is no list of numbers of the {rows} rows: mine again")


def _add_mined(batch: dict[str, list], read: Callable[[dict], dict], source: Dataset) -> dict[str, Any]:
    rows = read({column: values for column, values in batch.items() if column != "mined"})
    if "negatives" in rows:
        found = [[source[row]["positive"] for row in mined] for mined in batch["mined"]]
        own = [list(negatives) for negatives in rows["negatives"]]
        rows = rows | {"negatives": [one + more for one, more in zip(own, found, strict=True)]}
    return rows
