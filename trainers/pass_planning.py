"""Which graphs of a step are kept, and how: the passes of gradient caching that a memory budget allows.

A micro-batch costs one forward pass and one backward pass. Gradient caching adds a forward pass unless its graph is
kept from the first pass, and activation checkpointing adds what it computes again in the backward pass:

    executed = (1 if kept else 2) * forward + backward + recomputed(mode)

A graph that is kept waits for its backward pass together with others, while the graph of a second pass has the budget
to itself: kept graphs are those of the first micro-batches, and they are gone before the first second pass begins.
Kept graphs are therefore checkpointed, which is the most work saved per byte, and second passes are checkpointed only
where nothing else fits.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise


# Share of a device that no graph uses: fragments of the allocator, and a largest micro-batch that no step measured.
MEMORY_MARGIN = 0.08


class Checkpointing(IntEnum):
    """What the layers of a micro-batch keep for their backward pass, in ascending order of memory."""

    FULL = 0  # the input of each layer
    SELECTIVE = 1  # also the results of attention and of all matrix products but the last
    NONE = 2  # everything


@dataclass(frozen=True)
class PlannedPass:
    """How the graph of a micro-batch is built.

    Args:
        kept (`bool`): Whether it is built in the first pass, and kept. Otherwise there is a second pass.
        checkpointing ([`Checkpointing`]): What it holds.
    """

    kept: bool
    checkpointing: Checkpointing


GraphBytes = Mapping[Checkpointing, float]  # the size of a graph in each way that it can be built


def plan_passes(graph_bytes: Sequence[GraphBytes], budget_bytes: float) -> list[PlannedPass]:
    """Choose the graphs that are kept, and what each graph holds, for the least work within a memory budget.

    Args:
        graph_bytes (`Sequence`): The bytes of the graph of each micro-batch. All have the same keys.
        budget_bytes (`float`): Bytes for graphs, beside one graph of the smallest kind. At 0 only the graph of the
            first micro-batch is kept.

    Returns:
        `list[PlannedPass]`: One for each micro-batch; those that are kept come first.
    """
    ways = sorted(graph_bytes[0])
    least = ways[0]
    extra_bytes = [{way: sizes[way] - sizes[least] for way in ways} for sizes in graph_bytes]
    bytes_left, num_kept = budget_bytes, 1
    while num_kept < len(graph_bytes) and graph_bytes[num_kept][least] <= bytes_left:
        bytes_left -= graph_bytes[num_kept][least]
        num_kept += 1
    kept = [least] * num_kept
    for less, more in pairwise(ways):  # with the memory that is left, kept graphs hold more
        for index in range(num_kept):
            difference = extra_bytes[index][more] - extra_bytes[index][less]
            if kept[index] is less and difference <= bytes_left:
                kept[index], bytes_left = more, bytes_left - difference
    second = [max(way for way in ways if way is least or extra[way] <= budget_bytes) for extra in extra_bytes]
    return [PlannedPass(True, way) for way in kept] + [PlannedPass(False, way) for way in second[num_kept:]]


def executed_flops(
    passes: Iterable[PlannedPass],
    forward: Sequence[float],
    backward: Sequence[float],
    recomputed: Sequence[Mapping[Checkpointing, float]],
) -> float:
    """Return the floating-point operations of the passes of a step.

    Args:
        passes (`Iterable[PlannedPass]`): The passes of the micro-batches.
        forward (`Sequence[float]`): The operations of the forward pass of each micro-batch.
        backward (`Sequence[float]`): Those of its backward pass, without what is computed again.
        recomputed (`Sequence[Mapping]`): Those that its backward pass computes again, by what the graph holds.
    """
    return sum(
        (1 if planned.kept else 2) * ahead + back + again[planned.checkpointing]
        for planned, ahead, back, again in zip(passes, forward, backward, recomputed, strict=True)
    )
