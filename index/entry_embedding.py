"""Embed entries window by window: threads open the images of one window while the model embeds the previous one.

A window ends at `WINDOW_ENTRIES` entries or when its images reach `MAX_WINDOW_PIXELS` pixels, so memory is bounded
for any corpus. Entries with equal content in one window are embedded once. Entries that cannot be embedded are
reported with the reason, and the job continues.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from PIL import Image
from transformers import PreTrainedModel, ProcessorMixin

from ..checkpoint import named_prompts
from ..corpus.entry import Entry
from ..image_size import draft_for
from ..isolate_failures import map_isolating_failures
from ..windows_unime import MAX_WINDOW_PIXELS


WINDOW_ENTRIES = 1024
READER_THREADS = 8

_Opened = tuple[Entry, str, dict[str, Any]]  # with its content and the item to embed


@dataclass(frozen=True)
class Rejected:
    """An entry that could not be embedded, with the reason in one sentence."""

    id: str
    reason: str


@dataclass(frozen=True)
class Embedded:
    """One embedded window.

    Args:
        entries (`list[Entry]`): The embedded entries, in corpus order.
        vectors (`np.ndarray` of shape `(len(entries), dimensions)`, float32): Their unit-length embeddings.
        rejected (`list[Rejected]`): The entries that could not be embedded.
    """

    entries: list[Entry]
    vectors: np.ndarray
    rejected: list[Rejected]


@dataclass
class _Window:
    """Opened entries, and the items to embed: one per distinct content."""

    entries: list[Entry] = field(default_factory=list)
    contents: list[str] = field(default_factory=list)
    items: dict[str, dict[str, Any]] = field(default_factory=dict)
    rejected: list[Rejected] = field(default_factory=list)

    def add(self, entry: Entry, content: str, item: dict[str, Any]) -> int:
        """Add an entry and return by how many pixels the window grew."""
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
    truncate_dim: int | None = None,
    window: int = WINDOW_ENTRIES,
    draft_jpegs: bool = False,
) -> Iterator[Embedded]:
    """Embed entries window by window, in order.

    Args:
        model ([`UniMEModel`]): Model.
        processor (`ProcessorMixin`): Processor of the model.
        entries (`Iterable[Entry]`): Entries to embed.
        instruction (`str`, *optional*): Instruction for every entry. By default, entries with only an image get
            that of `"image"` in [`named_prompts`] and the others get none. Pass an empty string for no instruction at
            all.
        truncate_dim (`int`, *optional*): Number of leading dimensions to keep (Matryoshka). Defaults to all.
        window (`int`, defaults to 1024): Maximum number of entries in a window. Affects memory and speed only.
        draft_jpegs (`bool`, defaults to `False`): Whether to decode large JPEGs at a fraction of their size, see
            [`draft_for`]. It is faster and changes embeddings slightly.

    Raises:
        ValueError: `truncate_dim` is not between 1 and the dimension of the model, or `draft_jpegs` is not supported
            for the processor.
    """
    hidden_size = model.config.hidden_size
    if truncate_dim is not None and not 1 <= truncate_dim <= hidden_size:
        raise ValueError(f"truncate_dim must be between 1 and {hidden_size}, got {truncate_dim}")
    instructions = ("", named_prompts(model.config)["image"]) if instruction is None else (instruction, instruction)
    open_entry = partial(_open, instructions=instructions, draft=draft_for(processor) if draft_jpegs else None)
    with ThreadPoolExecutor(READER_THREADS) as readers, ThreadPoolExecutor(1) as embedder:
        previous = None
        for opened in _windows(_prefetch(readers, open_entry, entries), window):
            current = embedder.submit(_embed, model, processor, opened, truncate_dim)
            if previous is not None:
                yield previous.result()
            previous = current
        if previous is not None:
            yield previous.result()


def _windows(opened_entries: Iterable[_Opened | Rejected], max_entries: int) -> Iterator[_Window]:
    window, pixels = _Window(), 0
    for opened in opened_entries:
        if isinstance(opened, Rejected):
            window.rejected.append(opened)
        else:
            pixels += window.add(*opened)
        if len(window.entries) + len(window.rejected) >= max_entries or pixels >= MAX_WINDOW_PIXELS:
            yield window
            window, pixels = _Window(), 0
    if window.entries or window.rejected:
        yield window


def _prefetch(
    readers: ThreadPoolExecutor, open_entry: Callable[[Entry], _Opened | Rejected], entries: Iterable[Entry]
) -> Iterator[_Opened | Rejected]:
    pending = deque()
    for entry in entries:
        pending.append(readers.submit(open_entry, entry))
        if len(pending) > READER_THREADS:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


# Instructions: that of entries with a text, and that of entries with only an image.
def _open(
    entry: Entry, instructions: tuple[str, str], draft: Callable[[Image.Image], None] | None
) -> _Opened | Rejected:
    try:
        content, item = entry.content, entry.item(draft=draft)
    except ValueError as error:
        return Rejected(entry.id, str(error))
    instruction = instructions["text" not in item]
    return entry, content, item | {"instruction": instruction} if instruction else item


def _embed(model: PreTrainedModel, processor: ProcessorMixin, window: _Window, truncate_dim: int | None) -> Embedded:
    results = _vectors_or_reasons(model, processor, list(window.items.values()), truncate_dim)
    by_content = dict(zip(window.items, results, strict=True))
    entries, vectors, rejected = [], [], list(window.rejected)
    for entry, content in zip(window.entries, window.contents, strict=True):
        result = by_content[content]
        if isinstance(result, str):
            rejected.append(Rejected(entry.id, f"entry {entry.id!r}: {result}"))
        else:
            entries.append(entry)
            vectors.append(result)
    shape = (len(vectors), truncate_dim or model.config.hidden_size)
    return Embedded(entries, np.asarray(vectors, np.float32).reshape(shape), rejected)


def _vectors_or_reasons(
    model: PreTrainedModel, processor: ProcessorMixin, items: Sequence[dict[str, Any]], truncate_dim: int | None
) -> list[np.ndarray | str]:
    """Return the embedding of each item, or the reason why the processor or the model rejected it."""
    results = map_isolating_failures(
        lambda batch: model.encode(batch, processor, truncate_dim=truncate_dim), items, ValueError
    )
    return [
        str(result).removeprefix("item 0: ") if isinstance(result, ValueError) else result  # it was alone
        for result in results
    ]
