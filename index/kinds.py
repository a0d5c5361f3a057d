"""The kinds of entries in an index, and scores that can be compared across them.

A query has another instruction for each kind, and cosines of texts with texts are not on the scale of cosines of
texts with images. So each kind is searched with its own query, and its cosines are standardized: the score of an entry
is how far its cosine is above the median of its kind, in units of the kind's spread.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


_HAS_IMAGE = "(image IS NOT NULL OR thumbnail IS NOT NULL)"
# Kind -> SQL condition of its entries.
KINDS = {
    "text": f"NOT {_HAS_IMAGE}",
    "image": f"{_HAS_IMAGE} AND text IS NULL",
    "image-text": f"{_HAS_IMAGE} AND text IS NOT NULL",
}
SAMPLE_ENTRIES = 1024  # of each kind
# A few entries say little about a kind, and the right ones may be among them: the median and the spread of all kinds
# count as much as this many entries.
PRIOR_ENTRIES = 10
QUARTILES_TO_DEVIATION = 1.349  # distance between the quartiles of a normal distribution with deviation 1


@dataclass(frozen=True)
class Scale:
    """The median and the spread of a query's cosines with the entries of a kind; the spread is a robust deviation."""

    median: float
    spread: float

    def score(self, cosine: float) -> float:
        """Return how many spreads a cosine is above the median."""
        return (cosine - self.median) / max(self.spread, 1e-6)


def scales(samples: Mapping[str, np.ndarray]) -> dict[str, Scale]:
    """Return the scale of each kind of entries.

    Args:
        samples (`Mapping[str, np.ndarray]`): Kind -> cosines of its query with a sample of its entries.
    """
    sizes = np.array([len(cosines) for cosines in samples.values()])
    quartiles = np.array([np.quantile(cosines, [0.25, 0.5, 0.75]) for cosines in samples.values()])
    medians, variances = quartiles[:, 1], ((quartiles[:, 2] - quartiles[:, 0]) / QUARTILES_TO_DEVIATION) ** 2

    def shrink(values: np.ndarray) -> np.ndarray:
        return (sizes * values + PRIOR_ENTRIES * np.average(values, weights=sizes)) / (sizes + PRIOR_ENTRIES)

    shrunk = zip(samples, shrink(medians), shrink(variances), strict=True)
    return {kind: Scale(float(median), float(variance**0.5)) for kind, median, variance in shrunk}
