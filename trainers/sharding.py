"""Gradient caching under FSDP2: every process takes the same steps.

A sharded model gathers the weights of a layer from all processes whenever it runs that layer. So all processes must
run the same layers equally often and in the same order, but their micro-batches differ in number and in kind: text
alone passes by the vision tower. Here the processes agree on one plan for a step: of each kind as many micro-batches
as the process with the most of it has. A process with fewer embeds one again whose embeddings go into no loss; its
gradient is zero. The others embed theirs meanwhile, and would have had to be waited for.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, distributed
from torch.distributed.fsdp import FSDPModule
from torch.nn import Module

from .gradient_cache import MicroBatch


def is_sharded(model: Module) -> bool:
    """Whether FSDP2 has sharded the model."""
    return isinstance(model, FSDPModule)


def sum_when_reducing(model: Module) -> None:
    """Make FSDP2 sum the gradients of the processes: by default it takes their mean."""
    for module in model.modules():
        if is_sharded(module):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def common_plan(micro_batches: Sequence[MicroBatch]) -> tuple[list[MicroBatch], Tensor]:
    """Bring this process's micro-batches into the order that all processes agree on, filling up where it has fewer.

    Args:
        micro_batches (`Sequence`): This process's micro-batches, at least one; their kind is which tensors they hold.

    Returns:
        `tuple[list, Tensor]`: The micro-batches to run; and for each item of the given ones, joined, the row of its
        embedding among those of the micro-batches to run, `(items,)`.
    """
    kinds = [tuple(sorted(tensors)) for tensors in micro_batches]
    everyone: list[list[tuple[str, ...]]] = [[] for _ in range(distributed.get_world_size())]
    distributed.all_gather_object(everyone, kinds)

    plan: list[MicroBatch] = []
    starts = [0] * len(micro_batches)
    rows = 0
    # Pictures first: ZeRO-3 takes the first gradients of a step as they come and adds later ones to what its buffers
    # hold, which for a weight that the first micro-batch does not use is the gradient of the step before.
    for kind in sorted({kind for of_one in everyone for kind in of_one}, key=lambda kind: (-len(kind), kind)):
        own = [position for position, own_kind in enumerate(kinds) if own_kind == kind]
        filler = micro_batches[own[0]] if own else None
        if not all(kind in of_one for of_one in everyone):
            lender = next(process for process, of_one in enumerate(everyone) if kind in of_one)
            filler = _lend(filler, lender, device=micro_batches[0]["input_ids"].device)
        for position in own:
            plan.append(micro_batches[position])
            starts[position] = rows
            rows += len(micro_batches[position]["input_ids"])
        for _ in range(max(of_one.count(kind) for of_one in everyone) - len(own)):
            plan.append(filler)
            rows += len(filler["input_ids"])
    places = [
        torch.arange(start, start + len(tensors["input_ids"]), device=tensors["input_ids"].device)
        for start, tensors in zip(starts, micro_batches, strict=True)
    ]
    return plan, torch.cat(places)


def _lend(tensors: MicroBatch | None, lender: int, device: torch.device) -> MicroBatch:
    """Give the lender's micro-batch to all."""
    on_its_way = [{name: value.cpu() for name, value in tensors.items()} if tensors is not None else None]
    distributed.broadcast_object_list(on_its_way, src=lender)
    return {name: value.to(device) for name, value in on_its_way[0].items()}
