"""The scores of a retrieval task, computed for one block of queries after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .metrics import (
    argmax_ties_to_first,
    average_precision_per_query,
    mean_reciprocal_rank,
    ndcg_per_query,
    pessimistic_ranks,
    recall_at_k,
)
from .report_examples import largest_mistakes, retrieval_examples


if TYPE_CHECKING:
    from .reranking import Reranking
    from .tasks import RetrievalTask


MAP_PLACES = (5, 10, 25, 50)  # as on CIRCO
MAX_BLOCK_SCORES = 2**24  # similarities of a block: 67 MB


def score_retrieval(
    task: RetrievalTask,
    queries: np.ndarray,
    candidates: np.ndarray,
    shown: int,
    reranking: Reranking | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the scores of a task and the examples to show, both ready for JSON.

    All candidates are compared with `MAX_BLOCK_SCORES / candidates` queries at a time, which bounds the memory and
    changes no score.

    Args:
        task ([`RetrievalTask`]): The task.
        queries (`np.ndarray` of shape `(queries, D)`): Unit vectors.
        candidates (`np.ndarray` of shape `(candidates, D)`): Unit vectors.
        shown (`int`): Number of evenly spaced examples, and of the largest errors.
        reranking ([`Reranking`], *optional*): What reranks the best candidates first.
    """
    kind, k = task.main_metric.split("@")
    size = max(1, MAX_BLOCK_SCORES // len(candidates))
    per_query: dict[str, list[np.ndarray]] = {}
    examples, mistakes = [], []
    for start in range(0, len(queries), size):
        block = slice(start, start + size)
        similarities = queries[block] @ candidates.T  # (queries of the block, candidates)
        positives, pools = task.positives[block], task.pools and task.pools[block]
        if reranking is not None:
            similarities = reranking.rerank(similarities, task.queries[block], task.candidates, pools)
        relevance = task.relevance[block] if task.relevance else [[1.0] * len(right) for right in positives]
        ranks = pessimistic_ranks(similarities, positives, pools)
        scores = {"rank": ranks}
        for place in sorted({10, *([int(k)] if kind == "ndcg" else ())}):
            scores[f"ndcg@{place}"] = ndcg_per_query(similarities, positives, relevance, place, pools)
        for place in sorted({*MAP_PLACES, int(k)} if kind == "mAP" else ()):
            scores[f"mAP@{place}"] = average_precision_per_query(similarities, positives, place, pools)
        if task.distribution is not None and pools is not None:
            scores["hit@1, ties right"] = argmax_ties_to_first(similarities, pools)
        for name, values in scores.items():
            per_query.setdefault(name, []).append(values)
        shown_in_block = retrieval_examples(similarities, ranks, positives, pools, shown, start, len(queries))
        examples += shown_in_block[0]
        mistakes += shown_in_block[1]

    recall_places = sorted({1, 5, 10, *([int(k)] if kind == "R" else ())})
    joined = {name: np.concatenate(blocks) for name, blocks in per_query.items()}
    ranks = joined.pop("rank")
    result = {
        "meta_task": task.meta_task,
        "metric": task.main_metric,
        "hit@1": recall_at_k(ranks, 1),
        **{f"R@{place}": recall_at_k(ranks, place) for place in recall_places},
        "MRR": mean_reciprocal_rank(ranks),
        **{name: float(np.mean(values)) for name, values in joined.items()},
        "queries": len(task.queries),
        "candidates": task.candidates_per_query,
        "chance": task.chance,
    }
    if task.distribution is not None:
        result["distribution"] = task.distribution
    if task.baseline is not None:
        result["baseline"] = task.baseline
    return result, {"examples": examples, "mistakes": largest_mistakes(mistakes, shown)}
