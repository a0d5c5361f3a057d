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

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import chain
from typing import Any
from weakref import ref

import torch
from torch import Tensor, UntypedStorage, distributed
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import Module
from torch.utils.checkpoint import get_device_states, set_device_states
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..modeling_unime import UniMEModel
from ..pooling_unime import last_layer_on_last_token


MicroBatch = Mapping[str, Tensor]
BackwardMicroBatch = Callable[[Tensor, Tensor, bool], None]


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


class GraphCacheBudget:
    """A budget for the graphs that gradient caching keeps until their turn in the backward pass comes.

    What a graph holds are the tensors that autograd saves for the backward pass. Each storage counts once, however
    many tensors of however many graphs look into it; those that exist without any graph do not count.

    Args:
        gigabytes (`float`): The budget, in 10^9 bytes.
        model (`Module`): What is trained; graphs refer to its parameters and buffers.
        together (`bool`, *optional*, defaults to `False`):
            Count for all processes what the one with the largest graph holds, so that all keep equally many: those
            that share a model in shards must run its layers together.
    """

    def __init__(self, gigabytes: float, model: Module, together: bool = False):
        self.left = gigabytes * 1e9  # bytes; negative once the last graph went beyond the budget
        # Holding on to storages keeps their identity: none of another graph can come to lie where one was.
        self._counted = {tensor.untyped_storage() for tensor in chain(model.parameters(), model.buffers())}
        self._together = together

    @contextmanager
    def counting(self, inputs: Mapping[str, Tensor]) -> Iterator[None]:
        """Take what the graph built inside holds from what is left; the inputs of its micro-batch do not count."""
        saved: list[ref[UntypedStorage]] = []  # weak: what of the graph is not needed for its result is given back

        def pack(tensor: Tensor) -> Tensor:
            saved.append(ref(tensor.untyped_storage()))
            return tensor.detach()  # a result that held on to the graph that saves it would never be freed

        with saved_tensors_hooks(pack, lambda tensor: tensor):
            yield
        new = {storage() for storage in saved} - {None} - self._counted
        new.difference_update(tensor.untyped_storage() for tensor in inputs.values())
        self._counted |= new
        # By now FSDP2 has taken the memory of the weights that it gathered back from their storages.
        held = sum(storage.nbytes() for storage in new)
        if self._together:
            device = next(iter(inputs.values())).device
            largest = torch.tensor(held, device=device)
            distributed.all_reduce(largest, distributed.ReduceOp.MAX)
            held = int(largest)
        self.left -= held


def backward_micro_batch(embeddings: Tensor, gradient: Tensor, last: bool) -> None:
    """Send the gradient of the embeddings of one micro-batch through its graph; `last` of the step or not."""
    # A micro-batch that reaches no trained weight has nothing to send back.
    if embeddings.requires_grad:
        embeddings.backward(gradient)


def cached_loss(
    embed: Callable[[MicroBatch], Tensor],
    micro_batches: Sequence[MicroBatch],
    loss_fn: Callable[[Tensor], Tensor],
    memory: GraphCacheBudget | None = None,
    send_back: BackwardMicroBatch = backward_micro_batch,
) -> Tensor:
    """Compute a loss of all items whose `backward()` runs micro-batch by micro-batch.

    Args:
        embed (`Callable`): Maps the tensors of one micro-batch to its embeddings `(items, dimensions)`.
        micro_batches (`Sequence`): The micro-batches. With one only, nothing is embedded twice.
        loss_fn (`Callable`): Maps all embeddings `(all items, dimensions)`, in the order of the micro-batches, to a
            scalar. It runs once, so it may gather across processes.
        memory ([`GraphCacheBudget`], *optional*):
            The budget of this step. Graphs are kept until it is used up, so one at most goes beyond it. Without any,
            only that of the first micro-batch is kept.
        send_back (`Callable`, *optional*): Sends a gradient through a micro-batch's graph, see [`backward_micro_batch`].

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


LAYER_OUTPUTS = ("last_hidden_state", "hidden_states", "attentions")  # what led to the features, and weighs far more


def vision_is_frozen(backbone: PreTrainedModel) -> bool:
    """Say whether all that turns images into features is frozen: vision tower and projector."""
    language = set(backbone.get_decoder().parameters())
    return not any(weight.requires_grad for weight in backbone.parameters() if weight not in language)


class CachedVisionFeatures:
    """An `embed` whose second pass over a micro-batch takes the image features of the first.

    Features take the memory of the language model's image tokens, of the whole batch until its last micro-batch.

    Args:
        backbone (`PreTrainedModel`): The image-text model within; its tower and projector are frozen.
        embed (`Callable`): Maps the tensors of one micro-batch to its embeddings.
    """

    def __init__(self, backbone: PreTrainedModel, embed: Callable[[MicroBatch], Tensor]):
        self._backbone, self._embed = backbone, embed
        self._compute = backbone.get_image_features
        self._seen: dict[int, tuple[BaseModelOutputWithPooling, RandomState]] = {}

    def __call__(self, tensors: MicroBatch) -> Tensor:
        def features(*args: Any, **kwargs: Any) -> BaseModelOutputWithPooling:
            if id(tensors) in self._seen:
                output, after = self._seen.pop(id(tensors))
                after.restore()  # whatever dropout the tower has drew from it: the language model's falls as before
                return output
            output = self._compute(*args, **kwargs)
            if not torch.is_grad_enabled():  # a first pass, with a second to come
                light = type(output)(**{name: value for name, value in output.items() if name not in LAYER_OUTPUTS})
                self._seen[id(tensors)] = light, RandomState(tensors)
            return output

        self._backbone.get_image_features = features
        try:
            return self._embed(tensors)
        finally:
            del self._backbone.get_image_features


def with_last_layer_shortcut(
    embedder: UniMEModel, embed: Callable[[MicroBatch], Tensor]
) -> Callable[[MicroBatch], Tensor]:
    """Return an `embed` that leaves out what the last layer would do for other tokens, or the same where it may not.

    Their states have no part in the loss and get no gradient: the gradients stay what they are.

    Args:
        embedder ([`UniMEModel`]): The model within.
        embed (`Callable`): Maps the tensors of one micro-batch to its embeddings.
    """
    # What checkpointed layers compute again in the backward pass, they would compute for all tokens.
    if not embedder.supports_text_only_decoder or embedder.backbone.is_activation_checkpointing:
        return embed

    def embed_last(tensors: MicroBatch) -> Tensor:
        with last_layer_on_last_token(embedder.backbone, tensors["attention_mask"]):
            return embed(tensors)

    return embed_last
