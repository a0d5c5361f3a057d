"""Metrics as pure functions of scores; whatever cannot be told apart counts as wrong."""

from collections.abc import Iterable, Sequence

import numpy as np
from scipy.stats import spearmanr


# Two scores this near are tied. Equal inputs in different micro-batches come out of a float32 model with cosines that
# differ by a few 1e-7, so that strict comparison would let a constant embedding win by rounding noise. A width instead
# of rounded scores: rounding would split such a pair whenever a rounding boundary lies between its two members.
TIE = 1e-6


def pessimistic_ranks(
    scores: np.ndarray, positives: Sequence[Sequence[int]], pools: Sequence[Sequence[int]] | None = None
) -> np.ndarray:
    """Counts for each query the wrong candidates that score at least as high as the best right one.

    MMEB's own evaluation takes the argmax with the right candidate in first place, which gives a constant embedding
    100 %; here it gets the last rank. A score that is not a number counts as a tie too.

    Args:
        scores (`np.ndarray`): `(queries, candidates)` similarities.
        positives (`Sequence[Sequence[int]]`): For each query its right candidates, at least one.
        pools (`Sequence[Sequence[int]]`, *optional*): For each query the candidates that take part; by default all.

    Returns:
        `(queries,)` int64; 0 is a hit at 1.
    """
    ranks = np.empty(len(scores), dtype=np.int64)
    for query, (row, right) in enumerate(zip(scores, positives, strict=True)):
        wrong = np.ones(len(row), dtype=bool) if pools is None else np.isin(np.arange(len(row)), pools[query])
        wrong[list(right)] = False
        beaten = row[wrong] < row[list(right)].max() - TIE
        ranks[query] = wrong.sum() - beaten.sum()
    return ranks


def argmax_ties_to_first(scores: np.ndarray, pools: Sequence[Sequence[int]]) -> float:
    """Returns hit@1 by the rule of VLM2Vec v1, for parity: the argmax over a pool whose first candidate is right.

    `argmax` takes the first of equal scores, so ties go to the right candidate, and a constant embedding has 100 %.
    """
    return float(np.mean([row[list(pool)].argmax() == 0 for row, pool in zip(scores, pools, strict=True)]))


def recall_at_k(ranks: np.ndarray, k: int) -> float:
    """Returns the share of queries with a right candidate among the first k, of `pessimistic_ranks`."""
    return float(np.mean(ranks < k))


def hit_at_1(
    scores: np.ndarray, positives: Sequence[Sequence[int]], pools: Sequence[Sequence[int]] | None = None
) -> float:
    """Returns the share of queries whose best right candidate beats every wrong one (MMEB's hit@1, precision@1)."""
    return recall_at_k(pessimistic_ranks(scores, positives, pools), 1)


def ndcg_at_k(
    scores: np.ndarray,
    positives: Sequence[Sequence[int]],
    relevance: Sequence[Sequence[float]],
    k: int,
    pools: Sequence[Sequence[int]] | None = None,
) -> float:
    """Returns the mean normalised discounted cumulative gain of the first k candidates, as of visual documents.

    The gain of a candidate is its relevance (linear, not 2^relevance - 1), its discount log2(1 + its place); the sum
    is divided by that of the best order (Järvelin and Kekäläinen, 2002). Of tied candidates the least relevant comes
    first.

    Args:
        scores (`np.ndarray`): `(queries, candidates)` similarities.
        positives (`Sequence[Sequence[int]]`): For each query its relevant candidates, at least one.
        relevance (`Sequence[Sequence[float]]`): For each of them how relevant it is, above 0.
        k (`int`): How many candidates count.
        pools (`Sequence[Sequence[int]]`, *optional*): For each query the candidates that take part; by default all.
    """
    discounts = 1 / np.log2(np.arange(2, k + 2))
    found = []
    for query, (right, gains) in enumerate(zip(positives, relevance, strict=True)):
        gain = np.zeros(scores.shape[1])
        gain[list(right)] = gains
        pool = np.arange(scores.shape[1]) if pools is None else np.asarray(pools[query])
        gain, score = gain[pool], scores[query, pool]
        score = np.where(np.isnan(score), np.where(gain > 0, -np.inf, np.inf), score) - TIE * (gain > 0)
        first = gain[np.lexsort((gain, -score))[:k]]
        best = np.sort(gain)[::-1][:k]
        found.append((first @ discounts[: len(first)]) / (best @ discounts[: len(best)]))
    return float(np.mean(found))


def compositional_accuracy(true: np.ndarray, false: np.ndarray) -> float:
    """Returns the share of rows that score the true caption above the false one (SugarCrepe).

    Args:
        true (`np.ndarray`): `(rows,)` similarities of image and true caption.
        false (`np.ndarray`): `(rows,)` similarities of image and false caption.
    """
    return float(np.mean(true - false > TIE))


def spearman(predictions: Sequence[float], references: Sequence[float]) -> float:
    """Returns Spearman's rank correlation, as STS tasks report it; ties share the mean of their ranks.

    Where one side is constant, and the correlation not defined, it is 0: such predictions rank nothing.
    """
    if min(np.ptp(predictions), np.ptp(references)) == 0:
        return 0.0
    return float(spearmanr(predictions, references).statistic)


def mean_by_group(scores: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Returns the plain mean of each group of `(group, score)`, groups in order of appearance."""
    groups: dict[str, list[float]] = {}
    for group, score in scores:
        groups.setdefault(group, []).append(score)
    return {group: float(np.mean(members)) for group, members in groups.items()}
