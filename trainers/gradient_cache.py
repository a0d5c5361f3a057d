"""Gradient caching (Gao et al., arXiv 2101.06983): the exact gradient of a large batch in the memory of a micro-batch.

A loss that compares all items of a batch needs all their embeddings at once, but the gradient of an embedding with
respect to the weights needs only its own micro-batch. So:

1. Embed every micro-batch but the last few without building a graph, noting the state of the random number generators
   before each; the last ones, whose turn in step 3 comes first, keep their graphs.
2. Compute the loss of all embeddings together, and its gradient with respect to the embeddings: the cache.
3. When the loss is sent backward, send the slices of the cache that belong to the kept graphs through them; then embed
   each other micro-batch again, now with a graph and the same random numbers (so that dropout falls as before), and
   send its slice through.

The gradients are those of the whole batch held in memory at once. As many graphs exist at a time as are kept, one by
default, and the price is a second forward pass of all other micro-batches.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import get_device_states, set_device_states


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
    kept_graphs: int = 1,
    send_back: SendBack = send_back,
) -> Tensor:
    """Compute a loss of all items whose `backward()` runs micro-batch by micro-batch.

    Args:
        embed (`Callable`): Maps the tensors of one micro-batch to its embeddings `(items, dimensions)`.
        micro_batches (`Sequence`): The micro-batches. With one only, nothing is embedded twice.
        loss_fn (`Callable`): Maps all embeddings `(all items, dimensions)`, in the order of the micro-batches, to a
            scalar. It runs once, so it may gather across processes.
        kept_graphs (`int`, *optional*, defaults to 1): Micro-batches that are embedded once only, for their memory.
        send_back (`Callable`, *optional*): Sends a gradient through a micro-batch's graph, see [`send_back`].

    Returns:
        `Tensor`: The scalar loss. Its backward adds to the `.grad` of the weights; whatever scales it (a gradient
        scaler, say) scales them.
    """
    if not torch.is_grad_enabled():
        return loss_fn(torch.cat([embed(tensors) for tensors in micro_batches]))

    first_kept = max(0, len(micro_batches) - kept_graphs)
    earlier, last = micro_batches[:first_kept], micro_batches[first_kept:]
    states, parts = [], []
    with torch.no_grad():
        for tensors in earlier:
            states.append(RandomState(tensors))
            parts.append(embed(tensors))
    # Under an outer autocast, some versions of torch reuse weights cast without a graph, which know no gradient.
    torch.clear_autocast_cache()
    kept = [embed(tensors) for tensors in last]

    embeddings = torch.cat([*parts, *(part.detach() for part in kept)]).requires_grad_()
    autocast = _autocast_options(embeddings.device.type)
    loss = loss_fn(embeddings)
    (cache,) = torch.autograd.grad(loss, embeddings)
    slices = cache.split([len(part) for part in [*parts, *kept]])

    def send_all_back(gradient: Tensor) -> None:
        while kept:  # from the end; each graph is freed before the next is walked
            part = kept.pop()
            send_back(part, slices[first_kept + len(kept)] * gradient, not (kept or earlier))
        for number, (tensors, state) in enumerate(zip(earlier, states, strict=True), start=1):
            with state.fork(), torch.enable_grad(), torch.autocast(**autocast):
                state.restore()
                again = embed(tensors)
            send_back(again, slices[number - 1] * gradient, number == len(earlier))

    loss = loss.detach().requires_grad_()
    loss.register_hook(send_all_back)
    return loss


def _autocast_options(device_type: str) -> dict[str, object]:
    return {
        "device_type": device_type,
        "dtype": torch.get_autocast_dtype(device_type),
        "enabled": torch.is_autocast_enabled(device_type),
    }
