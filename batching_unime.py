"""Group items into micro-batches of tensors under a token budget."""

import math
import os.path
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import regex
import torch
from jinja2 import TemplateError
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchFeature, PreTrainedConfig, ProcessorMixin

from .image_input_unime import frames_before_processor, images_before_processor
from .image_tokens_unime import (
    count_image_tokens,
    count_video_tokens,
    video_options,
    vision_token_equivalents,
)
from .processing_unime import (
    NO_VIDEO,
    VIDEO_PROCESSORS,
    Item,
    images_and_videos,
    is_interleaved,
    normalize_item,
    render,
)


MAX_PADDING_SHARE = 0.05  # of a micro-batch's token budget
MAX_CHARACTER = 64  # code points of one character as a reader sees it; a longer one may be cut
MIN_SHARED_PREFIX_TOKENS = 256  # that sharing a prefix must save to be worth a forward pass of its own


@dataclass(frozen=True)
class RenderedItem:
    """An item that is ready to be batched.

    Args:
        index (`int`): Index of the item, used in error messages.
        item (`dict`): The normalized item; the texts of its `content` may be truncated.
        text (`str`): The item as the chat template renders it.
        tokens (`list[int]`): Tokens of `text`, in which each image and each video is one token.
        length (`int`): Number of tokens that the model reads, including those of the images and videos.
        vision_cost (`float`, *optional*, defaults to 0.0): Number of tokens that the vision tower's work on the images
            is worth, see [`vision_token_equivalents`].
    """

    index: int
    item: Mapping[str, Any]
    text: str
    tokens: list[int]
    length: int
    vision_cost: float = 0.0


@dataclass(frozen=True)
class MicroBatch:
    """Items that go through the model in one forward pass: all of them with images, with videos or both, or none.

    Args:
        processor (`ProcessorMixin`): UniME's processor, which makes the tensors.
        items (`list[RenderedItem]`): The items, shortest first.
        prefix (`tuple[int, ...]`, *optional*): Tokens that all items start with and that the tensors leave out.
        packed (`bool`, *optional*, defaults to `False`): Whether the items form one row without padding.
    """

    processor: ProcessorMixin
    items: list[RenderedItem]
    prefix: tuple[int, ...] = ()
    packed: bool = False

    @property
    def indices(self) -> list[int]:
        """Return the indices of the items."""
        return [item.index for item in self.items]

    @property
    def has_images(self) -> bool:
        """Return whether the items contain images or videos."""
        return bool(self.items[0].item["images"])

    @property
    def num_pixels(self) -> int:
        """Return the number of pixels of the images and frames, as they are before preprocessing."""
        return sum(image.width * image.height for item in self.items for image in item.item["images"])

    @property
    def tokens(self) -> int:
        """Return the number of tokens that the model reads, padding included."""
        if self.packed:
            return sum(item.length for item in self.items)
        return len(self.items) * (self.items[-1].length - len(self.prefix))

    @property
    def cost(self) -> float:
        """Return the number of tokens that the micro-batch takes of a budget, those for vision patches included."""
        return self.tokens + sum(item.vision_cost for item in self.items)

    @property
    def padding(self) -> int:
        """Return the number of padding tokens."""
        return self.tokens - sum(item.length - len(self.prefix) for item in self.items)

    def halves(self) -> tuple["MicroBatch", "MicroBatch"]:
        """Split the micro-batch in two."""
        middle = len(self.items) // 2
        return replace(self, items=self.items[:middle]), replace(self, items=self.items[middle:])

    def tensors(self, dtype: torch.dtype | None = None) -> BatchFeature:
        """Return the inputs of the model, right-padded to the longest item.

        A packed micro-batch has `input_ids` and `position_ids` of shape `(1, tokens)`, with positions that start at 0
        in each item, and `item_ends` of shape `(items,)` with the position of each item's last token in the row.

        Args:
            dtype (`torch.dtype`, *optional*, defaults to the processor's, float32): Type of pixels and other
                floating-point tensors.
        """
        if self.has_images:
            texts = [item.text for item in self.items]
            stills, clips = zip(*(images_and_videos(item.item) for item in self.items), strict=True)
            images = [images_before_processor(self.processor, stills_of_item) for stills_of_item in stills]
            videos = [frames_before_processor(self.processor, frames) for frames in chain.from_iterable(clips)]
            options = _tokenizer_options(self.processor, texts[0])
            if any(images):
                options["images"] = images
            if videos:
                options |= {"videos": videos, **video_options([len(frames) for frames in videos])}
            options["do_convert_rgb"] = False  # which would copy images that are RGB already
            if "mm_token_type_ids" in self.processor.model_input_names:  # Cosmos3's processor waits to be asked
                options["return_mm_token_type_ids"] = True
            tensors = self.processor(text=texts, padding=True, return_tensors="pt", **options)
            tensors = tensors if dtype is None else tensors.to(dtype=dtype)
            return _pack(tensors) if self.packed else tensors
        rows = [torch.tensor(item.tokens[len(self.prefix) :]) for item in self.items]
        lengths = torch.tensor([len(row) for row in rows])
        if self.packed:
            return BatchFeature({"input_ids": torch.cat(rows)[None], **_boundaries(lengths)})
        ids = pad_sequence(rows, batch_first=True, padding_value=self.processor.tokenizer.pad_token_id or 0)
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        tensors = BatchFeature({"input_ids": ids, "attention_mask": mask})
        if "token_type_ids" in self.processor.model_input_names:  # PaliGemma attends to padding without
            tensors["token_type_ids"] = torch.zeros_like(ids)
        return tensors


def default_max_length(processor: ProcessorMixin, config: PreTrainedConfig) -> int:
    """Return the maximum number of tokens that both the tokenizer and the model accept.

    Many tokenizers state no limit, and none knows the model's.

    Args:
        processor (`ProcessorMixin`): The processor.
        config (`PreTrainedConfig`): Configuration of the model.
    """
    return min(processor.tokenizer.model_max_length, config.get_text_config().max_position_embeddings)


def plan_micro_batches(
    processor: ProcessorMixin,
    items: Mapping[int, Mapping[str, Any]],
    micro_batch_tokens: int = 8192,
    max_length: int | None = None,
    share_prefixes: bool = False,
    packed: bool = False,
    config: PreTrainedConfig | None = None,
) -> list[MicroBatch]:
    """Render items, sort them by (images, videos, prefix, length) and group them under a token budget.

    A micro-batch also ends where lengths differ much, so that padding takes at most 5% of the budget, and where
    LongRoPE would change the states of shorter items too.

    Args:
        processor (`ProcessorMixin`): Processor with UniME's chat template (see [`chat_template`]).
        items (`dict[int, dict]`): Items by index, normalized by [`normalize_item`].
        micro_batch_tokens (`int`, *optional*, defaults to 8192): Token budget of a micro-batch: rows times tokens of
            the longest row, and the worth of vision patches if `config` is given. A single item may exceed it.
        max_length (`int`, *optional*, defaults to the tokenizer's `model_max_length`): Maximum number of tokens of an
            item. Longer texts are truncated; prompts and image tokens never are. Of several texts, the last ones are
            truncated first.
        share_prefixes (`bool`, *optional*, defaults to `False`): Whether to leave out the tokens that all texts with
            the same instruction start with (see [`MicroBatch`]).
        packed (`bool`, *optional*, defaults to `False`): Whether to pack the items of a micro-batch into one row. Such
            items keep their prefixes.
        config (`PreTrainedConfig`, *optional*): Configuration of the backbone, which says how many tokens a vision
            patch is worth ([`vision_token_equivalents`]), and whether its positions are LongRoPE's. Without it only
            tokens count.

    Raises:
        ValueError: The processor rejects the shape of an image, the prompt and images of an item exceed `max_length`,
            a text stands before an image and the chat template puts all images first, or an item has a video and the
            processor or its chat template takes none.
    """
    if not items:
        return []
    limit = processor.tokenizer.model_max_length if max_length is None else max_length
    rendered = [
        item if item.length <= limit else _truncate(processor, item, limit)
        for item in _tokenize(processor, items, config)
    ]
    prefixes = _shared_prefixes(rendered) if share_prefixes and not packed else {}
    short_length = _short_length(config)

    def kind(item: RenderedItem) -> tuple[bool, tuple[int, ...], tuple[int, ...], bool]:
        """Return whether an item has images, the lengths of its videos, its prefix, and whether it is long.

        One micro-batch has one kind: LLaVA-OneVision's videos are one tensor, so they have one number of frames.
        """
        images, videos = images_and_videos(item.item)
        is_long = item.length > short_length
        prefix = () if images or videos or is_long else prefixes.get(item.item["instruction"], ())
        return bool(images), tuple(map(len, videos)), prefix, is_long

    batches: list[MicroBatch] = []
    for item in sorted(rendered, key=lambda item: (kind(item), item.length)):
        extended = None
        if batches and kind(batches[-1].items[0]) == kind(item):
            extended = replace(batches[-1], items=[*batches[-1].items, item])
        max_padding = MAX_PADDING_SHARE * micro_batch_tokens
        if extended and extended.cost <= micro_batch_tokens and extended.padding <= max_padding:
            batches[-1].items.append(item)
        else:
            batches.append(MicroBatch(processor, [item], kind(item)[2], packed))
    return batches


def micro_batches(
    processor: ProcessorMixin,
    items: Sequence[Item],
    micro_batch_tokens: int = 8192,
    max_length: int | None = None,
    packed: bool = False,
    config: PreTrainedConfig | None = None,
    dtype: torch.dtype | None = None,
) -> list[tuple[list[int], BatchFeature]]:
    """Group items into micro-batches under a token budget and return their tensors, see [`plan_micro_batches`].

    Args:
        processor (`ProcessorMixin`): Processor with UniME's chat template.
        items (`list`): The items.
        micro_batch_tokens (`int`, *optional*, defaults to 8192): Token budget of a micro-batch.
        max_length (`int`, *optional*, defaults to the tokenizer's `model_max_length`): Maximum number of tokens of an
            item.
        packed (`bool`, *optional*, defaults to `False`): Whether to pack the items of a micro-batch into one row, see
            [`MicroBatch.tensors`].
        config (`PreTrainedConfig`, *optional*): Configuration of the backbone, with which vision patches count too.
        dtype (`torch.dtype`, *optional*, defaults to the processor's, float32): Type of pixels and other
            floating-point tensors. [`UniMEModel`] casts them to its own type, so that of the model changes nothing.

    Returns:
        `list[tuple[list[int], BatchFeature]]`: Indices of the items and inputs of the model, per micro-batch.

    Raises:
        ValueError: An item is malformed, an image is damaged or has a shape that the processor rejects, the prompt and
            images of an item exceed `max_length`, or a text stands before an image and the chat template puts all
            images first.
    """
    normalized = {index: normalize_item(item, index) for index, item in enumerate(items)}
    batches = plan_micro_batches(processor, normalized, micro_batch_tokens, max_length, packed=packed, config=config)
    return [(batch.indices, batch.tensors(dtype)) for batch in batches]


def count_items(tensors: Mapping[str, Tensor]) -> int:
    """Return the number of items of a micro-batch, packed or not.

    Args:
        tensors (`Mapping[str, Tensor]`): The tensors of the micro-batch.
    """
    return len(tensors["item_ends"] if "item_ends" in tensors else tensors["input_ids"])


def _boundaries(lengths: Tensor) -> dict[str, Tensor]:
    positions = torch.cat([torch.arange(length) for length in lengths.tolist()])
    return {"position_ids": positions[None], "item_ends": lengths.cumsum(0) - 1}


def _pack(padded: BatchFeature) -> BatchFeature:
    """Concatenate the rows of padded tensors and leave the padding out; image tensors stay as they are."""
    mask = padded.pop("attention_mask").bool()
    packed = {name: padded[name][mask][None] for name in ("input_ids", "mm_token_type_ids") if name in padded}
    return BatchFeature({**padded, **packed, **_boundaries(mask.sum(dim=1))})


def _short_length(config: PreTrainedConfig | None) -> float:
    """Return the length beyond which an item rotates its own positions, and those of its whole batch, otherwise.

    That is how LongRoPE (arXiv 2402.13753) is implemented; infinity for other positions. The keys of a shared prefix
    would be rotated as for short items.
    """
    rope = None if config is None else vars(config.get_text_config()).get("rope_parameters")
    if rope is None or rope.get("rope_type") != "longrope":
        return math.inf
    return rope["original_max_position_embeddings"]


def _shared_prefixes(items: list[RenderedItem]) -> dict[str | None, tuple[int, ...]]:
    """Return the tokens that all texts of each instruction start with: the system prompt and the instruction."""
    by_instruction = defaultdict(list)
    for item in items:
        if not item.item["images"]:
            by_instruction[item.item["instruction"]].append(item.tokens)
    prefixes = {}
    for instruction, token_lists in by_instruction.items():
        # Every text keeps at least one token, because its last token gives the embedding.
        shared = os.path.commonprefix(token_lists)[: min(map(len, token_lists)) - 1]
        if len(shared) * (len(token_lists) - 1) >= MIN_SHARED_PREFIX_TOKENS:
            prefixes[instruction] = tuple(shared)
    return prefixes


def _render(processor: ProcessorMixin, items: Mapping[int, Mapping[str, Any]]) -> list[str]:
    try:
        return render(processor, items.values())
    except TemplateError as error:  # the template of a published embedder has no prompt for such an item
        if len(items) > 1:
            for index, item in items.items():
                _render(processor, {index: item})
        raise ValueError(f"item {next(iter(items))}: {error}") from None


def _require_order(processor: ProcessorMixin, index: int) -> None:
    """Refuse to render an item in which a text stands before an image with a template that puts all images first."""
    ordered = {"content": ["\x00", 0], "images": [None], "instruction": None}
    (prompt,) = _render(processor, {index: ordered})
    if "\x00" not in prompt.partition(processor.image_token)[0]:
        raise ValueError(
            f"item {index} has a text before an image, but this checkpoint's chat template puts all images first, as "
            "those of UniME 0.1 do: put the images first, or use the processor of `processor_from_backbone`"
        )


def takes_videos(processor: ProcessorMixin) -> bool:
    """Return whether a processor reads videos as such, and its chat template has a place for them."""
    if type(processor).__name__ not in VIDEO_PROCESSORS:
        return False
    video = {"content": [(0,)], "images": [None], "instruction": None}
    try:
        (prompt,) = render(processor, [video])
    except TemplateError:
        return False
    return processor.video_token in prompt


def _tokenizer_options(processor: ProcessorMixin, text: str) -> dict[str, Any]:
    # As in `apply_chat_template`: a prompt that contains its own beginning-of-sequence token gets no second one.
    bos = processor.tokenizer.bos_token
    return {"add_special_tokens": False} if bos is not None and text.startswith(bos) else {}


def _tokenize(
    processor: ProcessorMixin, items: Mapping[int, Mapping[str, Any]], config: PreTrainedConfig | None
) -> list[RenderedItem]:
    """Render and tokenize items, and count their tokens and vision patches."""
    interleaved = next((index for index, item in items.items() if is_interleaved(item)), None)
    if interleaved is not None:
        _require_order(processor, interleaved)
    with_video = next((index for index, item in items.items() if images_and_videos(item)[1]), None)
    if with_video is not None and not takes_videos(processor):
        _render(processor, {with_video: items[with_video]})  # a template with a reason of its own raises it
        raise ValueError(f"item {with_video}: {NO_VIDEO}")
    texts = _render(processor, items)
    token_lists = processor.tokenizer(texts, **_tokenizer_options(processor, texts[0]))["input_ids"]
    # sizes of an item's images, numbers and sizes of the frames of its videos -> their tokens, and what their patches
    # are worth
    counts: dict[tuple, tuple[int, float]] = {((), ()): (0, 0.0)}
    rendered = []
    for (index, item), text, tokens in zip(items.items(), texts, token_lists, strict=True):
        images, clips = images_and_videos(item)
        sizes = tuple(image.size for image in images)
        videos = tuple((len(frames), frames[0].size) for frames in clips)
        if (sizes, videos) not in counts:
            try:
                vision_cost = 0.0 if config is None else vision_token_equivalents(processor, sizes, config, videos)
                image_tokens = count_image_tokens(processor, sizes)
                image_tokens += sum(count_video_tokens(processor, *video) for video in videos)
                counts[sizes, videos] = image_tokens, vision_cost
            except ValueError as error:
                shapes = " and ".join(
                    f"{width} x {height}" for width, height in [*sizes, *(size for _, size in videos)]
                )
                raise ValueError(
                    f"item {index}: the model's processor does not accept an image of {shapes} pixels ({error}): crop "
                    "or resize it"
                ) from None
        image_tokens, vision_cost = counts[sizes, videos]
        length = len(tokens) + image_tokens - len(sizes) - len(videos)
        rendered.append(RenderedItem(index, item, text, tokens, length, vision_cost))
    return rendered


def _token_ends(processor: ProcessorMixin, text: str, limit: int) -> list[int]:
    """Return where each of the first tokens of a text ends, moved back to the end of a character as a reader sees it.

    An emoji or a flag can have several tokens and several code points.
    """
    tokens = processor.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ends = [end for _, end in tokens["offset_mapping"][:limit]]
    characters = [0, *(match.end() for match in regex.finditer(r"\X", text[: max(ends, default=0) + MAX_CHARACTER]))]
    return [characters[bisect_right(characters, end) - 1] for end in ends]


def _truncate(processor: ProcessorMixin, item: RenderedItem, limit: int) -> RenderedItem:
    """Keep the longest beginning of the texts, in whole characters, with which the rendered item fits. Images stay."""
    image_tokens = item.length - len(item.tokens)
    token_ends = {
        position: _token_ends(processor, part, limit)
        for position, part in enumerate(item.item["content"])
        if isinstance(part, str)
    }

    def truncated(count: int) -> RenderedItem:
        content = list(item.item["content"])
        for position, ends in token_ends.items():
            if count <= len(ends):  # the last text that is kept, or one after it
                content[position] = content[position][: ends[count - 1] if count else 0]
            count = max(count - len(ends), 0)
        shorter = {**item.item, "content": content}
        (text,) = _render(processor, {item.index: shorter})
        tokens = processor.tokenizer(text, **_tokenizer_options(processor, text))["input_ids"]
        length = len(tokens) + image_tokens
        return replace(item, item=shorter, text=text, tokens=tokens, length=length)

    num_tokens = sum(map(len, token_ends.values()))
    # A control string is one token by itself and several once the template breaks it, so the count is searched for.
    fitting = bisect_right(range(1, num_tokens + 1), limit, key=lambda count: truncated(count).length)
    result = truncated(fitting)
    if result.length > limit:
        raise ValueError(
            f"item {item.index} needs {result.length} tokens for its prompt and images alone, but max_length is "
            f"{limit}: raise max_length or use smaller images"
        )
    return result


__all__ = [
    "MicroBatch",
    "count_items",
    "default_max_length",
    "micro_batches",
    "plan_micro_batches",
    "takes_videos",
]
