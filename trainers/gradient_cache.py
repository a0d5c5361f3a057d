"""Gradient caching (Gao et al., arXiv 2101.06983): the exact gradient of a large batch in the memory of a micro-batch.

A loss that compares all items of a batch needs all their embeddings at once, but the gradient of an embedding with
respect to the weights needs only its own micro-batch. So:

1. Embed the micro-batches. The first one keeps its graph, and so do as many as a memory budget has room for. The
   others build none, and the state of the random number generators before each is noted.
2. Compute the loss of all embeddings together, and its gradient with respect to the embeddings: the cache.
3. When the loss is sent backward, send the slices of the cache that belong to the kept graphs through them; then embed
   each other micro-batch again, now with a graph and the same random numbers (so that dropout falls as before), and
   send its slice through.

The gradients are those of the whole batch held in memory at once. The price of a small budget is the second forward
pass: where a forward pass costs 1 and a backward pass 2 (1 with frozen weights, whose gradients nobody asks for), a
step costs 4 (3) without any graph kept and 3 (2) with all of them.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.utils.checkpoint import get_device_states, set_device_states

from .graph_memory import GraphMemory


MicroBatch = Mapping[str, Tensor]
SendBack = Callable[[Tensor, Tensor, bool], None]


class RandomState:
    """The state of the random number generators of the CPU and of the device that holds some tensors."""

    def __init__(self, tensors: MicroBatch):
        self.device_type = next(iter(tensors.values())).device.type
        self.cpu = torch.get_rng_state()
        self.devices, self.states = get_device_states(*tensors.values())

    def restore(self) -> None:
        """Set the generators; call it inside [`fork`] to leave no trace."""
        torch.set_rng_state(self.cpu)
        if self.devices:
            set_device_states(self.devices, self.states, device_type=self.device_type)

    def fork(self) -> torch.random.fork_rng:
        """Return a context that gives the generators back as they were on entry."""
        device_type = self.device_type if self.devices else "cuda"  # without devices the type is not looked at
        return torch.random.fork_rng(devices=sorted(set(self.devices)), device_type=device_type)


def send_back(embeddings: Tensor, gradient: Tensor, last: bool) -> None:
    """Send the gradient of the embeddings of one micro-batch through its graph; `last` of the step or not."""
    # A micro-batch that reaches no trained weight has nothing to send back.
    if embeddings.requires_grad:
        embeddings.backward(gradient)


def cached_loss(
    embed: Callable[[MicroBatch], Tensor],
    micro_batches: Sequence[MicroBatch],
    loss_fn: Callable[[Tensor], Tensor],
    memory: GraphMemory | None = None,
    send_back: SendBack = send_back,
) -> Tensor:
    """Compute a loss of all items whose `backward()` runs micro-batch by micro-batch.

    Args:
        embed (`Callable`): Maps the tensors of one micro-batch to its embeddings `(items, dimensions)`.
        micro_batches (`Sequence`): The micro-batches. With one only, nothing is embedded twice.
        loss_fn (`Callable`): Maps all embeddings `(all items, dimensions)`, in the order of the micro-batches, to a
            scalar. It runs once, so it may gather across processes.
        memory ([`GraphMemory`], *optional*):
            The budget of this step. Graphs are kept until it is used up, so one at most goes beyond it. Without any,
            only that of the first micro-batch is kept.
        send_back (`Callable`, *optional*): Sends a gradient through a micro-batch's graph, see [`send_back`].

    Returns:
        `Tensor`: The scalar loss. Its backward adds to the `.grad` of the weights; whatever scales it (a gradient
        scaler, say) scales them.
    """
    if not torch.is_grad_enabled():
        return loss_fn(torch.cat([embed(tensors) for tensors in micro_batches]))

    kept: dict[int, Tensor] = {}  # number of a micro-batch -> its embeddings, with their graph
    states: dict[int, RandomState] = {}  # of the others
    parts = []
    for number, tensors in enumerate(micro_batches):
        room = memory is not None and memory.left > 0
        if room or number == 0:
            with memory.counting(tensors) if room else nullcontext():
                kept[number] = embed(tensors)
            parts.append(kept[number].detach())
        else:
            states[number] = RandomState(tensors)
            with torch.no_grad():
                parts.append(embed(tensors))
    # Under an outer autocast, some versions of torch reuse weights cast without a graph, which know no gradient.
    torch.clear_autocast_cache()

    embeddings = torch.cat(parts).requires_grad_()
    autocast = _autocast_options(embeddings.device.type)
    loss = loss_fn(embeddings)
    (cache,) = torch.autograd.grad(loss, embeddings)
    slices = cache.split([len(part) for part in parts])

    def send_all_back(gradient: Tensor) -> None:
        for number, tensors in enumerate(micro_batches):
            if number in states:
                with states[number].fork(), torch.enable_grad(), torch.autocast(**autocast):
                    states[number].restore()
                    part = embed(tensors)
            else:
                part = kept.pop(number)
            send_back(part, slices[number] * gradient, number == len(micro_batches) - 1)
            del part  # and its graph with it, before the next one is built

    loss = loss.detach().requires_grad_()
    loss.register_hook(send_all_back)
    return loss


def _autocast_options(device_type: str) -> dict[str, object]:
    return {
        "device_type": device_type,
        "dtype": torch.get_autocast_dtype(device_type),
        "enabled": torch.is_autocast_enabled(device_type),
    }
