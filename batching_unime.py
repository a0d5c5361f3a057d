"""From items to tensors: micro-batches under a token budget."""

import os.path
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchFeature, ProcessorMixin

from .processing_unime import Item, normalize_item, to_messages


MAX_PADDING_SHARE = 0.05  # of the budget of a micro-batch
MIN_SHARED_PREFIX_TOKENS = 256  # tokens that sharing a prefix must save, for which the model makes a pass of its own


@dataclass(frozen=True)
class RenderedItem:
    """An item ready to be batched.

    Args:
        number (`int`): Its number among the items.
        item (`dict`): It, spelt out.
        text (`str`): What the chat template makes of it.
        tokens (`list[int]`): The tokens of `text`, in which each image is one.
        length (`int`): Tokens that the model reads, all of its images' included.
    """

    number: int
    item: Mapping[str, Any]
    text: str
    tokens: list[int]
    length: int


@dataclass(frozen=True)
class MicroBatch:
    """Items that go through the model together: all with images, or none.

    Args:
        processor (`ProcessorMixin`): Makes the tensors.
        rows (`list[Row]`): The items, the shortest first.
        prefix (`tuple[int, ...]`): Tokens that all rows begin with and that the tensors leave out.
        packed (`bool`): Texts make one row, one after the other, without padding.
    """

    processor: ProcessorMixin
    rows: list[RenderedItem]
    prefix: tuple[int, ...] = ()
    packed: bool = False

    @property
    def numbers(self) -> list[int]:
        """The numbers of the items."""
        return [row.number for row in self.rows]

    @property
    def has_images(self) -> bool:
        """Whether the items have images."""
        return bool(self.rows[0].item["images"])

    @property
    def size(self) -> int:
        """Tokens that the model reads, padding included."""
        if self.packed and not self.has_images:
            return sum(row.length for row in self.rows)
        return len(self.rows) * (self.rows[-1].length - len(self.prefix))

    @property
    def padding(self) -> int:
        """Tokens that the model reads in vain."""
        return self.size - sum(row.length - len(self.prefix) for row in self.rows)

    def halves(self) -> tuple["MicroBatch", "MicroBatch"]:
        """Return two micro-batches of the same rows."""
        middle = len(self.rows) // 2
        return replace(self, rows=self.rows[:middle]), replace(self, rows=self.rows[middle:])

    def tensors(self) -> BatchFeature:
        """Return what the model takes, padded to the longest row."""
        texts = [row.text for row in self.rows]
        if self.has_images:
            images = [row.item["images"] for row in self.rows]
            options = _text_options(self.processor, texts[0])
            return self.processor(text=texts, images=images, padding=True, return_tensors="pt", **options)
        # Texts were read already, to be counted.
        rows = [torch.tensor(row.tokens[len(self.prefix) :]) for row in self.rows]
        if self.packed:
            lengths = torch.tensor([len(row) for row in rows])
            positions = torch.cat([torch.arange(length) for length in lengths.tolist()])
            packed = {"input_ids": torch.cat(rows)[None], "position_ids": positions[None]}
            return BatchFeature({**packed, "ends": lengths.cumsum(0) - 1})
        ids = pad_sequence(rows, batch_first=True, padding_value=self.processor.tokenizer.pad_token_id or 0)
        lengths = torch.tensor([len(row) for row in rows])
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        return BatchFeature({"input_ids": ids, "attention_mask": mask})


def plan_micro_batches(
    processor: ProcessorMixin,
    items: Mapping[int, Mapping[str, Any]],
    micro_batch_tokens: int = 8192,
    max_length: int | None = None,
    share_prefixes: bool = False,
    packed: bool = False,
) -> list[MicroBatch]:
    """Render items, sort them by (has image, prefix, tokens) and cut them into micro-batches of at most `micro_batch_tokens`.

    A micro-batch ends sooner where lengths differ much: at most 5 % of the budget are padding.

    Args:
        processor (`ProcessorMixin`): Processor whose chat template is UniME's (see [`chat_template`]).
        items (`dict`): Items by the numbers that errors call them, spelt out by [`normalize_item`].
        max_tokens (`int`): Budget of a micro-batch: rows times tokens of its longest row. One row alone may exceed it.
        max_length (`int`, *optional*, defaults to the tokenizer's `model_max_length`):
            Most tokens of one item. Longer user texts are shortened; prompts and image tokens never are.
        share_prefixes (`bool`): Take out what the texts of one instruction begin with, see [`MicroBatch`].
        packed (`bool`): Make the texts of a micro-batch one row; they keep their prefixes.

    Raises:
        ValueError: An image is of a shape that the processor refuses, or an item cannot fit because its prompt and
            images alone exceed `max_length`.
    """
    if not items:
        return []
    limit = processor.tokenizer.model_max_length if max_length is None else max_length
    rows = [row if row.length <= limit else _truncate(processor, row, limit) for row in _tokenize(processor, items)]
    prefixes = _shared_prefixes(rows) if share_prefixes and not packed else {}

    def prefix(row: RenderedItem) -> tuple[int, ...]:
        return () if row.item["images"] else prefixes.get(row.item["instruction"], ())

    groups: list[MicroBatch] = []
    for row in sorted(rows, key=lambda row: (bool(row.item["images"]), prefix(row), row.length)):
        joined = None
        if groups and groups[-1].prefix == prefix(row) and groups[-1].has_images == bool(row.item["images"]):
            joined = replace(groups[-1], rows=[*groups[-1].rows, row])
        if joined and joined.size <= micro_batch_tokens and joined.padding <= MAX_PADDING_SHARE * micro_batch_tokens:
            groups[-1].rows.append(row)
        else:
            groups.append(MicroBatch(processor, [row], prefix(row), packed))
    return groups


def micro_batches(
    processor: ProcessorMixin, items: Sequence[Item], micro_batch_tokens: int = 8192, max_length: int | None = None
) -> list[tuple[list[int], BatchFeature]]:
    """Cut items into micro-batches of at most `micro_batch_tokens` and make their tensors, see [`plan`].

    Returns:
        `list[tuple[list[int], BatchFeature]]`: Positions of the items and tensors of the model, per micro-batch.

    Raises:
        ValueError: An item is malformed, an image of it is damaged or of a shape that the processor refuses, or it
            cannot fit because its prompt and images alone exceed `max_length`.
    """
    spelt = {position: normalize_item(item, position) for position, item in enumerate(items)}
    return [
        (batch.numbers, batch.tensors())
        for batch in plan_micro_batches(processor, spelt, micro_batch_tokens, max_length)
    ]


def _shared_prefixes(rows: list[RenderedItem]) -> dict[str | None, tuple[int, ...]]:
    """Find what the texts of each instruction begin with: the system prompt and the instruction, as tokens."""
    texts = defaultdict(list)
    for row in rows:
        if not row.item["images"]:
            texts[row.item["instruction"]].append(row.tokens)
    prefixes = {}
    for instruction, several in texts.items():
        # Every row keeps a token of its own, which the model reads last.
        common = os.path.commonprefix(several)[: min(map(len, several)) - 1]
        if len(common) * (len(several) - 1) >= MIN_SHARED_PREFIX_TOKENS:
            prefixes[instruction] = tuple(common)
    return prefixes


def _render(processor: ProcessorMixin, items: Sequence[Mapping[str, Any]]) -> list[str]:
    return processor.apply_chat_template([to_messages(item) for item in items], tokenize=False)


def _text_options(processor: ProcessorMixin, text: str) -> dict[str, Any]:
    # As `apply_chat_template` does: a prompt that writes its own beginning-of-sequence token gets no second one.
    bos = processor.tokenizer.bos_token
    return {"add_special_tokens": False} if bos is not None and text.startswith(bos) else {}


def _tokenize(processor: ProcessorMixin, items: Mapping[int, Mapping[str, Any]]) -> list[RenderedItem]:
    """Render and tokenise items, and count their tokens, those of their images included."""
    texts = _render(processor, list(items.values()))
    tokens = processor.tokenizer(texts, **_text_options(processor, texts[0]))["input_ids"]
    has_images: dict[tuple[tuple[int, int], ...], int] = {(): 0}
    rows = []
    for (number, item), text, ids in zip(items.items(), texts, tokens, strict=True):
        sizes = tuple(image.size for image in item["images"])
        if sizes not in has_images:
            try:
                has_images[sizes] = _image_tokens(processor, sizes)
            except ValueError as error:
                shapes = " and ".join(f"{width} x {height}" for width, height in sizes)
                raise ValueError(
                    f"item {number}: the model's processor takes no image of {shapes} pixels ({error}): "
                    "cut or scale it"
                ) from None
        rows.append(RenderedItem(number, item, text, ids, len(ids) + has_images[sizes] - len(sizes)))
    return rows


def _image_tokens(processor: ProcessorMixin, sizes: tuple[tuple[int, int], ...]) -> int:
    """Ask the processor itself how many tokens one item's images of these (width, height) take together."""
    images = [Image.new("RGB", size) for size in sizes]  # LLaVA-OneVision tiles an image only where it is alone
    output = processor(text=[processor.image_token * len(sizes)], images=[images], add_special_tokens=False)
    return len(output["input_ids"][0])


def _truncate(processor: ProcessorMixin, row: RenderedItem, limit: int) -> RenderedItem:
    """Keep the longest beginning of the user's text, in tokens of its own, with which the rendered item fits."""
    has_images = row.length - len(row.tokens)

    def cut(count: int) -> RenderedItem:
        item = {**row.item, "text": row.item["text"] and processor.tokenizer.decode(own[:count])}
        (text,) = _render(processor, [item])
        tokens = processor.tokenizer(text, **_text_options(processor, text))["input_ids"]
        return RenderedItem(row.number, item, text, tokens, len(tokens) + has_images)

    own = processor.tokenizer(row.item["text"] or "", add_special_tokens=False)["input_ids"][:limit]
    # A control string is one token of its own and several once it is broken: their number is found by trying.
    shorter = cut(bisect_right(range(1, len(own) + 1), limit, key=lambda count: cut(count).length))
    if shorter.length > limit:
        raise ValueError(
            f"item {row.number} needs {shorter.length} tokens for its prompt and images alone, but max_length is "
            f"{limit}: raise max_length or make its images smaller"
        )
    return shorter


__all__ = ["MicroBatch", "micro_batches", "plan_micro_batches"]
