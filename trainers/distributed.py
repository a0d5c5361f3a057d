"""One loss over the batches of all processes, and the sum of its gradients.

Every process gathers the embeddings of all and computes the *same* loss over all queries and candidates (a matrix that
costs next to nothing beside the model). Automatic differentiation gives each process the gradient with respect to its
own embeddings; the gradients of the weights are then summed over the processes, once per step. The result is the
gradient of one process that holds the joined batch, whatever the number of processes and of their micro-batches.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, distributed
from torch.distributed.fsdp import FSDPModule
from torch.nn import Module, Parameter

from .gradient_cache import BackwardMicroBatch, MicroBatch


def gather(tensor: Tensor) -> tuple[Tensor, int]:
    """Concatenate a tensor of every process along the first dimension, whose sizes may differ.

    The own part keeps its gradient; those of the other processes are constants.

    Args:
        tensor (`Tensor` of shape `(rows, ...)`): This process's part.

    Returns:
        `tuple[Tensor, int]`: All rows, in the order of the processes, and the position of this process's first row.
    """
    if not _several_processes():
        return tensor, 0
    world, rank = distributed.get_world_size(), distributed.get_rank()
    own = torch.tensor([len(tensor)], device=tensor.device)
    sizes = [torch.empty_like(own) for _ in range(world)]
    distributed.all_gather(sizes, own)
    sizes = [int(size) for size in sizes]
    padded = tensor.new_zeros(max(sizes), *tensor.shape[1:])
    padded[: len(tensor)] = tensor.detach()
    parts = [torch.empty_like(padded) for _ in range(world)]
    distributed.all_gather(parts, padded)
    parts = [part[:size] for part, size in zip(parts, sizes, strict=True)]
    parts[rank] = tensor  # collectives cut the graph: put the own part, and with it its gradient, back
    return torch.cat(parts), sum(sizes[:rank])


@torch.no_grad()
def sum_gradients(parameters: Iterable[Parameter]) -> None:
    """Replace the gradients of the trained parameters by their sums over all processes.

    A parameter that some processes did not use (no images in their batch, say) counts as zero there; one that none
    used keeps no gradient, so that the optimizer passes it over as it would in one process.
    """
    if not _several_processes():
        return
    for bucket in _buckets([parameter for parameter in parameters if parameter.requires_grad]):
        pieces = [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in bucket]
        used = pieces[0].new_tensor([p.grad is not None for p in bucket])
        flat = torch.cat([*pieces, used])
        distributed.all_reduce(flat)
        *sums, used = flat.split([*(p.numel() for p in bucket), len(bucket)])
        for parameter, total, uses in zip(bucket, sums, used.tolist(), strict=True):
            parameter.grad = total.view_as(parameter) if uses else None


def _buckets(parameters: list[Parameter], size: int = 2**25) -> Iterator[list[Parameter]]:
    """Cut the parameters into runs of one device and type of at most `size` numbers: one message each."""
    bucket: list[Parameter] = []
    for parameter in parameters:
        same_kind = bucket and (bucket[0].device, bucket[0].dtype) == (parameter.device, parameter.dtype)
        if bucket and not (same_kind and sum(p.numel() for p in bucket) + parameter.numel() <= size):
            yield bucket
            bucket = []
        bucket.append(parameter)
    if bucket:
        yield bucket


def _several_processes() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def is_sharded(model: Module) -> bool:
    """Whether FSDP2 has sharded the model."""
    return isinstance(model, FSDPModule)


def sum_when_reducing(model: Module) -> None:
    """Make FSDP2 sum the gradients of the processes: by default it takes their mean."""
    for module in model.modules():
        if is_sharded(module):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def align_micro_batches(micro_batches: Sequence[MicroBatch]) -> tuple[list[MicroBatch], Tensor]:
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
    # Images first: ZeRO-3 takes the first gradients of a step as they come and adds later ones to what its buffers
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


if TYPE_CHECKING:  # an extra, which those who train without it lack
    from deepspeed import DeepSpeedEngine


def deepspeed_backward(engine: "DeepSpeedEngine") -> BackwardMicroBatch:
    """Return what sends gradients back through an engine, summed over the processes: ZeRO takes their mean."""
    processes = distributed.get_world_size()

    def send_back(embeddings: Tensor, gradient: Tensor, last: bool) -> None:
        engine.set_gradient_accumulation_boundary(last)
        engine.optimizer.clear_backward_seen_flag()  # as a forward pass would, of which kept graphs need no second
        with torch.enable_grad():  # this runs in a hook of the loss's own backward
            engine.backward((embeddings * gradient).sum() * processes, scale_wrt_gas=False)

    return send_back
