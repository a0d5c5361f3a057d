"""Time several functions in turn (A B A B) in one process, so that a busy machine slows all of them equally."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class InterleavedTimings:
    """The result of [`time_interleaved`].

    Args:
        seconds (`dict[str, list[float]]`): Wall times of each function, one per round.
        results (`dict[str, Any]`): Return value of each function in the last round.
    """

    seconds: dict[str, list[float]]
    results: dict[str, Any]

    def median(self, name: str) -> float:
        """Return the median wall time of a function in seconds."""
        return statistics.median(self.seconds[name])

    def speedup(self, slow: str, fast: str) -> float:
        """Return the speedup of `fast` over `slow`: the median over the rounds of the ratio of their times."""
        pairs = zip(self.seconds[slow], self.seconds[fast], strict=True)
        return statistics.median(a / b for a, b in pairs)


def time_interleaved(functions: Mapping[str, Callable[[], Any]], rounds: int) -> InterleavedTimings:
    """Call every function once per round, always in the same order.

    Warm the functions up beforehand: a first call may include compilation or filling caches.

    Args:
        functions (`Mapping[str, Callable]`): Functions by name.
        rounds (`int`): Number of rounds, at least 1.

    Raises:
        ValueError: There is no function or no round.
    """
    if not functions or rounds < 1:
        raise ValueError(
            f"expected at least one function and one round, got {len(functions)} functions and {rounds} rounds"
        )
    timings = InterleavedTimings({name: [] for name in functions}, {})
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            timings.results[name] = function()
            if torch.accelerator.is_available():  # accelerators compute asynchronously
                torch.accelerator.synchronize()
            timings.seconds[name].append(time.perf_counter() - start)
    return timings
