"""Several ways to do the same work, timed in turn (A B A B) in one process, so that a busy machine slows all alike."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Alternation:
    """What [`alternate`] measured.

    Args:
        seconds (`dict[str, list[float]]`): Wall time of each way in each round.
        results (`dict[str, Any]`): What each way returned in the last round.
    """

    seconds: dict[str, list[float]]
    results: dict[str, Any]

    def median(self, way: str) -> float:
        """Median wall time of a way, in seconds."""
        return statistics.median(self.seconds[way])

    def ratio(self, slow: str, fast: str) -> float:
        """How many times as fast `fast` is as `slow`: the median over the rounds of the ratio of their times."""
        pairs = zip(self.seconds[slow], self.seconds[fast], strict=True)
        return statistics.median(one / other for one, other in pairs)


def alternate(ways: Mapping[str, Callable[[], Any]], rounds: int) -> Alternation:
    """Run every way once per round, always in the same order.

    The first call of a way may include what later ones do not (compilation, caches): warm it up beforehand.

    Args:
        ways (`Mapping[str, Callable]`): The work, by the name of the way.
        rounds (`int`): How often; at least 1.

    Raises:
        ValueError: There is nothing to measure.
    """
    if not ways or rounds < 1:
        raise ValueError(f"expected at least one way and one round, got {len(ways)} ways and {rounds} rounds")
    found = Alternation({way: [] for way in ways}, {})
    for _ in range(rounds):
        for way, work in ways.items():
            start = time.perf_counter()
            found.results[way] = work()
            if torch.accelerator.is_available():  # it computes on after the call has returned
                torch.accelerator.synchronize()
            found.seconds[way].append(time.perf_counter() - start)
    return found
