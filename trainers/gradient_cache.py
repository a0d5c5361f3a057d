"""Gradient caching: the exact gradient of a large batch in the memory of one micro-batch (GradCache).

A contrastive loss compares the embeddings of the whole batch, but the gradient of an embedding with respect to the
weights depends on its own micro-batch only. [`cached_loss`] therefore works in three steps (Gao et al.,
arXiv 2101.06983):

1. Embed every micro-batch without a graph, and record the state of the random number generators before each.
2. Compute the loss of all embeddings, and its gradient with respect to them: the gradient cache.
3. Embed each micro-batch again, now with a graph and with the recorded random state, so that dropout is the same; then
   backpropagate its slice of the gradient cache.

The gradients equal those of the whole batch held in memory at once. The price is the second forward pass: if a forward
pass costs 1 and a backward pass 2 (1 for frozen weights, which need no gradients), a step costs 4 (3) instead of
3 (2). Three shortcuts reduce the price and leave the gradients as they are:

- [`GraphCacheBudget`] lets step 1 keep the graphs of as many micro-batches as fit into a memory budget, at least that
  of the first one; step 3 then embeds only the others again. [`AutomaticGraphCache`] uses the memory that a device has
  left, also for layers that are not, or not fully, checkpointed.
- [`CachedVisionFeatures`] reuses the image features of step 1 in step 3 if the vision tower is frozen.
- [`with_last_layer_shortcut`] runs the last layer for the last token of each item only.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import chain
from typing import Any, Protocol
from weakref import ref

import torch
from torch import Tensor, UntypedStorage, distributed
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import Module
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..modeling_unime import UniMEModel
from ..pooling_unime import SHORTCUT_DECODERS, last_layer_on_last_token
from .activation_checkpointing import calling


MicroBatch = Mapping[str, Tensor]
BackwardMicroBatch = Callable[[Tensor, Tensor, bool], None]


def backward_micro_batch(embeddings: Tensor, gradient: Tensor, last: bool) -> None:
    """Backpropagate the gradient of the embeddings of one micro-batch.

    Args:
        embeddings (`Tensor` of shape `(items, dimensions)`): The embeddings, with their graph.
        gradient (`Tensor` of shape `(items, dimensions)`): The gradient of the loss with respect to them.
        last (`bool`): Whether this is the last micro-batch of the step.
    """
    # The graph of a micro-batch that uses no trained weight is empty.
    if embeddings.requires_grad:
        embeddings.backward(gradient)


def cached_loss(
    embed: Callable[[MicroBatch], Tensor],
    micro_batches: Sequence[MicroBatch],
    loss_fn: Callable[[Tensor], Tensor],
    budget: "GraphCache | None" = None,
    backward: BackwardMicroBatch = backward_micro_batch,
    devices: Iterable[torch.device] = (),
) -> Tensor:
    """Compute the loss of a whole batch; its `backward()` runs micro-batch by micro-batch.

    Args:
        embed (`Callable`): Maps the tensors of one micro-batch to its embeddings `(items, dimensions)`, see also
            [`with_inputs_on`].
        micro_batches (`Sequence`): The micro-batches. A single one is embedded only once.
        loss_fn (`Callable`): Maps all embeddings `(all items, dimensions)`, in the order of the micro-batches, to a
            scalar. It runs once, so it may gather across processes.
        budget ([`GraphCacheBudget`] or [`AutomaticGraphCache`], *optional*): Chooses the graphs that are kept. By
            default only that of the first micro-batch is kept.
        backward (`Callable`, *optional*, defaults to [`backward_micro_batch`]): Backpropagates the gradient of one
            micro-batch.
        devices (`Iterable[torch.device]`, *optional*): Devices that `embed` may draw random numbers from beside those
            of the micro-batches, such as the others that a `device_map` has spread the model over.

    Returns:
        `Tensor`: The scalar loss. Its backward pass adds to the `.grad` of the weights; anything that scales the loss,
        such as a gradient scaler, scales these gradients.
    """
    if not torch.is_grad_enabled():
        return loss_fn(torch.cat([embed(tensors) for tensors in micro_batches]))

    model_devices = set(devices)
    # Step 1. Both dictionaries are keyed by the index of the micro-batch.
    embeddings_with_graph: dict[int, Tensor] = {}
    random_states: dict[int, RandomState] = {}
    parts = []
    budget = GraphCacheBudget(0) if budget is None else budget
    budget.start(micro_batches)
    for index, tensors in enumerate(micro_batches):
        if index == 0 or budget.keeps(index):
            with budget.building(index, tensors):
                embeddings_with_graph[index] = embed(tensors)
            parts.append(embeddings_with_graph[index].detach())
        else:
            random_states[index] = RandomState(model_devices.union(tensor.device for tensor in tensors.values()))
            with torch.no_grad():
                parts.append(embed(tensors))
    # Under an outer autocast, some versions of torch would reuse weights that were cast without a graph.
    torch.clear_autocast_cache()

    # Step 2.
    embeddings = torch.cat(parts).requires_grad_()
    autocast = _autocast_options(embeddings.device.type)
    loss = loss_fn(embeddings)
    (cache,) = torch.autograd.grad(loss, embeddings)
    slices = cache.split([len(part) for part in parts])

    # Step 3, when the loss is backpropagated.
    def backward_all(gradient: Tensor) -> None:
        for index, tensors in enumerate(micro_batches):
            if index in random_states:
                with random_states[index].restored(), torch.enable_grad(), torch.autocast(**autocast):
                    with budget.building(index, tensors):
                        part = embed(tensors)
            else:
                part = embeddings_with_graph.pop(index)
            with budget.backward():
                backward(part, slices[index] * gradient, index == len(micro_batches) - 1)
            del part  # frees its graph before the next one is built
        budget.finish()

    loss = loss.detach().requires_grad_()
    loss.register_hook(backward_all)
    return loss


def with_inputs_on(device: torch.device, embed: Callable[[MicroBatch], Tensor]) -> Callable[[MicroBatch], Tensor]:
    """Return an `embed` that takes micro-batches in host memory, and copies one to the device for each of its passes.

    The device then holds the inputs of the current micro-batch only, and those that kept graphs need. A copy from
    pinned memory is asynchronous: the device may still compute the passes before.

    Args:
        device (`torch.device`): The device.
        embed (`Callable`): Maps the tensors of one micro-batch, on the device, to its embeddings.
    """

    def embed_copy(tensors: MicroBatch) -> Tensor:
        return embed({name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()})

    return embed_copy


def _autocast_options(device_type: str) -> dict[str, Any]:
    return {
        "device_type": device_type,
        "dtype": torch.get_autocast_dtype(device_type),
        "enabled": torch.is_autocast_enabled(device_type),
    }


class RandomState:
    """A snapshot of the random number generators of the CPU and of accelerators: CUDA, MPS, XPU and others.

    Args:
        devices (`Iterable[torch.device]`): The devices that the following computation may draw from.
    """

    def __init__(self, devices: Iterable[torch.device]):
        self._cpu = torch.get_rng_state()
        self._states = {
            device: torch.get_device_module(device).get_rng_state(device)
            for device in set(devices)
            if device.type not in ("cpu", "meta")
        }

    def restore(self) -> None:
        """Set the generators to this state."""
        torch.set_rng_state(self._cpu)
        for device, state in self._states.items():
            torch.get_device_module(device).set_rng_state(state, device)

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Set the generators to this state inside this context, and afterwards to what they were before."""
        outside = RandomState(self._states)
        self.restore()
        try:
            yield
        finally:
            outside.restore()


class GraphCache(Protocol):
    """Chooses the graphs of a step that [`cached_loss`] keeps from the first pass."""

    def start(self, micro_batches: Sequence[MicroBatch]) -> None:
        """Begin a step."""

    def keeps(self, index: int) -> bool:
        """Return whether to keep the graph of a micro-batch; the first one is always kept."""

    def building(self, index: int, tensors: MicroBatch) -> AbstractContextManager:
        """Build the graph of a micro-batch inside this context."""

    def backward(self) -> AbstractContextManager:
        """Run the backward pass of a micro-batch inside this context."""

    def finish(self) -> None:
        """End a step."""


class GraphCacheBudget:
    """The memory that gradient caching may use for graphs that wait for their backward pass.

    Graphs are kept until the budget is used up, so at most one graph exceeds it.

    A graph holds the tensors that autograd saves for the backward pass. Each storage counts once, even if several
    tensors or graphs share it; parameters, buffers and inputs exist anyway and do not count. Copies of the inputs on
    another device, see [`with_inputs_on`], count if the graph keeps them.

    Args:
        gigabytes (`float`): The budget, in 10^9 bytes; 0 or more.
        model (`Module`, *optional*): The model that is trained.
        synchronize_on (`torch.device`, *optional*): Charge every process for the largest graph of all processes, so
            that all keep the same number of graphs, and exchange its size on this device. Needed where processes hold
            shards of one model and must run its layers together.
    """

    def __init__(self, gigabytes: float, model: Module | None = None, synchronize_on: torch.device | None = None):
        self.bytes_left = gigabytes * 1e9  # negative if the last graph exceeded the budget
        weights = chain(model.parameters(), model.buffers()) if model is not None else ()
        # References keep these storages alive, so that no new storage can get the identity of an old one.
        self._counted = {tensor.untyped_storage() for tensor in weights}
        self._synchronize_on = synchronize_on

    def start(self, micro_batches: Sequence[MicroBatch]) -> None:
        """Begin a step."""

    def keeps(self, index: int) -> bool:
        """Return whether some of the budget is left."""
        return self.bytes_left > 0

    def building(self, index: int, tensors: MicroBatch) -> AbstractContextManager:
        """Count a graph that is built inside this context, until the budget is used up."""
        return self.counting(tensors) if self.bytes_left > 0 else nullcontext()

    def backward(self) -> AbstractContextManager:
        """Forget the graphs that were counted, so that each is freed by its backward pass."""
        self._counted.clear()
        return nullcontext()

    def finish(self) -> None:
        """Do nothing."""

    @contextmanager
    def counting(self, inputs: Mapping[str, Tensor]) -> Iterator[None]:
        """Subtract the memory of the graph that is built inside this context from what is left.

        Args:
            inputs (`Mapping[str, Tensor]`): The inputs of the micro-batch, which do not count.
        """
        saved: list[ref[UntypedStorage]] = []  # weak: storages that the result does not need are freed

        def pack(tensor: Tensor) -> Tensor:
            saved.append(ref(tensor.untyped_storage()))
            return tensor.detach()  # an output that refers to the graph that saves it would never be freed

        with saved_tensors_hooks(pack, lambda tensor: tensor):
            yield
        new = {storage for storage in (reference() for reference in saved) if storage is not None} - self._counted
        new.difference_update(tensor.untyped_storage() for tensor in inputs.values())
        self._counted |= new
        # FSDP2 has freed its gathered weights by now: their storages have 0 bytes.
        graph_bytes = sum(storage.nbytes() for storage in new)
        if self._synchronize_on is not None:
            largest = torch.tensor(graph_bytes, device=self._synchronize_on)
            distributed.all_reduce(largest, distributed.ReduceOp.MAX)
            graph_bytes = int(largest)
        self.bytes_left -= graph_bytes


UNCACHED_OUTPUTS = ("last_hidden_state", "hidden_states", "attentions")  # far larger than the features themselves


def vision_is_frozen(backbone: PreTrainedModel) -> bool:
    """Return whether image features can be kept: all weights outside the language model are frozen.

    Llama-3.2-Vision has no method that computes its image features, so they are never kept.
    """
    if getattr(type(backbone), "get_image_features", None) is None:
        return False
    language_weights = set(backbone.get_decoder().parameters())
    return not any(weight.requires_grad for weight in backbone.parameters() if weight not in language_weights)


def _copy_on_host(tensor: Tensor) -> Tensor:
    """Return a copy in host memory: for CUDA in pinned memory, so that the copies both ways are asynchronous."""
    copy = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
    return copy.copy_(tensor, non_blocking=tensor.is_cuda)


class CachedVisionFeatures:
    """An `embed` for [`cached_loss`] that computes the image features of a micro-batch once, in its first pass.

    A pass without gradients puts its features at the end of a queue. A pass with gradients takes the oldest ones;
    [`cached_loss`] runs the second passes in the order of the first ones, after all of them. Processes that hold
    shards of the tower have the same number of micro-batches with images, so they run it together, even if some of
    these are repetitions ([`align_micro_batches`]).

    The features wait in host memory, where they take as much as the image tokens of the whole batch at the input of
    the language model.

    Args:
        backbone (`PreTrainedModel`): The image-text model; its vision tower and projector are frozen.
        embed (`Callable`): Maps the tensors of one micro-batch to its embeddings.
    """

    def __init__(self, backbone: PreTrainedModel, embed: Callable[[MicroBatch], Tensor]):
        self._backbone, self._embed = backbone, embed
        self._compute = backbone.get_image_features
        self._devices = {weight.device for weight in backbone.parameters()}
        self._queue: deque[tuple[list[Any], list[Any], TreeSpec, RandomState]] = deque()

    def __call__(self, tensors: MicroBatch) -> Tensor:
        def cached_features(*args: Any, **kwargs: Any) -> BaseModelOutputWithPooling:
            if torch.is_grad_enabled() and self._queue:  # a second pass; first passes with a graph precede all others
                leaves, devices, structure, state_after_vision = self._queue.popleft()
                # As if the tower had run, so that the language model's dropout mask is unchanged.
                state_after_vision.restore()
                on_device = (leaf.to(device, non_blocking=True) for leaf, device in zip(leaves, devices, strict=True))
                return tree_unflatten(on_device, structure)
            output = self._compute(*args, **kwargs)
            if not torch.is_grad_enabled():
                light = type(output)(**{name: value for name, value in output.items() if name not in UNCACHED_OUTPUTS})
                features, structure = tree_flatten(light)
                state = RandomState(self._devices.union(tensor.device for tensor in tensors.values()))
                devices = [tensor.device for tensor in features]
                self._queue.append(([_copy_on_host(tensor) for tensor in features], devices, structure, state))
            return output

        self._backbone.get_image_features = cached_features
        try:
            return self._embed(tensors)
        finally:
            del self._backbone.get_image_features


def with_last_layer_shortcut(
    embedder: UniMEModel, embed: Callable[[MicroBatch], Tensor]
) -> Callable[[MicroBatch], Tensor]:
    """Return an `embed` that runs the last layer for last tokens only, or `embed` itself where that is impossible.

    The other tokens' states after the last layer are not pooled and get no gradient, so the gradients do not change.

    Args:
        embedder ([`UniMEModel`]): The model that `embed` calls.
        embed (`Callable`): Maps the tensors of one micro-batch to its embeddings.
    """
    backbone, decoder = embedder.backbone, embedder.backbone.get_decoder()
    if not embedder.pools_last_token or decoder.config.model_type not in SHORTCUT_DECODERS:
        return embed
    last_layer = decoder.layers[-1]

    def embed_last_tokens(tensors: MicroBatch) -> Tensor:
        shortcut = partial(last_layer_on_last_token, backbone, tensors)
        if not (last_layer.gradient_checkpointing and last_layer.training and torch.is_grad_enabled()):
            with shortcut():
                return embed(tensors)
        checkpoint = last_layer._gradient_checkpointing_func

        def checkpoint_with_shortcut(forward: Callable, *args: Any) -> Any:
            def forward_last_tokens(*args: Any) -> Any:  # in the backward pass again
                with shortcut():
                    return forward(*args)

            return checkpoint(forward_last_tokens, *args)

        with calling({last_layer: checkpoint_with_shortcut}):
            return embed(tensors)

    return embed_last_tokens
