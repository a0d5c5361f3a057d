"""The embeddings of an evaluation: each distinct item is embedded once, and never again if they are kept on disk.

On disk, a window of items is one file of keys and embeddings with a checksum. Incomplete or damaged files are computed
again. The processes of a launch take turns with the windows and read each other's files.
"""

import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import distributed

from ..processing_unime import Item, to_item_dict
from ..storage.atomic_files import atomic_write, intact_files
from .lazy_items import LazyItems


class EmbeddingCache:
    """An encoder that embeds only items that it has not embedded before.

    Args:
        encode (`Callable`): Takes items, returns `(N, D)` float32 unit vectors.
        folder (`Path`, *optional*): Folder for the embeddings of one model; without it they are kept in memory only.
            Only [`LazyItems`] are written, because their keys outlive the process.
        window (`int`, *optional*, defaults to 512): Number of items to embed and write at a time.

    Attributes:
        embedded_items (`int`): Number of items embedded by this process.
        embedding_seconds (`float`): Time that this took, reading the images included.
    """

    def __init__(
        self, encode: Callable[[Sequence[Item]], np.ndarray], folder: Path | None = None, window: int = 512
    ) -> None:
        self.encode, self.folder, self.window = encode, folder, window
        self.embedded_items, self.embedding_seconds = 0, 0.0
        self.embeddings: dict[object, np.ndarray] = {}
        self._items: list[Item] = []  # keeps images alive, because their `id` is part of a key
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._read(folder, "*.*.npy")
            if distributed.is_initialized():
                distributed.barrier()  # all processes must read the same files before the first one writes

    def __call__(self, items: Iterable[Item]) -> np.ndarray:
        """Return `(N, D)` embeddings in the order of the items."""
        items = items if isinstance(items, Sequence) else list(items)
        is_lazy = isinstance(items, LazyItems)
        keys: Sequence[Any] = items.keys() if isinstance(items, LazyItems) else [_key(item) for item in items]
        positions: dict[Any, int] = {}  # key of an item to embed -> where it occurs first
        for position, key in enumerate(keys):
            if key not in self.embeddings:
                positions.setdefault(key, position)
        to_embed = list(positions.items())
        windows = [to_embed[start : start + self.window] for start in range(0, len(to_embed), self.window)]
        on_disk = self.folder is not None and is_lazy
        split_work = on_disk and distributed.is_initialized()
        for number, window in enumerate(windows):
            if split_work and number % distributed.get_world_size() != distributed.get_rank():
                continue
            embeddings = self._embed([items[position] for _, position in window])
            if not is_lazy:
                self._items.extend(items[position] for _, position in window)
            if self.folder is not None and on_disk:
                self._write(self.folder, [key for key, _ in window], embeddings)
            self.embeddings.update(zip((key for key, _ in window), embeddings, strict=True))
        if self.folder is not None and split_work:
            distributed.barrier()
            for window in windows:
                if window[0][0] not in self.embeddings:
                    self._read(self.folder, f"{_file_stem([key for key, _ in window])}.*.npy")
        return np.stack([self.embeddings[key] for key in keys])

    def _embed(self, items: list[Item]) -> np.ndarray:
        start = time.perf_counter()
        embeddings = np.asarray(self.encode(items), dtype=np.float32)
        if embeddings.ndim != 2 or len(embeddings) != len(items):
            raise ValueError(f"expected embeddings of shape ({len(items)}, D) from encode, got {embeddings.shape}")
        self.embedded_items += len(items)
        self.embedding_seconds += time.perf_counter() - start
        return embeddings

    def _write(self, folder: Path, keys: Sequence[str], embeddings: np.ndarray) -> None:
        table = np.empty(len(keys), [("key", "S32"), ("vector", np.float32, embeddings.shape[1])])
        table["key"], table["vector"] = keys, embeddings
        with atomic_write(folder / f"{_file_stem(keys)}.npy", sealed=True) as part, part.open("wb") as file:
            np.save(file, table)

    def _read(self, folder: Path, pattern: str) -> None:
        for file in intact_files(folder, pattern):
            table = np.load(file, mmap_mode="r")
            self.embeddings.update(zip(table["key"].astype(str).tolist(), table["vector"], strict=True))


def _file_stem(keys: Sequence[str]) -> str:
    return hashlib.blake2b("".join(keys).encode(), digest_size=16).hexdigest()


def _key(item: Item) -> tuple:
    item = to_item_dict(item)
    return tuple(item["content"]), item["instruction"], tuple(id(image) for image in item["images"])
