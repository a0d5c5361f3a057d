"""Embed entries window by window: threads open the images of one window while the model embeds the previous one.

A window ends at `WINDOW_ENTRIES` entries or when its images reach `MAX_WINDOW_PIXELS` pixels, so memory is bounded
for any corpus. Entries with equal content in one window are embedded once. Entries that cannot be embedded are
reported with the reason, and the job continues.

With worker processes, these also make the tensors, so that only the model runs in this one. A chunk of entries that a
worker or the model rejects is embedded here once more, which finds the entries at fault.
"""

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, cast

import numpy as np
from torch.utils.data import DataLoader, Dataset
from transformers import BatchFeature, PreTrainedModel, ProcessorMixin

from ..batching_unime import MicroBatch, default_max_length, plan_micro_batches
from ..checkpoint import PROMPTS
from ..corpus.entry import Entry
from ..encoding_unime import embed_micro_batches
from ..isolate_failures import map_isolating_failures
from ..processing_unime import normalize_item
from ..windows_unime import windows


WINDOW_ENTRIES = 1024
MAX_WINDOW_PIXELS = 2**27  # 537 MB, as Pillow takes 4 bytes for a pixel
READER_THREADS = 8
# Of a chunk, which a worker process reads. The tensors of a pixel take up to 24 bytes (Qwen2-VL at full size).
CHUNK_ENTRIES = 32
MAX_CHUNK_PIXELS = 2**25
CHUNKS_PER_WINDOW = 8
PREFETCHED_CHUNKS = 2  # per worker


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

    def add(self, opened: tuple[Entry, str, dict[str, Any]] | Rejected) -> int:
        """Add an entry and return by how many pixels the window grew."""
        if isinstance(opened, Rejected):
            self.rejected.append(opened)
            return 0
        entry, content, item = opened
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
    workers: int = 0,
) -> Iterator[Embedded]:
    """Embed entries window by window, in order.

    Args:
        model ([`UniMEModel`]): Model.
        processor (`ProcessorMixin`): Processor of the model.
        entries (`Iterable[Entry]`): Entries to embed.
        instruction (`str`, *optional*): Instruction for every entry. By default, entries with only an image get
            `PROMPTS["image"]` and the others get none. Pass an empty string for no instruction at all.
        truncate_dim (`int`, *optional*): Number of leading dimensions to keep (Matryoshka). Defaults to all.
        window (`int`, defaults to 1024): Maximum number of entries in a window. Affects memory and speed only.
        workers (`int`, defaults to 0): Number of processes that read the entries and make the tensors, in chunks of at
            most 32 entries and 34 million pixels; `2 * workers + 1` chunks are in memory. 0 uses threads of this
            process, and `window` has no effect otherwise.

    Raises:
        ValueError: `truncate_dim` is not between 1 and the dimension of the model.
    """
    hidden_size = model.config.hidden_size
    if truncate_dim is not None and not 1 <= truncate_dim <= hidden_size:
        raise ValueError(f"truncate_dim must be between 1 and {hidden_size}, got {truncate_dim}")
    if workers:
        yield from _embed_with_workers(model, processor, entries, instruction, truncate_dim, workers)
        return
    with ThreadPoolExecutor(READER_THREADS) as readers, ThreadPoolExecutor(1) as embedder:
        previous = None
        for opened in _windows(readers, entries, instruction, window):
            current = embedder.submit(_embed, model, processor, opened, truncate_dim)
            if previous is not None:
                yield previous.result()
            previous = current
        if previous is not None:
            yield previous.result()


def _windows(
    readers: ThreadPoolExecutor, entries: Iterable[Entry], instruction: str | None, max_entries: int
) -> Iterator[_Window]:
    window, pixels = _Window(), 0
    for opened in _prefetch(readers, entries, instruction):
        pixels += window.add(opened)
        if len(window.entries) + len(window.rejected) >= max_entries or pixels >= MAX_WINDOW_PIXELS:
            yield window
            window, pixels = _Window(), 0
    if window.entries or window.rejected:
        yield window


def _prefetch(
    readers: ThreadPoolExecutor, entries: Iterable[Entry], instruction: str | None
) -> Iterator[tuple[Entry, str, dict[str, Any]] | Rejected]:
    pending = deque()
    for entry in entries:
        pending.append(readers.submit(_open, entry, instruction))
        if len(pending) > 2 * READER_THREADS:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def _open(entry: Entry, instruction: str | None) -> tuple[Entry, str, dict[str, Any]] | Rejected:
    try:
        content, item = entry.content, entry.item()
    except ValueError as error:
        return Rejected(entry.id, str(error))
    if instruction is None and "text" not in item:
        instruction = PROMPTS["image"]
    return entry, content, item | {"instruction": instruction} if instruction else item


def _open_window(entries: Iterable[Entry], instruction: str | None) -> _Window:
    window = _Window()
    for entry in entries:
        window.add(_open(entry, instruction))
    return window


def _embed(model: PreTrainedModel, processor: ProcessorMixin, window: _Window, truncate_dim: int | None) -> Embedded:
    results = _vectors_or_reasons(model, processor, list(window.items.values()), truncate_dim)
    return _embedded(window, results, truncate_dim or model.config.hidden_size)


def _embedded(window: _Window, results: Sequence[np.ndarray | str], dimensions: int) -> Embedded:
    by_content = dict(zip(window.items, results, strict=True))
    entries, vectors, rejected = [], [], list(window.rejected)
    for entry, content in zip(window.entries, window.contents, strict=True):
        result = by_content[content]
        if isinstance(result, str):
            rejected.append(Rejected(entry.id, f"entry {entry.id!r}: {result}"))
        else:
            entries.append(entry)
            vectors.append(result)
    return Embedded(entries, np.asarray(vectors, np.float32).reshape(len(vectors), dimensions), rejected)


def _vectors_or_reasons(
    model: PreTrainedModel, processor: ProcessorMixin, items: Sequence[dict[str, Any]], truncate_dim: int | None
) -> list[np.ndarray | str]:
    """Return the embedding of each item, or the reason why the processor or the model rejected it."""
    results = map_isolating_failures(
        lambda batch: model.encode(batch, processor, truncate_dim=truncate_dim), items, ValueError
    )
    return [str(result) if isinstance(result, ValueError) else _vector_or_reason(result, model) for result in results]


def _vector_or_reason(vector: np.ndarray, model: PreTrainedModel) -> np.ndarray | str:
    finite = np.isfinite(vector).all()
    return vector if finite else f"its embedding is not finite in {model.dtype}: use another dtype"


@dataclass(frozen=True)
class _Ready:
    """The part of a [`MicroBatch`] that a worker sends: its tensors, without the items."""

    indices: list[int]
    prefix: tuple[int, ...]
    inputs: BatchFeature

    @property
    def items(self) -> list[int]:
        return self.indices

    def tensors(self) -> BatchFeature:
        return self.inputs

    def halves(self) -> tuple["_Ready", "_Ready"]:
        raise ValueError("the micro-batch does not fit into memory, and its items are not here to be divided")


class _ChunkReader(Dataset):
    """In a worker process, turn entries into a window without items and the tensors of these."""

    def __init__(self, plan: Callable[[Mapping[int, Mapping[str, Any]]], list[MicroBatch]], instruction: str | None):
        self.plan, self.instruction = plan, instruction

    def __getitem__(self, entries: list[Entry]) -> tuple[_Window, list[_Ready] | None]:
        window = _open_window(entries, self.instruction)
        try:
            items = {index: normalize_item(item, index) for index, item in enumerate(window.items.values())}
            ready = [_Ready(batch.indices, batch.prefix, batch.tensors()) for batch in self.plan(items)]
        except ValueError:
            ready = None
        window.items = dict.fromkeys(window.items, {})
        return window, ready


def _embed_with_workers(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    entries: Iterable[Entry],
    instruction: str | None,
    truncate_dim: int | None,
    workers: int,
) -> Iterator[Embedded]:
    plan = partial(
        plan_micro_batches,
        processor,
        micro_batch_tokens=model.default_micro_batch_tokens,
        max_length=default_max_length(processor, model.config),
        share_prefixes=model.supports_text_only_decoder,
        config=model.config.backbone_config,
    )
    chunks = windows(entries, Entry.num_pixels, CHUNK_ENTRIES, MAX_CHUNK_PIXELS)
    # A fork of this process could deadlock on the locks of LanceDB's threads; the server is forked without them.
    methods = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in methods else "spawn")
    context.set_forkserver_preload([__name__])
    loader = DataLoader(
        _ChunkReader(plan, instruction),
        sampler=chunks,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=PREFETCHED_CHUNKS,
        multiprocessing_context=context,
    )
    dimensions = truncate_dim or model.config.hidden_size
    model.eval()

    def embed(window: _Window, ready: list[_Ready] | None) -> Embedded:
        vectors = np.zeros((len(window.items), dimensions), np.float32)
        try:
            if ready is None:
                raise ValueError("the processor rejects an entry")
            for indices, embeddings in embed_micro_batches(model, cast(list[MicroBatch], ready), truncate_dim):
                vectors[indices] = embeddings
        except ValueError:
            again = _open_window(window.entries, instruction)
            again.rejected[:0] = window.rejected
            return _embed(model, processor, again, truncate_dim)
        return _embedded(window, [_vector_or_reason(vector, model) for vector in vectors], dimensions)

    parts = (embed(*chunk) for chunk in loader)
    for group in iter(lambda: list(islice(parts, CHUNKS_PER_WINDOW)), []):
        yield Embedded(
            [entry for part in group for entry in part.entries],
            np.concatenate([part.vectors for part in group]),
            [entry for part in group for entry in part.rejected],
        )
