"""Embed micro-batches without gradients, exactly and fast.

- **Prefetching**: threads prepare the tensors of the next micro-batches while the model runs the current one.
- **Shared prefixes**: the states of a token depend only on the tokens before it, so the keys and values of a system
  prompt and an instruction are computed once for all texts that follow them.
- **Packing**: the items of a micro-batch form one row without padding. A block-diagonal mask (`sdpa`, `eager`) or the
  boundaries of the items (flash attention) keep them apart, in training too.
- **Last layer on the last token**: see [`last_layer_on_last_token`].
- **Halving**: a micro-batch that does not fit into memory is split in two.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from itertools import chain
from threading import get_ident
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import BatchFeature, Cache, DynamicCache, DynamicLayer, PreTrainedModel
from transformers.utils import ModelOutput

from .batching_unime import MicroBatch
from .pooling_unime import last_layer_on_last_token, pool
from .windows_unime import MAX_WINDOW_PIXELS, READER_THREADS


logger = logging.getLogger(__name__)

# Backbones that embed a text with their decoder alone, causal in all layers; the tests compare each with its full
# forward pass, and packed items with padded ones. Bidirectional prefixes (PaliGemma) and recurrent layers would need
# other code.
TEXT_ONLY_DECODER_FAMILIES = frozenset(
    {
        "fast_vlm",
        "idefics3",
        "llava",
        "llava_next",
        "llava_onevision",
        "phi3_v",
        "qwen2_5_vl",
        "qwen2_vl",
        "qwen3_vl",
        "smolvlm",
    }
)


class PrefixLayer(DynamicLayer):
    """Keys and values of one layer, `(1, heads, prefix, head_dim)`, that are prepended to every batch.

    Unlike a cache for generation it keeps nothing of the batches.
    """

    def __init__(self, keys: Tensor, values: Tensor):
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Return the keys and values of the prefix and of the batch, concatenated."""
        rows = key_states.shape[0]
        return (
            torch.cat([self.keys.expand(rows, -1, -1, -1), key_states], dim=-2),
            torch.cat([self.values.expand(rows, -1, -1, -1), value_states], dim=-2),
        )


def prefill(backbone: PreTrainedModel, tokens: tuple[int, ...], device: torch.device) -> Cache:
    """Return the keys and values of `tokens` in all layers of the backbone's decoder, whose inputs are on `device`."""
    ids = torch.tensor([tokens], device=device)
    cache = DynamicCache()  # created without a configuration: sliding-window layers would drop tokens
    backbone.get_decoder()(input_ids=ids, past_key_values=cache, use_cache=True)
    return Cache(layers=[PrefixLayer(layer.keys, layer.values) for layer in cache.layers])


def forward_with_prefix(backbone: PreTrainedModel, prefix: Cache, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """Return the last hidden states `(batch, tokens, hidden_size)` of right-padded texts that follow a prefix."""
    prefix_mask = attention_mask.new_ones(len(attention_mask), prefix.get_seq_length())
    mask = torch.cat([prefix_mask, attention_mask], dim=1)
    decoder = backbone.get_decoder()
    return decoder(input_ids=input_ids, attention_mask=mask, past_key_values=prefix, use_cache=True).last_hidden_state


def forward_packed(
    backbone: PreTrainedModel,
    input_ids: Tensor,
    position_ids: Tensor,
    item_ends: Tensor,
    sequential: bool = False,
    **kwargs: Any,
) -> ModelOutput:
    """Return the output of the backbone for items that are packed into one row.

    Args:
        backbone (`PreTrainedModel`): The backbone, of a family in `TEXT_ONLY_DECODER_FAMILIES`.
        input_ids (`Tensor` of shape `(1, tokens)`): Tokens of the items, one item after the other.
        position_ids (`Tensor` of shape `(1, tokens)`): Position of each token in its item, starting at 0. The
            attention mask follows from them.
        item_ends (`Tensor` of shape `(items,)`): Position of each item's last token in the row.
        sequential (`bool`, *optional*, defaults to `False`): Whether tokens of images have one position after the
            other, too.
        kwargs: Other inputs of the backbone, such as `pixel_values`.
    """
    decoder = backbone.get_decoder()
    max_length = int(position_ids.max()) + 1
    # Flash attention would otherwise search for the boundaries in each layer, and wait for the device each time.
    ends = nn.functional.pad(item_ends + 1, (1, 0)).int()
    boundaries = {
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "max_length_q": max_length,
        "max_length_k": max_length,
    }
    if "mrope_section" in decoder.config.rope_parameters:  # Qwen-VL: mask positions, then time, height and width
        axes = position_ids.expand(3, 1, -1)
        grids = grids_of(kwargs)
        if grids and not sequential:
            axes = _rope_index(backbone, input_ids, item_ends, kwargs["mm_token_type_ids"], grids)
        position_ids = torch.cat([position_ids[None], axes])
    with _decoder_arguments(decoder, boundaries):
        return backbone(input_ids=input_ids, position_ids=position_ids, **kwargs)


def sequential_positions(mask: Tensor) -> Tensor:
    """Return the positions `(3, batch, tokens)` of padded rows for Qwen-VL, one after the other also inside images."""
    return (mask.long().cumsum(dim=1) - 1).clamp(min=0).expand(3, -1, -1)


def grids_of(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the inputs of a Qwen-VL from which the positions of images and videos follow; none of a text."""
    names = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")
    return {name: inputs[name] for name in names if name in inputs}


def _rope_index(
    backbone: PreTrainedModel, input_ids: Tensor, item_ends: Tensor, token_types: Tensor, grids: dict[str, Any]
) -> Tensor:
    """Return the positions `(3, 1, tokens)` in time, height and width of packed items with images, for Qwen-VL."""
    lengths = item_ends.diff(prepend=item_ends.new_tensor([-1])).tolist()
    padded_ids, padded_types, mask = (
        pad_sequence(row[0].split(lengths), batch_first=True)
        for row in (input_ids, token_types, torch.ones_like(input_ids))
    )
    positions, _ = backbone.get_rope_index(padded_ids, mm_token_type_ids=padded_types, attention_mask=mask, **grids)
    return positions[:, mask.bool()][:, None]


@contextmanager
def _decoder_arguments(decoder: nn.Module, arguments: dict[str, Any]) -> Iterator[None]:
    """Pass further arguments to the decoder, but not to the vision tower, as arguments of the backbone would be."""
    calling_thread = get_ident()

    def add(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        # Another thread may be embedding other rows with the same model.
        return (args, kwargs | arguments) if get_ident() == calling_thread else None

    hook = decoder.register_forward_pre_hook(add, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


@torch.no_grad()
def embed_micro_batches(
    model: PreTrainedModel, batches: Iterable[MicroBatch], truncate_dim: int | None = None
) -> Iterator[tuple[list[int], np.ndarray]]:
    """Embed micro-batches. One that does not fit into memory is split in two, and a warning says so.

    Args:
        model ([`UniMEModel`]): The model, in evaluation mode.
        batches (`Iterable[MicroBatch]`): The micro-batches, see [`plan_micro_batches`].
        truncate_dim (`int`, *optional*): Number of leading dimensions to keep (Matryoshka embeddings).

    Yields:
        `tuple[list[int], np.ndarray]`: Indices of items, and their unit-length embeddings `(items, dimensions)`,
        float32.

    Raises:
        ValueError: A single item does not fit into memory, or an embedding is not finite.
    """
    prefix_tokens: tuple[int, ...] = ()
    prefix = None
    for batch, tensors in _prefetch(batches):
        if batch.prefix != prefix_tokens:
            prefix_tokens = batch.prefix
            prefix = prefill(model.backbone, prefix_tokens, model.device) if prefix_tokens else None
        pending = deque([(batch, tensors)])
        while pending:
            batch, tensors = pending.popleft()
            embeddings = _embed_or_none(model, tensors, truncate_dim, prefix)
            if embeddings is not None:
                require_finite(model, batch.indices, embeddings)
                yield batch.indices, embeddings
                continue
            tokens = tensors["input_ids"].numel()
            if len(batch.items) == 1:
                raise ValueError(
                    f"item {batch.indices[0]} ({tokens} tokens) does not fit into the memory of {model.device} even "
                    "on its own: shorten its text, use smaller images, or free memory"
                )
            logger.warning(
                f"{len(batch.items)} items of {tokens} tokens do not fit into the memory of {model.device}: splitting "
                "them in halves; a smaller micro_batch_tokens avoids this"
            )
            pending.extendleft((half, half.tensors()) for half in reversed(batch.halves()))


def require_finite(model: PreTrainedModel, indices: list[int], embeddings: np.ndarray) -> None:
    """Refuse embeddings that hold NaN or infinity.

    Args:
        model ([`UniMEModel`]): The model, for the error.
        indices (`list[int]`): Indices of items, for the error.
        embeddings (`np.ndarray` of shape `(items, dimensions)`): Their embeddings.

    Raises:
        ValueError: An embedding is not finite.
    """
    finite = np.isfinite(embeddings).all(axis=1)
    if not finite.all():
        item, dtype = indices[int(finite.argmin())], str(model.dtype).removeprefix("torch.")
        others = "another dtype" if dtype == "float32" else "float32 or bfloat16"
        raise ValueError(
            f"item {item}: its embedding is not finite in {dtype}: load the model in {others}, and if that does not "
            "help, copy or download the checkpoint again"
        )


def _prefetch(batches: Iterable[MicroBatch]) -> Iterator[tuple[MicroBatch, BatchFeature]]:
    """Yield micro-batches with their tensors, in order, and prepare the images of the next ones in threads.

    While the caller works on a micro-batch, `READER_THREADS` others are prepared or ready. Fewer (but at least one) if
    these and the caller's have more than `MAX_WINDOW_PIXELS` pixels, the last one not counted.
    """
    pending: deque[tuple[MicroBatch, Callable[[], BatchFeature]]] = deque()
    pixels = 0
    with ThreadPoolExecutor(READER_THREADS) as threads:
        for upcoming in chain.from_iterable(map(_share_of_a_thread, batches)):
            # Those of texts take less time than the change of threads.
            prepared = threads.submit(upcoming.tensors).result if upcoming.has_images else upcoming.tensors
            pending.append((upcoming, prepared))
            pixels += upcoming.num_pixels
            while len(pending) > READER_THREADS or (len(pending) > 1 and pixels > MAX_WINDOW_PIXELS):
                batch, ready = pending.popleft()
                pixels -= batch.num_pixels
                yield batch, ready()
        while pending:
            batch, ready = pending.popleft()
            yield batch, ready()


def _share_of_a_thread(batch: MicroBatch) -> Iterator[MicroBatch]:
    """Yield parts of a micro-batch: photographs, which take longer to prepare than to embed, go to several threads."""
    if len(batch.items) > 1 and batch.num_pixels > MAX_WINDOW_PIXELS // READER_THREADS:
        yield from chain.from_iterable(map(_share_of_a_thread, batch.halves()))
    else:
        yield batch


def _embed_or_none(
    model: PreTrainedModel, tensors: BatchFeature, truncate_dim: int | None, prefix: Cache | None
) -> np.ndarray | None:
    """Return the embeddings of a micro-batch, or None if memory does not suffice."""
    # In a function of its own, because the exception keeps the tensors of the failed pass alive until it is left.
    try:
        return _forward(model, tensors.to(model.device), truncate_dim, prefix).cpu().numpy()
    except RuntimeError as error:
        # The CPU allocator has no error class of its own.
        if isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error):
            return None
        raise


def _forward(model: PreTrainedModel, tensors: BatchFeature, truncate_dim: int | None, prefix: Cache | None) -> Tensor:
    # The shortcut is known to be exact for causal decoders only.
    shortcut = last_layer_on_last_token(model.backbone, tensors) if model.pools_last_token else nullcontext()
    with shortcut:
        if prefix is not None:
            mask = tensors["attention_mask"]
            hidden = forward_with_prefix(model.backbone, prefix, tensors["input_ids"], mask)
            return pool(hidden, mask, truncate_dim)
        return model(**tensors, truncate_dim=truncate_dim).embeddings


__all__ = [
    "TEXT_ONLY_DECODER_FAMILIES",
    "embed_micro_batches",
    "forward_packed",
    "forward_with_prefix",
    "grids_of",
    "prefill",
    "require_finite",
    "sequential_positions",
]
