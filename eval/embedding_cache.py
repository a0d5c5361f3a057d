"""Embeddings of an evaluation: each distinct item is embedded once, and once only if they are kept on disk.

On disk a window of items is one file of keys and vectors, sealed by its checksum: what was cut off or damaged is made
again, what is intact never. Processes of one launch take turns with the windows and read each other's.
"""

import hashlib
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from torch import distributed

from ..processing_unime import Item, to_item_dict
from ..storage.atomic_files import atomic_write, intact_files
from .lazy_items import LazyItems


class EmbeddingCache:
    """Embeds items, unless it knows them.

    Args:
        encode (`Callable`): Items -> `(N, D)` float32 unit rows.
        folder (`Path`, *optional*): Where to keep the embeddings of one model; without it they live in memory.
        window (`int`, *optional*, defaults to 512): Items that are embedded, and written, at a time.

    Attributes:
        items (`int`): How many items this process has embedded.
        seconds (`float`): How long that took, reading their images included.
    """

    def __init__(self, encode, folder: Path | None = None, window: int = 512):
        self.encode, self.folder, self.window = encode, folder, window
        self.items, self.seconds = 0, 0.0
        self.rows: dict[object, np.ndarray] = {}
        self.alive: list[Item] = []  # a key holds ids of images, valid only as long as the images live
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._read("*.*.npy")
            if distributed.is_initialized():
                distributed.barrier()  # all know the same before the first writes more

    def __call__(self, items: Iterable[Item]) -> np.ndarray:
        """Returns `(N, D)` embeddings in the order of the items."""
        items = items if isinstance(items, Sequence) else list(items)
        keys = items.keys() if isinstance(items, LazyItems) else [_key(item) for item in items]
        new: dict[object, int] = {}
        for position, key in enumerate(keys):
            if key not in self.rows:
                new.setdefault(key, position)
        windows = [list(new.items())[start : start + self.window] for start in range(0, len(new), self.window)]
        shared = self.folder is not None and isinstance(items, LazyItems)
        together = shared and distributed.is_initialized()
        for number, window in enumerate(windows):
            if together and number % distributed.get_world_size() != distributed.get_rank():
                continue
            vectors = self._embed([items[position] for _, position in window])
            if not isinstance(items, LazyItems):
                self.alive.extend(items[position] for _, position in window)
            if shared:
                self._write([key for key, _ in window], vectors)
            self.rows.update(zip((key for key, _ in window), vectors, strict=True))
        if together:
            distributed.barrier()
            for window in windows:
                if window[0][0] not in self.rows:
                    self._read(f"{_name([key for key, _ in window])}.*.npy")
        return np.stack([self.rows[key] for key in keys])

    def _embed(self, items: list[Item]) -> np.ndarray:
        start = time.perf_counter()
        vectors = np.asarray(self.encode(items), dtype=np.float32)
        if vectors.ndim != 2 or len(vectors) != len(items):
            raise ValueError(f"expected embeddings of shape ({len(items)}, D) from encode, got {vectors.shape}.")
        self.items += len(items)
        self.seconds += time.perf_counter() - start
        return vectors

    def _write(self, keys: Sequence[str], vectors: np.ndarray) -> None:
        table = np.empty(len(keys), [("key", "S32"), ("vector", np.float32, vectors.shape[1])])
        table["key"], table["vector"] = keys, vectors
        with atomic_write(self.folder / f"{_name(keys)}.npy", sealed=True) as part, part.open("wb") as file:
            np.save(file, table)

    def _read(self, pattern: str) -> None:
        for file in intact_files(self.folder, pattern):
            table = np.load(file, mmap_mode="r")
            self.rows.update(zip(table["key"].astype(str).tolist(), table["vector"], strict=True))


def _name(keys: Sequence[str]) -> str:
    return hashlib.blake2b("".join(keys).encode(), digest_size=16).hexdigest()


def _key(item: Item) -> tuple:
    item = to_item_dict(item)
    return item["text"], item["instruction"], tuple(id(image) for image in item["images"])
