"""How much memory the graphs of a step may take, and what each of them holds, counted to the byte."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from weakref import ref

import torch
from torch import Tensor, UntypedStorage, distributed
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import Module


class GraphMemory:
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
