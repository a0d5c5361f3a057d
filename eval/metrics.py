"""Metrics as pure functions of scores; ties count as wrong."""

from collections.abc import Iterable, Sequence

import numpy as np
from scipy.stats import spearmanr


# Scores closer than this are tied. Equal inputs in different micro-batches of a float32 model give cosines that differ
# by a few 1e-7, so that a strict comparison would let a constant embedding win by rounding noise. Rounding the scores
# instead would split such a pair whenever a rounding boundary lies between its members.
TIE = 1e-6


def pessimistic_ranks(
    scores: np.ndarray, positives: Sequence[Sequence[int]], pools: Sequence[Sequence[int]] | None = None
) -> np.ndarray:
    """Count for each query the negatives that score at least as high as the best positive.

    A constant embedding gets the last rank; MMEB's own evaluation takes the argmax with the positive in first place,
    which gives it 100%. A NaN score counts as a tie.

    Args:
        scores (`np.ndarray` of shape `(queries, candidates)`): Similarities.
        positives (`Sequence[Sequence[int]]`): Indices of the positives of each query, at least one.
        pools (`Sequence[Sequence[int]]`, *optional*, defaults to all): Indices of the candidates of each query.

    Returns:
        `np.ndarray` of shape `(queries,)`, int64: The ranks; 0 is a hit at 1.
    """
    if pools is None:
        best = np.array([row[list(right)].max() for row, right in zip(scores, positives, strict=True)])
        num_before = (~(scores < (best - TIE)[:, None])).sum(axis=1)
        return num_before - [
            _num_before(row[list(set(right))], threshold)
            for row, right, threshold in zip(scores, positives, best - TIE, strict=True)
        ]
    ranks = np.empty(len(scores), dtype=np.int64)
    for query, (row, right, pool) in enumerate(zip(scores, positives, pools, strict=True)):
        ranks[query] = _num_before(row[list(set(pool) - set(right))], row[list(right)].max() - TIE)
    return ranks


def _num_before(scores: np.ndarray, threshold: float) -> int:
    """Count scores of at least a threshold, NaN included."""
    return int(np.count_nonzero(~(scores < threshold)))


def argmax_ties_to_first(scores: np.ndarray, pools: Sequence[Sequence[int]]) -> np.ndarray:
    """Return the hits of each query as computed by VLM2Vec v1, for comparison.

    VLM2Vec takes the argmax over pools that list the positive first. `argmax` returns the first of equal scores, so
    ties go to the positive, and a constant embedding scores 100%.
    """
    return np.array([row[list(pool)].argmax() == 0 for row, pool in zip(scores, pools, strict=True)])


def recall_at_k(ranks: np.ndarray, k: int) -> float:
    """Return the share of queries with a positive among the first k, given `pessimistic_ranks`."""
    return float(np.mean(ranks < k))


def mean_reciprocal_rank(ranks: np.ndarray) -> float:
    """Return the mean reciprocal place of each query's best positive, 1 / (rank + 1), given `pessimistic_ranks`."""
    return float(np.mean(1 / (ranks + 1)))


def hit_at_1(
    scores: np.ndarray, positives: Sequence[Sequence[int]], pools: Sequence[Sequence[int]] | None = None
) -> float:
    """Return the share of queries whose best positive beats every negative (MMEB's hit@1 or precision@1).

    Args:
        scores (`np.ndarray` of shape `(queries, candidates)`): Similarities.
        positives (`Sequence[Sequence[int]]`): Indices of the positives of each query, at least one.
        pools (`Sequence[Sequence[int]]`, *optional*, defaults to all): Indices of the candidates of each query.
    """
    return recall_at_k(pessimistic_ranks(scores, positives, pools), 1)


def ndcg_at_k(
    scores: np.ndarray,
    positives: Sequence[Sequence[int]],
    relevance: Sequence[Sequence[float]],
    k: int,
    pools: Sequence[Sequence[int]] | None = None,
) -> float:
    """Return the mean of `ndcg_per_query`."""
    return float(np.mean(ndcg_per_query(scores, positives, relevance, k, pools)))


def ndcg_per_query(
    scores: np.ndarray,
    positives: Sequence[Sequence[int]],
    relevance: Sequence[Sequence[float]],
    k: int,
    pools: Sequence[Sequence[int]] | None = None,
) -> np.ndarray:
    """Return the normalized discounted cumulative gain of the first k candidates of each query.

    The gain of a candidate is its relevance (linear, not 2^relevance - 1), its discount log2(1 + place). The sum is
    divided by the sum of the ideal order (Järvelin and Kekäläinen, 2002). Of tied candidates the least relevant comes
    first.

    Args:
        scores (`np.ndarray` of shape `(queries, candidates)`): Similarities.
        positives (`Sequence[Sequence[int]]`): Indices of the relevant candidates of each query, at least one.
        relevance (`Sequence[Sequence[float]]`): Relevance of each of them, above 0.
        k (`int`): Number of places that count.
        pools (`Sequence[Sequence[int]]`, *optional*, defaults to all): Indices of the candidates of each query.

    Returns:
        `np.ndarray` of shape `(queries,)`: The gains, from 0 to 1.
    """
    discounts = 1 / np.log2(np.arange(2, k + 2))
    per_query = np.empty(len(scores))
    for query, (right, gains) in enumerate(zip(positives, relevance, strict=True)):
        gain = np.asarray(gains, dtype=float)
        order, places = _places(scores[query], right, gain, None if pools is None else pools[query])
        counted = places < k
        ideal = np.sort(gain)[::-1][:k]
        gained = gain[order][counted] @ discounts[places[counted]]
        per_query[query] = gained / (ideal @ discounts[: len(ideal)])
    return per_query


def mean_average_precision_at_k(
    scores: np.ndarray,
    positives: Sequence[Sequence[int]],
    k: int,
    pools: Sequence[Sequence[int]] | None = None,
) -> float:
    """Return the mean of `average_precision_per_query`."""
    return float(np.mean(average_precision_per_query(scores, positives, k, pools)))


def average_precision_per_query(
    scores: np.ndarray,
    positives: Sequence[Sequence[int]],
    k: int,
    pools: Sequence[Sequence[int]] | None = None,
) -> np.ndarray:
    """Return the average precision of the first k candidates of each query.

    The average precision is the sum of the precisions at the places of the positives among the first k, divided by k
    or by the number of positives if that is smaller, as on CIRCO (Baldrati et al., arXiv 2303.15247). Ties count
    against the model.

    Args:
        scores (`np.ndarray` of shape `(queries, candidates)`): Similarities.
        positives (`Sequence[Sequence[int]]`): Indices of the positives of each query, at least one.
        k (`int`): Number of places that count.
        pools (`Sequence[Sequence[int]]`, *optional*, defaults to all): Indices of the candidates of each query.

    Returns:
        `np.ndarray` of shape `(queries,)`: The precisions, from 0 to 1.
    """
    per_query = np.empty(len(scores))
    for query, right in enumerate(positives):
        _, places = _places(scores[query], right, np.ones(len(right)), None if pools is None else pools[query])
        precisions = np.arange(1, len(places) + 1) / (places + 1)
        per_query[query] = precisions[places < k].sum() / min(len(right), k)
    return per_query


def _places(
    row: np.ndarray, positives: Sequence[int], gain: np.ndarray, pool: Sequence[int] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the order of the positives, best first, and the place of each in that order, from 0.

    Negatives come before tied positives, and of tied positives the less relevant comes first.
    """
    indices = np.asarray(positives)
    rivals = row if pool is None else row[list({*pool, *positives})]
    own = row[list(set(positives))]
    score = np.where(np.isnan(row[indices]), -np.inf, row[indices])
    order = np.lexsort((gain, -score))
    # A NaN negative is before all.
    num_before = np.array([_num_before(rivals, limit) - _num_before(own, limit) for limit in score[order] - TIE])
    return order, num_before + np.arange(len(order))


def chance_level(metric: str, positives: int, candidates: int, relevance: Sequence[float] | None = None) -> float:
    """Return the expected score of a query whose candidates are in random order.

    Args:
        metric (`str`): `"hit@1"`, or `"R"` (a hit among the first k), `"ndcg"` or `"mAP"` with `"@"` and k.
        positives (`int`): Number of positives.
        candidates (`int`): Number of candidates, positives included.
        relevance (`Sequence[float]`, *optional*, defaults to all equal): Relevance of each positive, for ndcg.
    """
    kind, number = metric.split("@")
    k = int(number)
    places = min(k, candidates)
    if kind in ("hit", "R"):
        negatives = candidates - positives
        return float(1 - np.prod([max(negatives - place, 0) / (candidates - place) for place in range(places)]))
    if kind == "ndcg":
        discounts = 1 / np.log2(np.arange(2, k + 2))
        gain = np.ones(positives) if relevance is None else np.asarray(relevance, dtype=float)
        ideal = np.sort(gain)[::-1][:k]
        return float(gain.sum() / candidates * discounts[:places].sum() / (ideal @ discounts[: len(ideal)]))
    others = (positives - 1) / max(candidates - 1, 1)  # share of positives among the other candidates
    precisions = [(1 + (place - 1) * others) / place for place in range(1, places + 1)]
    return float(positives / candidates * sum(precisions) / min(positives, k))


def compositional_accuracy(true: np.ndarray, false: np.ndarray) -> float:
    """Return the share of rows that score the true caption above the false one (SugarCrepe).

    Args:
        true (`np.ndarray` of shape `(rows,)`): Similarities of image and true caption.
        false (`np.ndarray` of shape `(rows,)`): Similarities of image and false caption.
    """
    return float(np.mean(true - false > TIE))


def spearman(predictions: Sequence[float], references: Sequence[float]) -> float:
    """Return Spearman's rank correlation, the metric of STS tasks; ties share the mean of their ranks.

    If one side is constant, the correlation is undefined and 0 is returned.
    """
    if min(np.ptp(predictions), np.ptp(references)) == 0:
        return 0.0
    return float(spearmanr(predictions, references).statistic)


def mean_by_group(scores: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Return the unweighted mean of each group of `(group, score)` pairs, groups in order of appearance."""
    groups: dict[str, list[float]] = {}
    for group, score in scores:
        groups.setdefault(group, []).append(score)
    return {group: float(np.mean(members)) for group, members in groups.items()}
