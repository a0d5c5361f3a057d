"""What a report needs to know of a task's scores: which queries to show, and what stood first; ready for JSON."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .metrics import TIE


def shown_queries(
    scores: np.ndarray,
    ranks: np.ndarray,
    positives: Sequence[Sequence[int]],
    pools: Sequence[Sequence[int]] | None,
    count: int,
) -> dict[str, list[dict]]:
    """Some queries of a search with their five best candidates: evenly spaced ones, and the hardest mistakes.

    Args:
        scores (`np.ndarray`): `(queries, candidates)` similarities.
        ranks (`np.ndarray`): Their `metrics.pessimistic_ranks`.
        positives, pools: Those of the `RetrievalTask`.
        count (`int`): How many of each sort.
    """

    def record(query: int) -> dict[str, Any]:
        pool = np.arange(scores.shape[1]) if pools is None else np.asarray(pools[query])
        right = np.isin(pool, positives[query])
        best_first = np.argsort(TIE * right - scores[query, pool], kind="stable")  # a tie is shown as it is counted
        top = pool[best_first[:5]]
        answer = max(positives[query], key=lambda candidate: scores[query, candidate])
        return {
            "query": int(query),
            "top": [int(candidate) for candidate in top],
            "scores": [round(float(scores[query, candidate]), 4) for candidate in top],
            "right": [bool(is_right) for is_right in right[best_first[:5]]],
            "answer": int(answer),
            "answer_score": round(float(scores[query, answer]), 4),
            "rank": int(ranks[query]),
        }

    def margin(query: int) -> float:
        seen = scores[query] if pools is None else scores[query, pools[query]]
        return round(float(seen.max()), 4) - round(float(scores[query, positives[query]].max()), 4)

    worst = sorted(np.flatnonzero(ranks > 0), key=margin, reverse=True)[:count]
    return {
        "examples": [record(query) for query in _evenly_spaced(len(ranks), count)],
        "mistakes": [record(query) for query in worst],
    }


def shown_probes(true: np.ndarray, false: np.ndarray, count: int) -> dict[str, list[dict]]:
    """Some rows of a probe with the similarities to both captions: evenly spaced ones, and the worst mistakes."""

    def record(row: int) -> dict[str, Any]:
        return {"row": int(row), "true": round(float(true[row]), 4), "false": round(float(false[row]), 4)}

    mistakes = [row for row in np.argsort(true - false, kind="stable") if true[row] <= false[row]]
    return {
        "examples": [record(row) for row in _evenly_spaced(len(true), count)],
        "mistakes": [record(row) for row in mistakes[:count]],
    }


def _evenly_spaced(length: int, count: int) -> list[int]:
    """Indices that nobody chose, so that a gallery shows the ordinary case."""
    return [index * length // min(count, length) for index in range(min(count, length))]
