"""The embeddings of an evaluation: each distinct item is embedded once, and never again if they are kept on disk.

On disk, a window of items is one file of keys and embeddings with a checksum. Incomplete or damaged files are computed
again. Memory holds where each embedding is (about 200 bytes per item), and the embeddings only while they are used.
The processes of a launch share the windows of a call by their cost, and read each other's files.
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


IMAGE_COST = 3  # of an image in units of a text, for the size of windows: 128 images or 512 texts fill one
ROW_BITS = 16  # of a place on disk; the other bits are the index of the file


class EmbeddingCache:
    """An encoder that embeds only items that it has not embedded before.

    Args:
        encode (`Callable`): Takes items, returns `(N, D)` float32 unit vectors.
        folder (`Path`, *optional*): Folder for the embeddings of one model; without it they are kept in memory only.
            Only [`LazyItems`] are written, because their keys outlive the process.
        window (`int`, *optional*, defaults to 512): Cost of the items to embed and write at a time: 1 per item and 3
            more per image that is read for it, so that a window of videos does not fill the memory.

    Attributes:
        embedded_items (`int`): Number of items embedded by this process.
        embedding_seconds (`float`): Time that this took, reading the images included.
    """

    def __init__(
        self, encode: Callable[[Sequence[Item]], np.ndarray], folder: Path | None = None, window: int = 512
    ) -> None:
        self.encode, self.folder, self.window = encode, folder, window
        self.embedded_items, self.embedding_seconds = 0, 0.0
        self._in_memory: dict[object, np.ndarray] = {}
        self._items: list[Item] = []  # keeps images alive, because their `id` is part of a key
        self._files: list[Path] = []
        self._places: dict[str, int] = {}  # key -> index of its file << ROW_BITS | row in the file
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._read(folder, "*.*.npy")
            if distributed.is_initialized():
                distributed.barrier()  # all processes must read the same files before the first one writes

    def __call__(self, items: Iterable[Item], advance: Callable[[int], object] = lambda count: None) -> np.ndarray:
        """Return `(N, D)` embeddings in the order of the items.

        Args:
            items (`Iterable[Item]`): The items.
            advance (`Callable`, *optional*): Called with numbers of items that are done, N in all.
        """
        items = items if isinstance(items, Sequence) else list(items)
        lazy_items = items if isinstance(items, LazyItems) else None
        keys: Sequence[Any] = [_key(item) for item in items] if lazy_items is None else lazy_items.keys()
        positions: dict[Any, int] = {}  # key of an item to embed -> where it occurs first
        for position, key in enumerate(keys):
            if key not in self._places and key not in self._in_memory:
                positions.setdefault(key, position)
        to_embed = list(positions.items())
        costs = [1 + (0 if lazy_items is None else IMAGE_COST * lazy_items.num_images(at)) for _, at in to_embed]
        windows = _windows(to_embed, costs, self.window)
        on_disk = self.folder is not None and lazy_items is not None
        split_work = on_disk and distributed.is_initialized()
        own = windows
        if split_work:
            ranks = balanced_ranks([sum(costs[start:stop]) for start, stop in windows], distributed.get_world_size())
            own = [window for window, rank in zip(windows, ranks, strict=True) if rank == distributed.get_rank()]
        remaining = len(keys)
        for number, (start, stop) in enumerate(own, 1):
            window_keys = [key for key, _ in to_embed[start:stop]]
            window_items = [items[position] for _, position in to_embed[start:stop]]
            embeddings = self._embed(window_items)
            if self.folder is not None and on_disk:
                self._write(self.folder, window_keys, embeddings)
                self._read(self.folder, f"{_file_stem(window_keys)}.*.npy")
            else:
                self._in_memory.update(zip(window_keys, embeddings, strict=True))
                self._items.extend(() if lazy_items is not None else window_items)
            # The other processes have done the same share of theirs.
            left = len(to_embed) * (len(own) - number) // len(own)
            advance(remaining - left)
            remaining = left
        if self.folder is not None and split_work:
            distributed.barrier()
            for start, stop in windows:
                if to_embed[start][0] not in self._places:
                    self._read(self.folder, f"{_file_stem([key for key, _ in to_embed[start:stop]])}.*.npy")
        advance(remaining)
        return self._collect(keys)

    def _collect(self, keys: Sequence[Any]) -> np.ndarray:
        """Return the embeddings of keys, opening each file once."""
        if not keys or keys[0] in self._in_memory:  # a call has one kind of keys
            return np.stack([self._in_memory[key] for key in keys])
        places = np.array([self._places[key] for key in keys])
        order = np.argsort(places, kind="stable")
        files, starts = np.unique(places[order] >> ROW_BITS, return_index=True)
        embeddings: np.ndarray | None = None
        for file, positions in zip(files, np.split(order, starts[1:]), strict=True):
            table = np.load(self._files[file], mmap_mode="r")
            if embeddings is None:
                embeddings = np.empty((len(keys), *table.dtype["vector"].shape), dtype=np.float32)
            embeddings[positions] = table["vector"][places[positions] & ((1 << ROW_BITS) - 1)]
        assert embeddings is not None
        return embeddings

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
        for path in intact_files(folder, pattern):
            first = len(self._files) << ROW_BITS
            self._files.append(path)
            # Opened for the keys only: a file that stays mapped holds a file descriptor.
            keys = np.load(path, mmap_mode="r")["key"].astype(str).tolist()
            self._places.update((key, first | row) for row, key in enumerate(keys))


def _windows(items: Sequence[Any], costs: Sequence[int], budget: int) -> list[tuple[int, int]]:
    """Return the start and the end of each window: as many items as fit its budget, at least one."""
    windows, start, cost = [], 0, 0
    for index, item_cost in enumerate(costs):
        if index > start and cost + item_cost > budget:
            windows.append((start, index))
            start, cost = index, 0
        cost += item_cost
    return [*windows, (start, len(items))] if items else []


def balanced_ranks(costs: Sequence[int], processes: int) -> list[int]:
    """Return the process of each window: the largest window first, each to the process with the least to do."""
    loads, ranks = [0] * processes, [0] * len(costs)
    for window in sorted(range(len(costs)), key=lambda window: -costs[window]):
        ranks[window] = loads.index(min(loads))
        loads[ranks[window]] += costs[window]
    return ranks


def _file_stem(keys: Sequence[str]) -> str:
    return hashlib.blake2b("".join(keys).encode(), digest_size=16).hexdigest()


def _key(item: Item) -> tuple:
    item = to_item_dict(item)
    return tuple(item["content"]), item["instruction"], tuple(id(image) for image in item["images"])
