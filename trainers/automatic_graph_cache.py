"""The graph cache that uses the memory that a device has left: `graph_cache_gb: inf`.

The first step measures. It keeps one graph, fully checkpointed, and counts by the allocator what a layer keeps in each
way of checkpointing, and how far the memory rises during the step. From the second step on, [`plan_passes`] chooses
which graphs are kept and what each holds, in the memory that is available when the step begins, less that rise and a
margin. A step with the first micro-batch of images, or of texts only, measures again.

The allocator counts everything that is alive. Hooks of saved tensors would miss what selective checkpointing keeps.
"""

import gc
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import psutil
import torch
from torch import Tensor, UntypedStorage, distributed
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from .activation_checkpointing import calling, checkpointed_layers, checkpointing_function
from .gradient_cache import MicroBatch, RandomState
from .pass_planning import MEMORY_MARGIN, Checkpointing, PlannedPass, checkpointing_of_layers, plan_passes


class Memory(Protocol):
    """The memory of a device: what the tensors on it take, and what they may take in addition."""

    def allocated(self) -> float:
        """Return the bytes of the tensors that are alive."""

    def peak(self) -> float:
        """Return the largest number of bytes since the peak was reset."""

    def reset_peak(self) -> None:
        """Start a new peak at what is allocated now."""

    def available(self) -> float:
        """Return the bytes that tensors may take in addition, without the margin."""

    def counting(self) -> AbstractContextManager:
        """Count the tensors that are made inside this context."""


class CudaMemory:
    """The memory of a CUDA or ROCm GPU, as torch's allocator counts it.

    Args:
        device (`torch.device`): The GPU.
    """

    def __init__(self, device: torch.device):
        self._device = device

    def allocated(self) -> float:
        """Return the bytes of the tensors that are alive."""
        return torch.cuda.memory_allocated(self._device)

    def peak(self) -> float:
        """Return the largest number of bytes since the peak was reset."""
        return torch.cuda.max_memory_allocated(self._device)

    def reset_peak(self) -> None:
        """Start a new peak at what is allocated now."""
        torch.cuda.reset_peak_memory_stats(self._device)

    def available(self) -> float:
        """Return the bytes that the driver and the allocator have left, without the margin."""
        free, total = torch.cuda.mem_get_info(self._device)
        unused = torch.cuda.memory_reserved(self._device) - self.allocated()
        return free + unused - MEMORY_MARGIN * total

    def counting(self) -> AbstractContextManager:
        """Do nothing: the allocator always counts."""
        return nullcontext()


class HostMemory(TorchDispatchMode):
    """The memory of a CPU: counts the storages of the tensors that operations return.

    Args:
        capacity (`float`, *optional*): Bytes that tensors may take in all. Defaults to what the machine has left.
    """

    def __init__(self, capacity: float | None = None):
        super().__init__()
        self._capacity = capacity
        self._alive = self._peak = 0
        self._storages: weakref.WeakSet[UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Run an operation and count the storages of its results that are not those of its inputs."""
        results = func(*args, **(kwargs or {}))
        inputs = {leaf.untyped_storage() for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(results):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                if storage not in inputs and storage not in self._storages:
                    self._storages.add(storage)
                    self._alive += storage.nbytes()
                    self._peak = max(self._peak, self._alive)
                    weakref.finalize(storage, self._free, storage.nbytes()).atexit = False
        return results

    def _free(self, size: int) -> None:
        self._alive -= size

    def allocated(self) -> float:
        """Return the bytes of the counted tensors that are alive."""
        return self._alive

    def peak(self) -> float:
        """Return the largest number of bytes since the peak was reset."""
        return self._peak

    def reset_peak(self) -> None:
        """Start a new peak at what is allocated now."""
        self._peak = self._alive

    def available(self) -> float:
        """Return the bytes that tensors may take in addition, without the margin."""
        if self._capacity is not None:
            return self._capacity - self._alive
        memory = psutil.virtual_memory()
        return memory.available - MEMORY_MARGIN * memory.total

    def counting(self) -> AbstractContextManager:
        """Count the tensors that are made inside this context."""
        return self


def memory_of(device: torch.device) -> Memory:
    """Return the memory of a device.

    Raises:
        ValueError: The memory of this kind of device cannot be counted.
    """
    if device.type == "cuda":
        return CudaMemory(device)
    if device.type == "cpu":
        return HostMemory()
    raise ValueError(
        f"graph_cache_gb=inf cannot count the memory of a device of type '{device.type}': set a number of gigabytes"
    )


class AutomaticGraphCache:
    """Chooses the graphs that [`cached_loss`] keeps, and what each holds, by the memory of the device.

    Layers with activation checkpointing may keep all, a part or their input only; others keep what they keep. If the
    model is compiled, checkpointed layers stay as they are too.

    Args:
        backbone (`PreTrainedModel`): The image-text model that is trained.
        memory ([`Memory`]): The memory of its device.
        synchronize (`bool`, *optional*, defaults to `False`): Plan the largest graphs of all processes in the least
            memory of all, so that all choose alike. Needed where processes hold shards of one model.
    """

    def __init__(self, backbone: PreTrainedModel, memory: Memory, synchronize: bool = False):
        self._backbone, self._memory, self._synchronize = backbone, memory, synchronize
        self._in_decoder = set(backbone.get_decoder().modules())
        # Bytes for each token or number of pixels, by the kind of layer and by what it keeps.
        self._layer_bytes: dict[tuple[str, Checkpointing], float] = defaultdict(float)
        self._other_bytes = 0.0  # for each token, outside these layers
        self._rise = 0.0  # of the memory during a step that measures
        self._measured: set[bool] = set()  # whether a micro-batch has images
        self.passes: list[PlannedPass] = []

    def start(self, micro_batches: Sequence[MicroBatch]) -> None:
        """Plan the passes of a step."""
        layers = checkpointed_layers(self._backbone)
        # What runs inside compiled code cannot be kept selectively; `compile_layers` replaces the forward pass.
        compiled = any("forward" in vars(layer) for layer in layers)
        if compiled or any(module._compiled_call_impl for module in self._backbone.modules()):
            layers = []
        self._layers = sorted(layers, key=lambda layer: layer not in self._in_decoder)  # which saves more per byte
        self._kinds = {"pixel_values" in tensors for tensors in micro_batches}
        self._measuring = bool(self._agree(not self._kinds <= self._measured))
        if self._measuring:
            self.passes = [PlannedPass(index == 0, 0) for index in range(len(micro_batches))]
            self._memory.reset_peak()
            self._allocated_before = self._memory.allocated()
            return
        sizes = self._agree(torch.stack([self._graph_bytes(tensors) for tensors in micro_batches]))
        budget = -float(self._agree(-(self._memory.available() - self._rise)))
        self.passes = plan_passes(sizes.tolist(), budget)

    def keeps(self, index: int) -> bool:
        """Return whether the graph of a micro-batch is kept from the first pass."""
        return self.passes[index].kept

    @contextmanager
    def building(self, index: int, tensors: MicroBatch) -> Iterator[None]:
        """Let layers keep what is planned for a micro-batch while its graph is built."""
        ways = checkpointing_of_layers(self.passes[index].level, len(self._layers))
        functions = {layer: checkpointing_function(layer, way) for layer, way in zip(self._layers, ways, strict=True)}
        if not self._measuring:
            with calling(functions):
                yield
            return
        counted: dict[str, float] = {}
        names = [self._kind(layer) for layer in self._layers]
        first = dict(zip(reversed(names), reversed(self._layers), strict=True))
        functions |= {layer: self._measure(layer, tensors, counted) for layer in first.values()}
        with self._memory.counting(), calling(functions):
            before = self._memory.allocated()
            yield
            in_layers = sum(counted.get(name, 0) for name in names)
            other = self._memory.allocated() - before - in_layers
        self._other_bytes = max(self._other_bytes, other / _size(tensors, True))

    def _kind(self, layer: GradientCheckpointingLayer) -> str:
        """Return a name of the layers that keep as much: the last one of the decoder may be for last tokens only."""
        return "last layer" if layer is self._backbone.get_decoder().layers[-1] else type(layer).__name__

    def _measure(self, layer: GradientCheckpointingLayer, tensors: MicroBatch, counted: dict[str, float]) -> Callable:
        """Return a function that runs a layer in every way, the smallest last, and records what it keeps."""
        name, size = self._kind(layer), _size(tensors, layer in self._in_decoder)
        ways = {way: checkpointing_function(layer, way) for way in sorted(Checkpointing, reverse=True)}
        devices = {tensor.device for tensor in (*tensors.values(), *layer.parameters())}

        def run(forward: Callable, *args: Any) -> Any:
            for way, function in ways.items():
                state, before = RandomState(devices), self._memory.allocated()
                output = function(forward, *args)
                kept = self._memory.allocated() - before
                self._layer_bytes[name, way] = max(self._layer_bytes[name, way], kept / size)
                if way is not Checkpointing.FULL:
                    del output
                    gc.collect()  # graphs of checkpointed layers refer to themselves
                    state.restore()
            counted[name] = kept
            return output

        return run

    def backward(self) -> AbstractContextManager:
        """Count the memory of a backward pass inside this context, if this step measures."""
        return self._memory.counting() if self._measuring else nullcontext()

    def finish(self) -> None:
        """End the step; call it after the last backward pass."""
        if self._measuring:
            self._rise = max(self._rise, self._memory.peak() - self._allocated_before)
            self._measured |= self._kinds

    def _graph_bytes(self, tensors: MicroBatch) -> Tensor:
        """Return the bytes of the graph of a micro-batch at each level."""
        sizes = torch.tensor([_size(tensors, layer in self._in_decoder) for layer in self._layers])
        kept = [[self._layer_bytes[self._kind(layer), way] for way in Checkpointing] for layer in self._layers]
        full, selective, none = torch.tensor(kept, dtype=torch.float64).reshape(-1, 3).T * sizes
        steps = torch.cat([selective - full, none - selective]).clamp(min=0)
        smallest = full.sum() + self._other_bytes * _size(tensors, True)
        return smallest + torch.cat([steps.new_zeros(1), steps.cumsum(0)])

    def _agree(self, values: Tensor | float) -> Tensor:
        """Return the largest values of all processes, or those of this one if they need not agree."""
        values = torch.as_tensor(values, dtype=torch.float64)
        if self._synchronize:
            device = self._backbone.device
            values = values.to(device)
            distributed.all_reduce(values, distributed.ReduceOp.MAX)
        return values.cpu()


def _size(tensors: Mapping[str, Tensor], in_decoder: bool) -> int:
    """Return the number of tokens, or the numbers of pixels that the vision tower reads."""
    return tensors["input_ids"].numel() if in_decoder else max(1, tensors.get("pixel_values", torch.empty(0)).numel())
