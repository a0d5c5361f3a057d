"""Count the bytes of the tensors that are alive, and their peak: real tensors and fake ones."""

import gc
import math
import weakref
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveMemory(TorchDispatchMode):
    """Counts the storages that operations allocate inside this context, and their peak.

    Args:
        existing (`Iterable[Tensor]`): Tensors that are there before and do not count.
        collect_bytes (`float`, *optional*): Collect garbage before a peak that is higher by so many bytes counts: fake
            tensors of checkpointed layers are in reference cycles.
    """

    def __init__(self, existing: Iterable[Tensor], collect_bytes: float = math.inf):
        super().__init__()
        self.live = self.peak = 0
        self._collect_bytes = collect_bytes
        self._existing = list(existing)  # kept alive, so that no new storage can get the identity of an old one
        self._counted = {tensor.untyped_storage()._cdata for tensor in self._existing}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in self._counted:
                storage = tensor.untyped_storage()
                self._counted.add(storage._cdata)
                self.live += storage.nbytes()
                weakref.finalize(storage, self._free, storage._cdata, storage.nbytes())
        if self.live > self.peak + self._collect_bytes:
            gc.collect()
        self.peak = max(self.peak, self.live)
        return result

    def _free(self, identity: int, num_bytes: int) -> None:
        self.live -= num_bytes
        self._counted.discard(identity)
