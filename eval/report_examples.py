"""The examples that a report shows of a task: evenly spaced ones and the largest errors, as indices ready for JSON."""

from collections.abc import Sequence
from operator import itemgetter
from typing import Any

import numpy as np

from .metrics import TIE


TOP_CANDIDATES = 5


def retrieval_examples(
    scores: np.ndarray,
    ranks: np.ndarray,
    positives: Sequence[Sequence[int]],
    pools: Sequence[Sequence[int]] | None,
    count: int,
    first: int,
    total: int,
) -> tuple[list[dict], list[tuple[float, dict]]]:
    """Choose queries of a block of a retrieval task, each with its five best candidates.

    Args:
        scores (`np.ndarray` of shape `(queries, candidates)`): Similarities.
        ranks (`np.ndarray` of shape `(queries,)`): Their `metrics.pessimistic_ranks`.
        positives (`Sequence[Sequence[int]]`): As in `RetrievalTask`.
        pools (`Sequence[Sequence[int]]`, *optional*): As in `RetrievalTask`.
        count (`int`): Number of evenly spaced queries of the task, and number of errors.
        first (`int`): Index of the block's first query in the task.
        total (`int`): Number of queries of the task.

    Returns:
        `(examples, mistakes)`: The evenly spaced queries that are in the block, and its largest errors, each with its
        score margin.
    """

    def record(query: int) -> dict[str, Any]:
        pool = np.arange(scores.shape[1]) if pools is None else np.asarray(pools[query])
        is_positive = np.isin(pool, positives[query])
        # A tied positive comes last, as it is counted.
        best_first = np.argsort(TIE * is_positive - scores[query, pool], kind="stable")[:TOP_CANDIDATES]
        top = pool[best_first]
        answer = max(positives[query], key=lambda candidate: scores[query, candidate])
        return {
            "query": first + query,
            "top": [int(candidate) for candidate in top],
            "scores": [round(float(scores[query, candidate]), 4) for candidate in top],
            "right": [bool(right) for right in is_positive[best_first]],
            "answer": int(answer),
            "answer_score": round(float(scores[query, answer]), 4),
            "rank": int(ranks[query]),
        }

    def margin(query: int) -> float:
        pool_scores = scores[query] if pools is None else scores[query, pools[query]]
        return round(float(pool_scores.max()), 4) - round(float(scores[query, positives[query]].max()), 4)

    indices = [query - first for query in _evenly_spaced(total, count) if first <= query < first + len(ranks)]
    margins = [(margin(query), query) for query in np.flatnonzero(ranks > 0).tolist()]
    mistakes = _largest_first(margins, count)
    return [record(query) for query in indices], [(size, record(query)) for size, query in mistakes]


def largest_mistakes(mistakes: list[tuple[float, dict]], count: int) -> list[dict]:
    """Return the records of the errors with the largest margins, given those of all blocks in order."""
    return [record for _, record in _largest_first(mistakes, count)]


def _largest_first(margins: list[tuple[float, Any]], count: int) -> list[tuple[float, Any]]:
    return sorted(margins, key=itemgetter(0), reverse=True)[:count]


def compositional_examples(true: np.ndarray, false: np.ndarray, count: int) -> dict[str, list[dict]]:
    """Choose rows of a compositional task, each with the similarities of its two captions.

    Args:
        true (`np.ndarray` of shape `(rows,)`): Similarities of image and true caption.
        false (`np.ndarray` of shape `(rows,)`): Similarities of image and false caption.
        count (`int`): Number of evenly spaced rows, and number of errors.

    Returns:
        `dict`: `examples` and `mistakes`, the latter with the largest margin first.
    """

    def record(row: int) -> dict[str, Any]:
        return {"row": int(row), "true": round(float(true[row]), 4), "false": round(float(false[row]), 4)}

    mistakes = [row for row in np.argsort(true - false, kind="stable") if true[row] <= false[row]]
    return {
        "examples": [record(row) for row in _evenly_spaced(len(true), count)],
        "mistakes": [record(row) for row in mistakes[:count]],
    }


def _evenly_spaced(length: int, count: int) -> list[int]:
    """Return evenly spaced indices, so that examples are not cherry-picked."""
    return [index * length // min(count, length) for index in range(min(count, length))]
