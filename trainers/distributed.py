"""One loss over the batches of all processes: gathering embeddings, summing gradients, FSDP2 and DeepSpeed.

Every process gathers the embeddings of all processes and computes the same loss over all queries and candidates; the
similarity matrix costs next to nothing beside the model. Automatic differentiation gives each process the gradient
with respect to its own embeddings, and the gradients of the weights are summed over the processes once per step. The
result is the gradient of one process that holds the joined batch, for any number of processes and micro-batches.

FSDP2 and DeepSpeed reduce gradients themselves, and by default take their mean; here they are made to sum. Where
processes hold shards of one model they must run its layers together, so [`align_micro_batches`] makes them agree on
the micro-batches of a step.
"""

import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, distributed
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn import Module, Parameter
from transformers import TrainingArguments

from ..batching_unime import count_items
from .gradient_cache import BackwardMicroBatch, MicroBatch


if TYPE_CHECKING:  # an optional dependency
    from deepspeed import DeepSpeedEngine

MAX_BUCKET_ELEMENTS = 2**25  # gradients that one all-reduce sums


def _several_processes() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def require_one_device(args: TrainingArguments) -> None:
    """Refuse to train in one process on several GPUs, as `Trainer` would by default.

    Args:
        args (`TrainingArguments`): The training arguments.

    Raises:
        ValueError: One process has several GPUs.
    """
    if args.n_gpu > 1:
        command = f"accelerate launch --num_processes {args.n_gpu} {shlex.join(sys.argv)}"
        raise ValueError(
            f"one process cannot train on {args.n_gpu} GPUs: start one process per GPU with `{command}`, or choose "
            "one GPU with CUDA_VISIBLE_DEVICES=0"
        )


def gather(tensor: Tensor) -> tuple[Tensor, int]:
    """Concatenate a tensor of every process along the first dimension, which may differ in size.

    This process's part keeps its gradient; the parts of the other processes are constants.

    Args:
        tensor (`Tensor` of shape `(rows, ...)`): This process's part.

    Returns:
        `tuple[Tensor, int]`: All rows, in the order of the processes, and the position of this process's first row.
    """
    if not _several_processes():
        return tensor, 0
    world_size, rank = distributed.get_world_size(), distributed.get_rank()
    local_size = torch.tensor([len(tensor)], device=tensor.device)
    all_sizes = [torch.empty_like(local_size) for _ in range(world_size)]
    distributed.all_gather(all_sizes, local_size)
    sizes = [int(size) for size in all_sizes]
    padded = tensor.new_zeros((max(sizes), *tensor.shape[1:]))
    padded[: len(tensor)] = tensor.detach()
    parts = [torch.empty_like(padded) for _ in range(world_size)]
    distributed.all_gather(parts, padded)
    parts = [part[:size] for part, size in zip(parts, sizes, strict=True)]
    parts[rank] = tensor  # the collective cut the graph: restore the local part with its gradient
    return torch.cat(parts), sum(sizes[:rank])


@torch.no_grad()
def sum_gradients(parameters: Iterable[Parameter]) -> None:
    """Replace the gradients of the trained parameters by their sums over all processes.

    A parameter that a process did not use, for example because its batch has no images, counts as zero there. One
    that no process used keeps no gradient, so that the optimizer skips it as it would in a single process.

    Args:
        parameters (`Iterable[Parameter]`): The parameters of the model, in the same order in all processes.
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


@torch.no_grad()
def mean_gradients(parameters: Iterable[Parameter]) -> None:
    """Replace the gradients of the trained parameters by their means over all processes, see [`sum_gradients`].

    Args:
        parameters (`Iterable[Parameter]`): The parameters of the model, in the same order in all processes.
    """
    parameters = list(parameters)
    sum_gradients(parameters)
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad /= distributed.get_world_size()


def _buckets(parameters: list[Parameter]) -> Iterator[list[Parameter]]:
    """Split the parameters into runs of the same device and dtype, each summed by one all-reduce."""
    bucket: list[Parameter] = []
    for parameter in parameters:
        same_type = bucket and (bucket[0].device, bucket[0].dtype) == (parameter.device, parameter.dtype)
        elements = sum(p.numel() for p in bucket) + parameter.numel()
        if bucket and not (same_type and elements <= MAX_BUCKET_ELEMENTS):
            yield bucket
            bucket = []
        bucket.append(parameter)
    if bucket:
        yield bucket


def prepare_without_wrapping(accelerator: Accelerator) -> None:
    """Make accelerate prepare models for data parallelism without `DistributedDataParallel`.

    [`sum_gradients`] replaces its reducer, whose buckets would take the memory of all trained weights once more. As
    the wrapper does, preparing a model for training copies the weights of the first process to all others.

    Args:
        accelerator (`Accelerator`): The accelerator of plain data parallelism, neither sharded nor DeepSpeed.
    """
    prepare_model = accelerator.prepare_model

    def prepare(model: Module, device_placement: bool | None = None, evaluation_mode: bool = False) -> Module:
        model = prepare_model(model, device_placement, evaluation_mode=True)
        if not evaluation_mode:
            for tensor in chain(model.parameters(), model.buffers()):
                if tensor.is_floating_point():  # 4-bit weights are frozen, and one file's for all processes
                    distributed.broadcast(tensor.data, src=0)
        return model

    accelerator.prepare_model = prepare


def is_sharded(model: Module) -> bool:
    """Return whether FSDP2 has sharded the model."""
    return isinstance(model, FSDPModule)


def gather_weights(model: Module, keep: bool, trained_only: bool = False) -> dict[str, Tensor]:
    """Gather the weights that FSDP2 has sharded, one after the other; every process must call this.

    Args:
        model (`Module`): The sharded model.
        keep (`bool`): Whether this process needs the weights.
        trained_only (`bool`, *optional*, defaults to `False`): Whether to leave frozen weights and buffers out.

    Returns:
        `dict[str, Tensor]`: The whole weights by name, on the CPU; empty unless `keep`.
    """
    weights = {}
    for name, weight in model.state_dict(keep_vars=True).items():
        if trained_only and not weight.requires_grad:
            continue
        full = weight.full_tensor().detach() if isinstance(weight, DTensor) else weight.detach()
        if keep:
            weights[name] = full.cpu()
    return weights


@contextmanager
def only_saved_state_expected(model: Module, checkpoint: str | Path) -> Iterator[None]:
    """Let a checkpoint of FSDP2 lack the optimizer state of weights that had not got any gradient when it was saved.

    Such a weight has no state, neither then nor now. Loading expects one for every weight that requires gradients, so
    these weights require none inside this context.

    Args:
        model (`Module`): The sharded model.
        checkpoint (`str` or `Path`): Folder of the checkpoint, with sharded or with full state.
    """
    prefix, shards = "optimizer.state.", Path(checkpoint, "optimizer_0")
    if shards.is_dir():
        keys = FileSystemReader(shards).read_metadata().state_dict_metadata
        saved = {key.removeprefix(prefix).rpartition(".")[0] for key in keys if key.startswith(prefix)}
    else:
        saved = set(torch.load(Path(checkpoint, "optimizer.bin"), mmap=True, weights_only=True)["state"])
    weights = model.state_dict(keep_vars=True)
    without_state = [weight for name, weight in weights.items() if weight.requires_grad and name not in saved]
    for weight in without_state:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in without_state:
            weight.requires_grad_()


@contextmanager
def without_loss_scaling(optimizer: AcceleratedOptimizer) -> Iterator[None]:
    """Let FSDP2 save or load the state of an optimizer that trains in fp16.

    Where an optimizer has no state yet, torch makes one by a step without gradients, which a gradient scaler refuses.

    Args:
        optimizer (`AcceleratedOptimizer`): The optimizer.
    """
    scaler, optimizer.scaler = optimizer.scaler, None
    try:
        yield
    finally:
        optimizer.scaler = scaler


def sum_when_reducing(model: Module) -> None:
    """Make FSDP2 sum the gradients of the processes instead of taking their mean."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def align_micro_batches(micro_batches: Sequence[MicroBatch]) -> tuple[list[MicroBatch], Tensor]:
    """Order and pad this process's micro-batches so that all processes run the same kinds in the same order.

    The kind of a micro-batch is the set of tensors that it has. A process with fewer micro-batches of a kind than
    another one repeats its first one of that kind, or runs one that another process sends; these extra embeddings are
    not used.

    Args:
        micro_batches (`Sequence`): This process's micro-batches, in host memory; at least one.

    Returns:
        `tuple[list, Tensor]`: The micro-batches to run; and for each item of the given micro-batches, concatenated,
        the row of its embedding among the embeddings of the micro-batches to run, `(items,)`. All in host memory.
    """
    local_kinds = [tuple(sorted(tensors)) for tensors in micro_batches]
    kinds_by_process: list[list[tuple[str, ...]]] = [[] for _ in range(distributed.get_world_size())]
    distributed.all_gather_object(kinds_by_process, local_kinds)

    aligned: list[MicroBatch] = []
    first_rows = [0] * len(micro_batches)
    num_rows = 0
    # Images first: ZeRO-3 stores the first gradients of a step and adds later ones to its buffers, which for a weight
    # that the first micro-batch does not use still hold the gradient of the previous step.
    for kind in sorted({kind for kinds in kinds_by_process for kind in kinds}, key=lambda kind: (-len(kind), kind)):
        indices = [index for index, local_kind in enumerate(local_kinds) if local_kind == kind]
        filler = micro_batches[indices[0]] if indices else None
        if not all(kind in kinds for kinds in kinds_by_process):
            source = next(process for process, kinds in enumerate(kinds_by_process) if kind in kinds)
            filler = _broadcast(filler, source)
        for index in indices:
            aligned.append(micro_batches[index])
            first_rows[index] = num_rows
            num_rows += count_items(micro_batches[index])
        for _ in range(max(kinds.count(kind) for kinds in kinds_by_process) - len(indices)):
            assert filler is not None  # this process's own, or the one that was sent
            aligned.append(filler)
            num_rows += count_items(filler)
    rows = [
        torch.arange(first_row, first_row + count_items(tensors))
        for first_row, tensors in zip(first_rows, micro_batches, strict=True)
    ]
    return aligned, torch.cat(rows)


def _broadcast(tensors: MicroBatch | None, source: int) -> MicroBatch:
    """Send the micro-batch of the process `source` to all processes."""
    message: list[Any] = [dict(tensors) if tensors is not None else None]
    distributed.broadcast_object_list(message, src=source)
    return message[0]


def deepspeed_backward(engine: "DeepSpeedEngine") -> BackwardMicroBatch:
    """Return the backward pass of one micro-batch through a DeepSpeed engine.

    ZeRO takes the mean of the gradients of all processes; scaling by their number makes it the sum.

    Args:
        engine (`DeepSpeedEngine`): The engine that wraps the model.
    """
    world_size = distributed.get_world_size()

    def backward(embeddings: Tensor, gradient: Tensor, last: bool) -> None:
        engine.set_gradient_accumulation_boundary(last)
        # A forward pass would clear this flag, but a kept graph needs no second one.
        engine.optimizer.clear_backward_seen_flag()
        with torch.enable_grad():  # this runs in a hook of the loss's own backward pass
            engine.backward((embeddings * gradient).sum() * world_size, scale_wrt_gas=False)

    return backward
