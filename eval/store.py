"""Embeddings of an evaluation: each distinct item is embedded once, and once only if they are kept on disk.

On disk a window of items is two files, vectors and keys, of which the keys come last: what was cut off is made again,
what was finished never. Processes of one launch take turns with the windows and read each other's.
"""

import hashlib
import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from torch import distributed

from ..processing_unime import Item, as_item
from .stored import StoredItems


class EmbeddingStore:
    """Embeds items, unless it knows them.

    Args:
        encode (`Callable`): Items -> `(N, D)` float32 unit rows.
        folder (`Path`, *optional*): Where to keep the embeddings of one model; without it they live in memory.
        window (`int`, *optional*, defaults to 512): Items that are embedded, and written, at a time.

    Attributes:
        items (`int`): How many items this process has embedded.
        seconds (`float`): How long that took, reading their pictures included.
    """

    def __init__(self, encode, folder: Path | None = None, window: int = 512):
        self.encode, self.folder, self.window = encode, folder, window
        self.items, self.seconds = 0, 0.0
        self.rows: dict[object, np.ndarray] = {}
        self.alive: list[Item] = []  # a key holds ids of pictures, valid only as long as the pictures live
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            for keys in sorted(folder.glob("*.json")):
                self._read(keys)
            if distributed.is_initialized():
                distributed.barrier()  # all know the same before the first writes more

    def __call__(self, items: Iterable[Item]) -> np.ndarray:
        """Returns `(N, D)` embeddings in the order of the items."""
        items = items if isinstance(items, Sequence) else list(items)
        keys = items.keys() if isinstance(items, StoredItems) else [_key(item) for item in items]
        new: dict[object, int] = {}
        for position, key in enumerate(keys):
            if key not in self.rows:
                new.setdefault(key, position)
        windows = [list(new.items())[start : start + self.window] for start in range(0, len(new), self.window)]
        shared = self.folder is not None and isinstance(items, StoredItems)
        together = shared and distributed.is_initialized()
        for number, window in enumerate(windows):
            if together and number % distributed.get_world_size() != distributed.get_rank():
                continue
            vectors = self._embed([items[position] for _, position in window])
            if not isinstance(items, StoredItems):
                self.alive.extend(items[position] for _, position in window)
            if shared:
                self._write([key for key, _ in window], vectors)
            self.rows.update(zip((key for key, _ in window), vectors, strict=True))
        if together:
            distributed.barrier()
            for window in windows:
                if window[0][0] not in self.rows:
                    self._read(self._file([key for key, _ in window]))
        return np.stack([self.rows[key] for key in keys])

    def _embed(self, items: list[Item]) -> np.ndarray:
        start = time.perf_counter()
        vectors = np.asarray(self.encode(items), dtype=np.float32)
        if vectors.ndim != 2 or len(vectors) != len(items):
            raise ValueError(f"expected embeddings of shape ({len(items)}, D) from encode, got {vectors.shape}.")
        self.items += len(items)
        self.seconds += time.perf_counter() - start
        return vectors

    def _file(self, keys: Sequence[str]) -> Path:
        return self.folder / f"{hashlib.blake2b(''.join(keys).encode(), digest_size=16).hexdigest()}.json"

    def _write(self, keys: Sequence[str], vectors: np.ndarray) -> None:
        file = self._file(keys)
        for path, write in (
            (file.with_suffix(".npy"), lambda part: np.save(part, vectors)),
            (file, lambda part: part.write(json.dumps(keys).encode())),
        ):
            part = path.with_suffix(path.suffix + ".part")
            with part.open("wb") as opened:
                write(opened)
            part.rename(path)

    def _read(self, file: Path) -> None:
        vectors = np.load(file.with_suffix(".npy"), mmap_mode="r")
        self.rows.update(zip(json.loads(file.read_text()), vectors, strict=True))


def _key(item: Item) -> tuple:
    item = as_item(item)
    return item["text"], item["instruction"], tuple(id(image) for image in item["images"])
