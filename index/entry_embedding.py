"""Embed entries window by window: threads open the images of one window while the model works on the one before.

A window is closed at `WINDOW` entries or when its images have `PIXELS` pixels: memory is bounded, however large the
corpus and its images are. Entries of equal content in a window are embedded once. A bad entry is reported with the
reason, and the job goes on.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from transformers import PreTrainedModel, ProcessorMixin

from ..checkpoint import PROMPTS
from ..corpus.corpus import Entry
from ..data.isolate_failures import map_isolating_failures


WINDOW_ENTRIES = 1024  # entries
PIXELS = 2**27  # of a window's opened images, 400 MB
READER_THREADS = 8


@dataclass(frozen=True)
class Rejected:
    """An entry that was not embedded, and why in one sentence."""

    id: str
    reason: str


@dataclass(frozen=True)
class Embedded:
    """One window.

    Args:
        entries (`list[Entry]`): Those that were embedded, in the order of the corpus.
        vectors (`np.ndarray` of shape `(len(entries), dimensions)`, float32): Their unit vectors.
        rejected (`list[Rejected]`): The others.
    """

    entries: list[Entry]
    vectors: np.ndarray
    rejected: list[Rejected]


@dataclass
class _Window:
    """Entries that were opened, with the items to embed: one for each content."""

    entries: list[Entry] = field(default_factory=list)
    contents: list[str] = field(default_factory=list)
    items: dict[str, dict[str, Any]] = field(default_factory=dict)
    rejected: list[Rejected] = field(default_factory=list)

    def add(self, entry: Entry, content: str, item: dict[str, Any]) -> int:
        """Returns the number of pixels that are now kept in addition."""
        self.entries.append(entry)
        self.contents.append(content)
        if content in self.items:
            return 0
        self.items[content] = item
        return item["image"].width * item["image"].height if "image" in item else 0


def embed_entries(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    entries: Iterable[Entry],
    instruction: str | None = None,
    dimensions: int | None = None,
    window: int = WINDOW_ENTRIES,
) -> Iterator[Embedded]:
    """Embed entries, window by window and in their order.

    Args:
        model ([`UniMEModel`]): The model.
        processor (`ProcessorMixin`): Its processor.
        entries (`Iterable[Entry]`): What to embed.
        instruction (`str`, *optional*): Given with every entry. By default an entry with an image alone gets
            `PROMPTS["image"]` and others none; the empty string means none for all.
        dimensions (`int`, *optional*): Leading dimensions to keep (Matryoshka).
        window (`int`): Most entries of a window. Memory and speed, not results, depend on it.

    Raises:
        ValueError: The model does not have `dimensions` dimensions.
    """
    own = model.config.hidden_size
    if dimensions is not None and not 1 <= dimensions <= own:
        raise ValueError(f"dimensions must be between 1 and {own}, got {dimensions}")
    with ThreadPoolExecutor(READER_THREADS) as openers, ThreadPoolExecutor(1) as embedder:
        before = None
        for opened in _windows(openers, entries, instruction, window):
            current = embedder.submit(_embed, model, processor, opened, dimensions)
            if before is not None:
                yield before.result()
            before = current
        if before is not None:
            yield before.result()


def _windows(
    openers: ThreadPoolExecutor, entries: Iterable[Entry], instruction: str | None, size: int
) -> Iterator[_Window]:
    window, pixels = _Window(), 0
    for opened in _opened_ahead(openers, entries, instruction):
        if isinstance(opened, Rejected):
            window.rejected.append(opened)
        else:
            pixels += window.add(*opened)
        if len(window.entries) + len(window.rejected) >= size or pixels >= PIXELS:
            yield window
            window, pixels = _Window(), 0
    if window.entries or window.rejected:
        yield window


def _opened_ahead(
    openers: ThreadPoolExecutor, entries: Iterable[Entry], instruction: str | None
) -> Iterator[tuple[Entry, str, dict[str, Any]] | Rejected]:
    opening = deque()
    for entry in entries:
        opening.append(openers.submit(_open, entry, instruction))
        if len(opening) > 2 * READER_THREADS:
            yield opening.popleft().result()
    while opening:
        yield opening.popleft().result()


def _open(entry: Entry, instruction: str | None) -> tuple[Entry, str, dict[str, Any]] | Rejected:
    try:
        content, item = entry.content, entry.item()
    except ValueError as error:
        return Rejected(entry.id, str(error))
    if instruction is None and "text" not in item:
        instruction = PROMPTS["image"]
    return entry, content, item | {"instruction": instruction} if instruction else item


def _embed(model: PreTrainedModel, processor: ProcessorMixin, window: _Window, dimensions: int | None) -> Embedded:
    found = dict(zip(window.items, _vectors(model, processor, list(window.items.values()), dimensions), strict=True))
    entries, vectors, rejected = [], [], list(window.rejected)
    for entry, content in zip(window.entries, window.contents, strict=True):
        if isinstance(found[content], str):
            rejected.append(Rejected(entry.id, f"entry {entry.id!r}: {found[content]}"))
        else:
            entries.append(entry)
            vectors.append(found[content])
    shape = (len(vectors), dimensions or model.config.hidden_size)
    return Embedded(entries, np.asarray(vectors, np.float32).reshape(shape), rejected)


def _vectors(
    model: PreTrainedModel, processor: ProcessorMixin, items: Sequence[dict[str, Any]], dimensions: int | None
) -> list[np.ndarray | str]:
    """The vector of each item, or what the processor or the model says of one that they refuse."""
    unusable = f"the model gave no finite vector in {model.dtype}: take another dtype"
    return [
        str(found) if isinstance(found, ValueError) else found if np.isfinite(found).all() else unusable
        for found in map_isolating_failures(
            lambda some: model.encode(some, processor, truncate_dim=dimensions), items, ValueError
        )
    ]
