"""Which graphs of a step are kept, and how: the passes of gradient caching that a memory budget allows.

A micro-batch costs one forward pass and one backward pass. Gradient caching adds a forward pass unless its graph is
kept from the first pass, and activation checkpointing adds what it computes again in the backward pass:

    executed = (1 if kept else 2) * forward + backward + recomputed(mode)

A graph that is kept waits for its backward pass together with others, while the graph of a second pass has the budget
to itself: kept graphs are those of the first micro-batches, and they are gone before the first second pass begins.
Kept graphs are therefore checkpointed, which is the most work saved per byte, and second passes are checkpointed only
where nothing else fits. What a graph holds is chosen layer by layer, so that large micro-batches use it up too.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum


# Share of a device that no graph uses: fragments of the allocator, and a largest micro-batch that no step measured.
MEMORY_MARGIN = 0.08


class Checkpointing(IntEnum):
    """What a layer keeps for its backward pass, in ascending order of memory."""

    FULL = 0  # its input
    SELECTIVE = 1  # also the results of all matrix products but the last, and of attention to many tokens
    NONE = 2  # everything


@dataclass(frozen=True)
class PlannedPass:
    """How the graph of a micro-batch is built.

    Args:
        kept (`bool`): Whether it is built in the first pass, and kept. Otherwise there is a second pass.
        level (`int`): How much its layers keep, see [`checkpointing_of_layers`].
    """

    kept: bool
    level: int


def checkpointing_of_layers(level: int, num_layers: int) -> list[Checkpointing]:
    """Return what each layer keeps at a level between 0 and `2 * num_layers`.

    At level 0 all layers keep their input only. Each level more lets one more layer keep more: first one after the
    other is checkpointed selectively, then one after the other not at all.

    Args:
        level (`int`): The level.
        num_layers (`int`): Number of layers. The first ones should save most work per byte: those of the decoder.
    """
    return [Checkpointing((level > index) + (level > num_layers + index)) for index in range(num_layers)]


def plan_passes(graph_bytes: Sequence[Sequence[float]], budget_bytes: float) -> list[PlannedPass]:
    """Choose the graphs that are kept, and what each graph holds, for the least work within a memory budget.

    Args:
        graph_bytes (`Sequence`): The bytes of the graph of each micro-batch at each level, in ascending order.
        budget_bytes (`float`): Bytes for graphs, beside one graph of level 0. At 0 only the graph of the first
            micro-batch is kept.

    Returns:
        `list[PlannedPass]`: One for each micro-batch; those that are kept come first.
    """
    bytes_left, num_kept = budget_bytes, 1
    while num_kept < len(graph_bytes) and graph_bytes[num_kept][0] <= bytes_left:
        bytes_left -= graph_bytes[num_kept][0]
        num_kept += 1
    kept = [0] * num_kept
    for level in range(1, len(graph_bytes[0])):  # with the memory that is left, kept graphs hold more
        for index in range(num_kept):
            difference = graph_bytes[index][level] - graph_bytes[index][level - 1]
            if kept[index] == level - 1 and difference <= bytes_left:
                kept[index], bytes_left = level, bytes_left - difference
    passes = [PlannedPass(True, level) for level in kept]
    for sizes in graph_bytes[num_kept:]:
        fitting = (level for level, size in enumerate(sizes) if size - sizes[0] <= budget_bytes)
        passes.append(PlannedPass(False, max(fitting, default=0)))
    return passes


def executed_flops(
    passes: Iterable[PlannedPass],
    forward: Sequence[float],
    backward: Sequence[float],
    recomputed: Sequence[Sequence[float]],
) -> float:
    """Return the floating-point operations of the passes of a step.

    Args:
        passes (`Iterable[PlannedPass]`): The passes of the micro-batches.
        forward (`Sequence[float]`): The operations of the forward pass of each micro-batch.
        backward (`Sequence[float]`): Those of its backward pass, without what is computed again.
        recomputed (`Sequence[Sequence]`): Those that its backward pass computes again, at each level.
    """
    return sum(
        (1 if planned.kept else 2) * ahead + back + again[planned.level]
        for planned, ahead, back, again in zip(passes, forward, backward, recomputed, strict=True)
    )
