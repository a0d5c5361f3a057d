"""Gradient caching (Gao et al., arXiv 2101.06983): the exact gradient of a large batch in the memory of a micro-batch.

A loss that compares all items of a batch needs all their embeddings at once, but the gradient of an embedding with
respect to the weights needs only its own micro-batch. So:

1. Embed every micro-batch but the last without building a graph, noting the state of the random number generators
   before each; the last one, whose turn in step 3 comes first, may keep its graph.
2. Compute the loss of all embeddings together, and its gradient with respect to the embeddings: the cache.
3. When the loss is sent backward, send the last micro-batch's slice of the cache through its graph; then embed each
   other micro-batch again, now with a graph and the same random numbers (so that dropout falls as before), and send
   its slice through.

The gradients are those of the whole batch held in memory at once. One graph exists at a time, and the price is a
second forward pass of all micro-batches but one.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import get_device_states, set_device_states


MicroBatch = Mapping[str, Tensor]


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


def cached_loss(
    embed: Callable[[MicroBatch], Tensor],
    micro_batches: Sequence[MicroBatch],
    loss_fn: Callable[[Tensor], Tensor],
) -> Tensor:
    """Compute a loss of all items whose `backward()` runs micro-batch by micro-batch.

    Args:
        embed (`Callable`): Maps the tensors of one micro-batch to its embeddings `(items, dimensions)`.
        micro_batches (`Sequence`): The micro-batches. With one only, nothing is embedded twice.
        loss_fn (`Callable`): Maps all embeddings `(all items, dimensions)`, in the order of the micro-batches, to a
            scalar. It runs once, so it may gather across processes.

    Returns:
        `Tensor`: The scalar loss. Its backward adds to the `.grad` of the weights; whatever scales it (a gradient
        scaler, say) scales them.
    """
    if not torch.is_grad_enabled():
        return loss_fn(torch.cat([embed(tensors) for tensors in micro_batches]))

    *earlier, last = micro_batches
    states, parts = [], []
    with torch.no_grad():
        for tensors in earlier:
            states.append(RandomState(tensors))
            parts.append(embed(tensors))
    # Under an outer autocast, some versions of torch reuse weights cast without a graph, which know no gradient.
    torch.clear_autocast_cache()
    with_graph = embed(last)
    autocast = _autocast_options(with_graph.device.type)

    embeddings = torch.cat([*parts, with_graph.detach()]).requires_grad_()
    loss = loss_fn(embeddings)
    (cache,) = torch.autograd.grad(loss, embeddings)
    *slices, last_slice = cache.split([len(part) for part in [*parts, with_graph]])

    def send_back(gradient: Tensor) -> None:
        _backward(with_graph, last_slice * gradient)
        for tensors, state, piece in zip(earlier, states, slices, strict=True):
            with state.fork(), torch.enable_grad(), torch.autocast(**autocast):
                state.restore()
                again = embed(tensors)
            _backward(again, piece * gradient)

    loss = loss.detach().requires_grad_()
    loss.register_hook(send_back)
    return loss


def _backward(embeddings: Tensor, gradient: Tensor) -> None:
    # A micro-batch that reaches no trained weight has nothing to send back.
    if embeddings.requires_grad:
        embeddings.backward(gradient)


def _autocast_options(device_type: str) -> dict[str, object]:
    return {
        "device_type": device_type,
        "dtype": torch.get_autocast_dtype(device_type),
        "enabled": torch.is_autocast_enabled(device_type),
    }
