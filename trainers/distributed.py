"""One loss over the batches of all processes, and the sum of its gradients.

Every process gathers the embeddings of all and computes the *same* loss over all queries and candidates (a matrix that
costs next to nothing beside the model). Automatic differentiation gives each process the gradient with respect to its
own embeddings; the gradients of the weights are then summed over the processes, once per step. The result is the
gradient of one process that holds the joined batch, whatever the number of processes and of their micro-batches.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, distributed
from torch.nn import Parameter


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

    A parameter that some processes did not use (no pictures in their batch, say) counts as zero there; one that none
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
