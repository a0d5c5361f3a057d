"""Hard-negative mining over a whole dataset: search, filters, and rows with mined negatives.

The result of mining is a list of row numbers per row: the first positives of those rows are its negatives, and
`[row, position]` names another positive. The file is therefore small, images are stored once, and any dataset that can
be trained on can be mined. `recipes/judge.py` adds scores: its lines are `{"negatives": [...], "scores": [...]}`, with
one score for each positive, then each explicit negative of the row, then each mined negative.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from datasets import Dataset

from ..extras import require_extra
from .jsonl import json_lines
from .row_forms import row_positives


if TYPE_CHECKING:  # an optional dependency
    import faiss

SEARCH_QUERIES = 1024  # queries of one search; bounds the memory


def mine_hard_negatives(
    queries: np.ndarray,
    candidates: np.ndarray,
    positives: Sequence[Sequence[int]],
    labels: np.ndarray,
    query_contents: np.ndarray,
    candidate_contents: np.ndarray,
    *,
    num_negatives: int,
    range_min: int = 0,
    range_max: int = 100,
    max_score: float | None = None,
    absolute_margin: float | None = None,
    relative_margin: float | None = None,
) -> tuple[list[list[int]], Counter]:
    """Find the hardest candidates of each row's query that are unlikely to be right answers.

    Rows with equal query contents have one query with several positives. No candidate with the content of one of them,
    or with the content of the query, is a negative of these rows.

    The settings have the names and meaning of `mine_hard_negatives` in sentence-transformers, but ranks are counted
    before the other filters apply. Scores are cosine similarities, from -1 to 1.

    Args:
        queries (`np.ndarray` of shape `(rows, dimensions)`): Unit vectors.
        candidates (`np.ndarray` of shape `(candidates, dimensions)`): Unit vectors of distinct items.
        positives (`Sequence[Sequence[int]]`): Indices in `candidates` of each row's positives.
        labels (`np.ndarray` of shape `(rows,)`): Label of each row; equal labels mean the same answer, and -1 means
            none. A candidate has the labels of all rows whose positive it is.
        query_contents (`np.ndarray` of shape `(rows,)`): Hash of the content of each query.
        candidate_contents (`np.ndarray` of shape `(candidates,)`): Hash of the content of each candidate.
        num_negatives (`int`): Maximum number of negatives per query. 1 to 10 are common.
        range_min (`int`, *optional*, defaults to 0): Rank of the first candidate to consider, counted from 0 without
            the query's positives and its own content. Values up to about 30 skip the candidates that are most likely
            right answers.
        range_max (`int`, *optional*, defaults to 100): Rank at which to stop (exclusive); larger than
            `range_min + num_negatives`, so that filtered candidates can be replaced.
        max_score (`float`, *optional*): Maximum score of a negative. 0.8 to 0.95 are common.
        absolute_margin (`float`, *optional*): Minimum difference by which a negative scores below the query's lowest
            positive. 0 to 0.2 are common.
        relative_margin (`float`, *optional*): Minimum difference as a share of the absolute value of that positive's
            score: 0.05 keeps negatives that score at most 0.76 where it scores 0.8, and at most -0.84 where it scores
            -0.8. 0 to 0.1 are common.

    Returns:
        `tuple[list[list[int]], Counter]`: For each row at most `num_negatives` indices of candidates, hardest first;
        and how many candidates were looked at, taken, and dropped for which reason (the first that applies).

    Raises:
        ValueError: The ranks do not leave room for `num_negatives` candidates.
    """
    if num_negatives < 1 or range_min < 0 or range_max < range_min + num_negatives:
        raise ValueError(
            f"cannot mine num_negatives={num_negatives} from the ranks {range_min} to {range_max}: give at least 1 "
            "negative, range_min 0 or more, and range_max of at least range_min + num_negatives"
        )
    require_extra("mining", "faiss")

    import faiss

    known = _right_answers(positives, labels, query_contents, candidate_contents)
    index = faiss.IndexFlatIP(candidates.shape[1])
    index.add(np.ascontiguousarray(candidates, dtype=np.float32))
    candidate_labels: list[set[int]] = [set() for _ in candidates]
    for right, label in zip(positives, labels.tolist(), strict=True):
        for candidate in right if label != -1 else ():
            candidate_labels[candidate].add(label)

    mined: list[list[int]] = [[] for _ in queries]
    report = Counter({"looked at": 0, "taken": 0})
    for query, ranked in _search(index, queries, [range_max + len(answers.candidates) for answers in known]):
        answers = known[query]
        others = [(candidate, score) for candidate, score in ranked if candidate not in answers.candidates]
        positive_score = (candidates[answers.positives] @ queries[query]).min()
        taken = mined[query]
        for candidate, score in others[range_min:range_max]:
            if len(taken) == num_negatives:
                break
            report["looked at"] += 1
            if not answers.labels.isdisjoint(candidate_labels[candidate]):
                report["dropped: same label"] += 1
            elif max_score is not None and score > max_score:
                report["dropped: above max_score"] += 1
            elif absolute_margin is not None and score > positive_score - absolute_margin:
                report["dropped: within the absolute margin"] += 1
            elif relative_margin is not None and score > positive_score - abs(positive_score) * relative_margin:
                report["dropped: within the relative margin"] += 1
            else:
                report["taken"] += 1
                taken.append(candidate)
        report["queries with fewer than num_negatives"] += len(taken) < num_negatives
    return mined, report


def _search(
    index: "faiss.Index", queries: np.ndarray, num_candidates: Sequence[int]
) -> Iterator[tuple[int, Iterator[tuple[int, float]]]]:
    """Yield each query's number and its most similar candidates with their scores, at least as many as it needs."""
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    order = np.argsort(num_candidates, kind="stable")  # a query with many positives needs a deep search, others do not
    for start in range(0, len(order), SEARCH_QUERIES):
        part = order[start : start + SEARCH_QUERIES]
        scores, ranked = index.search(queries[part], min(num_candidates[part[-1]], index.ntotal))
        for query, row, row_scores in zip(part.tolist(), ranked.tolist(), scores.tolist(), strict=True):
            yield query, zip(row, row_scores, strict=True)


class _RightAnswers(NamedTuple):
    """What the rows with one query know: its positives, candidates that are no negatives, and its labels."""

    positives: list[int]
    candidates: set[int]
    labels: set[int]


def _right_answers(
    positives: Sequence[Sequence[int]],
    labels: np.ndarray,
    query_contents: np.ndarray,
    candidate_contents: np.ndarray,
) -> list[_RightAnswers]:
    """Return the right answers of each row's query; rows with one query share them."""
    with_content: dict[int, list[int]] = {}
    for candidate, content in enumerate(candidate_contents.tolist()):
        with_content.setdefault(content, []).append(candidate)
    queries: dict[int, _RightAnswers] = {}
    for query, right, label in zip(query_contents.tolist(), positives, labels.tolist(), strict=True):
        if query not in queries:
            queries[query] = _RightAnswers([], set(with_content.get(query, ())), set())
        queries[query].positives.extend(right)
        for positive in right:
            queries[query].candidates.update(with_content[int(candidate_contents[positive])])
        if label != -1:
            queries[query].labels.add(label)
    return [queries[query] for query in query_contents.tolist()]


Mined = tuple[list[list[int]], list[float] | None]  # [row, position] of each negative, and the row's scores if judged


def read_mined(path: str | Path, num_rows: int) -> list[Mined]:
    """Read a file of mined or judged negatives.

    Args:
        path (`str` or `Path`): The file: one line per row, each a list of the numbers of the rows whose first
            positives are its negatives, or of `[row, position]` for other positives; or such a list with scores.
        num_rows (`int`): Number of rows that were mined.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file was mined from another number of rows, or a line is malformed.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path} of mined negatives: create it with recipes/mine.py")
    lines = list(json_lines(path))
    if len(lines) != num_rows:
        raise ValueError(
            f"{path} holds negatives for {len(lines)} rows, but the dataset has {num_rows}: open it with the "
            "settings that it was mined with"
        )
    return [_read_line(line, f"{path}, line {number}", num_rows) for number, line in lines]


def with_mined_negatives(dataset: Dataset, path: str | Path) -> Dataset:
    """Add to each row the negatives that `recipes/mine.py` found for it, and the scores that `recipes/judge.py` gave.

    Args:
        dataset (`Dataset`): The rows that were mined, opened with the same settings.
        path (`str` or `Path`): The file of mined negatives, see [`read_mined`].

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file was mined from another number of rows, or a line is malformed. Later, when a row is read:
            it has not as many items as its line has scores.
    """
    mined = read_mined(path, len(dataset))
    read = dataset.format["format_kwargs"]["transform"]
    negatives, scores = zip(*mined, strict=True) if mined else ((), ())
    with_columns = dataset.with_format(None).add_column("mined", list(negatives))
    is_judged = any(row is not None for row in scores)
    if is_judged:
        with_columns = with_columns.add_column("judged", list(scores))
    return with_columns.with_transform(partial(_add_mined, read=read, source=dataset))


def _read_line(line: str, where: str, num_rows: int) -> Mined:
    """Return the row number and the position among the row's positives of each negative on a line, and the scores."""
    try:
        value = json.loads(line)
        entries, scores = (value["negatives"], value["scores"]) if isinstance(value, dict) else (value, None)
        positions = [[entry, 0] if isinstance(entry, int) else entry for entry in entries]
        if all(
            isinstance(row, int) and isinstance(position, int) and 0 <= row < num_rows and position >= 0
            for row, position in positions
        ) and (scores is None or all(isinstance(score, float) and isfinite(score) for score in scores)):
            return positions, scores
    except (ValueError, TypeError, KeyError):
        pass
    raise ValueError(f"{where} is not a list of numbers of the {num_rows} rows: mine again")


def _add_mined(batch: dict[str, list], read: Callable[[dict], dict], source: Dataset) -> dict[str, Any]:
    rows = read({column: values for column, values in batch.items() if column not in ("mined", "judged")})
    if "negatives" in rows:
        mined = [
            [row_positives(source[row], f"row {row}")[position] for row, position in positions]
            for positions in batch["mined"]
        ]
        pairs = zip(rows["negatives"], mined, strict=True)
        rows = rows | {"negatives": [[*negatives, *more] for negatives, more in pairs]}
        if "scores" in rows:  # mined negatives are not judged
            scores = zip(rows["scores"], mined, strict=True)
            rows["scores"] = [row if row is None else [*row, *(None for _ in more)] for row, more in scores]
        if "judged" in batch:
            given = rows.get("scores", [None] * len(mined))
            rows["scores"] = [
                row if judged is None else judged for row, judged in zip(given, batch["judged"], strict=True)
            ]
    return rows
