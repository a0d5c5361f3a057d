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


def first_is_best(scores: np.ndarray, pools: Sequence[Sequence[int]]) -> float:
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


def compositional_accuracy(true: np.ndarray, false: np.ndarray) -> float:
    """Returns the share of rows that score the true caption above the false one (SugarCrepe).

    Args:
        true (`np.ndarray`): `(rows,)` similarities of picture and true caption.
        false (`np.ndarray`): `(rows,)` similarities of picture and false caption.
    """
    return float(np.mean(true - false > TIE))


def spearman(predictions: Sequence[float], references: Sequence[float]) -> float:
    """Returns Spearman's rank correlation, as STS tasks report it; ties share the mean of their ranks."""
    return float(spearmanr(predictions, references).statistic)


def mean_by_group(scores: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Returns the plain mean of each group of `(group, score)`, groups in order of appearance."""
    groups: dict[str, list[float]] = {}
    for group, score in scores:
        groups.setdefault(group, []).append(score)
    return {group: float(np.mean(members)) for group, members in groups.items()}
