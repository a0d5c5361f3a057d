"""Choose hard negatives by a judge's scores, as UniME-V2 does (arXiv 2510.13515).

A candidate that the judge scores almost as high as the positive is probably a right answer: the filter drops it. Of
the others, cyclic sampling takes some with a fixed stride, so that they come from all ranks of the search.
"""

from collections.abc import Sequence
from math import gcd
from typing import NamedTuple


STRIDE = 5  # of cyclic sampling
MARGIN = 0.01  # beta in the paper


class Choice(NamedTuple):
    """The negatives of one row.

    Args:
        negatives (`list[int]`): Indices of the chosen candidates; one may occur several times.
        dropped (`list[int]`): Indices of the candidates that the filter dropped.
        unfiltered (`bool`): Whether the filter would have dropped all candidates, and was left out.
    """

    negatives: list[int]
    dropped: list[int]
    unfiltered: bool


def choose_negatives(
    positive_score: float, scores: Sequence[float], num_negatives: int, margin: float = MARGIN
) -> Choice:
    """Filter the judged candidates of a query and sample its negatives.

    A candidate is dropped if its score is above that of the positive minus the margin. Where that drops all
    candidates, which happens when the judge rejects the positive, they are used unfiltered with their scores, as in
    the published data (the paper says random candidates with score 1.0, which would teach that they match).

    Args:
        positive_score (`float`): Score of the positive; of several positives, the lowest.
        scores (`Sequence[float]`): Scores of the candidates, in the order of the search.
        num_negatives (`int`): Negatives to sample; 10 in the published data. Fewer candidates are repeated.
        margin (`float`, *optional*, defaults to 0.01): Margin of the filter, beta in the paper.
    """
    kept = [index for index, score in enumerate(scores) if score <= positive_score - margin]
    unfiltered = not kept and bool(scores)
    dropped = [] if unfiltered else [index for index in range(len(scores)) if index not in set(kept)]
    candidates = list(range(len(scores))) if unfiltered else kept
    order = cyclic_order(len(candidates))
    chosen = [candidates[order[place % len(order)]] for place in range(num_negatives if order else 0)]
    return Choice(chosen, dropped, unfiltered)


def judged_line(
    mined: Sequence[Sequence[int]],
    scores: Sequence[float],
    num_positives: int,
    num_negatives: int,
    margin: float = MARGIN,
) -> tuple[Choice, dict[str, list]]:
    """Return the negatives of a judged row, and its line of a `mined_file`.

    Args:
        mined (`Sequence`): Row and position of each mined candidate, in the order of the search.
        scores (`Sequence[float]`): Scores of the row's positives, of its explicit negatives, and of `mined`.
        num_positives (`int`): Number of positives.
        num_negatives (`int`): Negatives to sample, see [`choose_negatives`].
        margin (`float`, *optional*, defaults to 0.01): See [`choose_negatives`].
    """
    given, of_mined = scores[: len(scores) - len(mined)], scores[len(scores) - len(mined) :]
    choice = choose_negatives(min(given[:num_positives]), of_mined, num_negatives, margin)
    return choice, {
        "negatives": [mined[index] for index in choice.negatives],
        "scores": [*given, *(of_mined[index] for index in choice.negatives)],
    }


def cyclic_order(count: int) -> list[int]:
    """Return the numbers below `count` in steps of 5, starting at 0.

    The steps wrap around where that reaches every number: 0 5 3 1 6 4 2 for 7. Otherwise each round starts at the next
    number: 0 5 1 6 2 7 3 8 4 9 for 10. The source of the sampling is not published; this agrees with the paper's
    "cyclical, step 5" and with how the published rows repeat.
    """
    if count and gcd(STRIDE, count) == 1:
        return [STRIDE * place % count for place in range(count)]
    return [number for start in range(STRIDE) for number in range(start, count, STRIDE)]
