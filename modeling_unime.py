"""UniME: a native image-text model of transformers whose last token is the embedding of what it has read."""

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import (
    AutoConfig,
    AutoModel,
    AutoProcessor,
    BatchFeature,
    Cache,
    PreTrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from transformers.utils import ModelOutput

from .batching_unime import MicroBatch, plan_micro_batches
from .configuration_unime import UniMEConfig
from .cpu_prepacking_unime import MIN_PREPACKING_TOKENS, prepacked_weights
from .encoding_unime import TEXT_ONLY_DECODER_FAMILIES, forward_packed, forward_with_prefix, prefill
from .pooling_unime import last_layer_on_last_token, pool_last_token
from .processing_unime import Item, item_hash, normalize_item


ENCODE_WINDOW_ITEMS = (
    4096  # items that `encode` renders and sorts at a time: enough to sort well, few enough to keep in memory
)
logger = logging.getLogger(__name__)


@dataclass
class UniMEOutput(ModelOutput):
    """Output of [`UniMEModel`].

    Args:
        embeddings (`Tensor` of shape `(batch, dimensions)`, float32): Unit vectors.
        last_hidden_state (`Tensor` of shape `(batch, tokens, hidden_size)`): The backbone's last layer, normed.
    """

    embeddings: Tensor | None = None
    last_hidden_state: Tensor | None = None


def _prefetch(batches: Iterable[MicroBatch]) -> Iterator[tuple[MicroBatch, BatchFeature]]:
    """Yield micro-batches with their tensors; a thread makes the next while the model works on the last."""
    with ThreadPoolExecutor(1) as thread:
        before = None
        for batch in batches:
            following = batch, thread.submit(batch.tensors)
            if before is not None:
                yield before[0], before[1].result()
            before = following
        if before is not None:
            yield before[0], before[1].result()


class UniMEModel(PreTrainedModel):
    """Universal multimodal embedder (arXiv 2504.17432): the normalised last hidden state of the last token read."""

    config_class = UniMEConfig
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: UniMEConfig, backbone: PreTrainedModel | None = None):
        super().__init__(config)
        self.backbone = AutoModel.from_config(config.backbone_config) if backbone is None else backbone
        self.post_init()
        # A CLIP tower lists layers of CLIP's text half too, and FSDP refuses names of what the model does not have.
        present = {type(module).__name__ for module in self.backbone.modules()}
        self._no_split_modules = sorted(present.intersection(self.backbone._no_split_modules or ()))

    @classmethod
    def from_backbone(cls, backbone: str | PreTrainedConfig, **kwargs) -> "UniMEModel":
        """Wrap a native image-text model, without its language-model head.

        Args:
            backbone (`str` or `PreTrainedConfig`): Folder or Hub id of weights, or a configuration (random weights).
            kwargs: Passed to `AutoModel.from_pretrained` (`dtype`, `device_map`, `attn_implementation`, ...) or to
                `AutoModel.from_config` (`dtype`, `attn_implementation`).

        Raises:
            ValueError: The backbone is not an image-text model of transformers.
        """
        config = backbone if isinstance(backbone, PreTrainedConfig) else AutoConfig.from_pretrained(backbone)
        if config.model_type not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
            raise ValueError(
                f"{'the configuration' if backbone is config else backbone} is of type '{config.model_type}', which "
                "transformers does not list as an image-text model: take a backbone such as LLaVA or Qwen2-VL"
            )
        loaded = (AutoModel.from_config if backbone is config else AutoModel.from_pretrained)(backbone, **kwargs)
        attention = loaded.config._attn_implementation  # a new outer configuration would reset it to none
        return cls(
            UniMEConfig(backbone_config=loaded.config, dtype=loaded.dtype, attn_implementation=attention), loaded
        )

    def get_input_embeddings(self) -> nn.Module:
        return self.backbone.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.backbone.set_input_embeddings(value)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        truncate_dim: int | None = None,
        prefix: Cache | None = None,
        ends: Tensor | None = None,
        **kwargs,
    ) -> UniMEOutput:
        """Embed a batch.

        Args:
            input_ids (`Tensor` of shape `(batch, tokens)`): Rendered prompts, padded on either side.
            attention_mask (`Tensor` of shape `(batch, tokens)`, *optional*, defaults to all ones): 0 marks padding.
            truncate_dim (`int`, *optional*): Keep this many leading dimensions and normalise again (Matryoshka).
            prefix (`Cache`, *optional*): What [`prefill`] made of tokens that come before all rows; these are
                texts, padded on the right.
            ends (`Tensor` of shape `(texts,)`, *optional*): Where texts that are packed into one row end, whose
                `position_ids` `(1, tokens)` begin anew with every text.
            kwargs: The backbone's other inputs (`pixel_values`, `image_grid_thw`, ...).

        Raises:
            ValueError: The model does not have `truncate_dim` dimensions.
        """
        if truncate_dim is not None and not 1 <= truncate_dim <= self.config.hidden_size:
            raise ValueError(f"truncate_dim must be between 1 and {self.config.hidden_size}, got {truncate_dim}")
        if ends is not None:
            hidden = forward_packed(self.backbone, input_ids, **kwargs)
            last = hidden[:, ends.to(hidden.device)].transpose(0, 1)
            return UniMEOutput(pool_last_token(last, torch.ones_like(ends)[:, None], truncate_dim), hidden)
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if prefix is not None:
            hidden = forward_with_prefix(self.backbone, prefix, input_ids, mask)
            return UniMEOutput(pool_last_token(hidden, mask, truncate_dim), hidden)
        kwargs = {
            name: value.to(self.dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
            for name, value in kwargs.items()
        } | {"return_dict": True, "use_cache": False}
        hidden = self.backbone(input_ids=input_ids, attention_mask=attention_mask, **kwargs).last_hidden_state
        return UniMEOutput(pool_last_token(hidden, mask, truncate_dim), hidden)

    @torch.no_grad()
    def encode(
        self,
        items: Sequence[Item] | Item,
        processor: ProcessorMixin | None = None,
        micro_batch_tokens: int | None = None,
        max_length: int | None = None,
        truncate_dim: int | None = None,
        show_progress_bar: bool = False,
        packed: bool = False,
    ) -> np.ndarray:
        """Embed items: texts, images, or dicts with `text`, `image` and `instruction`.

        Args:
            items (`list`): The items; a single one gives a single vector.
            processor (`ProcessorMixin`, *optional*, defaults to the one saved with the checkpoint): UniME's processor.
            max_tokens (`int`, *optional*, defaults to [`default_micro_batch_tokens`]): Token budget of a micro-batch: memory and
                speed, not results, depend on it.
            max_length (`int`, *optional*, defaults to what tokenizer and model are made for):
                Most tokens of one item; longer user texts are shortened.
            truncate_dim (`int`, *optional*): Leading dimensions to keep (Matryoshka).
            show_progress_bar (`bool`): Show progress.
            packed (`bool`): Read the texts of a micro-batch as one row without padding, for flash attention. Other
                kinds of attention compute a mask of all tokens by all tokens, and are slower so.

        Returns:
            `np.ndarray` of shape `(len(items), dimensions)`, float32: Unit vectors in the order of `items`.

        Raises:
            ValueError: An item is malformed, does not fit into `max_length`, or alone does not fit into memory.
        """
        if packed and not self.supports_text_only_decoder:
            raise ValueError(
                f"packed is known to be exact for {', '.join(sorted(TEXT_ONLY_DECODER_FAMILIES))}, and the backbone is of type "
                f"'{self.config.backbone_config.model_type}': leave it out"
            )
        single = isinstance(items, (str, bytes)) or not isinstance(items, Sequence)
        items = [items] if single else items
        processor = processor or self._saved_processor()
        if max_length is None:  # many a tokenizer knows no limit, and none knows that of the model
            positions = self.config.get_text_config().max_position_embeddings
            max_length = min(processor.tokenizer.model_max_length, positions)
        embeddings = np.zeros((len(items), truncate_dim or self.config.hidden_size), dtype=np.float32)
        first_of: dict[int, int] = {}  # content -> number of the item that had it first
        in_training = [module for module in self.modules() if module.training]  # some parts may not be, as frozen ones
        self.eval()
        try:
            with tqdm(total=len(items), desc="Embedding", unit="item", disable=not show_progress_bar) as progress:
                for start in range(0, len(items), ENCODE_WINDOW_ITEMS):
                    sources, new = [], {}
                    for number, item in enumerate(items[start : start + ENCODE_WINDOW_ITEMS], start):
                        spelt = normalize_item(item, number)
                        sources.append(first_of.setdefault(item_hash(spelt), number))
                        if sources[-1] == number:
                            new[number] = spelt
                    progress.update(len(sources) - len(new))
                    batches = plan_micro_batches(
                        processor,
                        new,
                        micro_batch_tokens or self.default_micro_batch_tokens,
                        max_length,
                        self.supports_text_only_decoder,
                        packed,
                    )
                    worth_packing = sum(batch.size for batch in batches) >= MIN_PREPACKING_TOKENS
                    with prepacked_weights(self) if worth_packing else nullcontext():
                        for numbers, vectors in self.embed_micro_batches(batches, truncate_dim):
                            embeddings[numbers] = vectors
                            progress.update(len(numbers))
                    embeddings[start : start + ENCODE_WINDOW_ITEMS] = embeddings[sources]
        finally:
            for module in in_training:
                module.training = True
        return embeddings[0] if single else embeddings

    @property
    def default_micro_batch_tokens(self) -> int:
        """Tokens of a micro-batch without a graph: what stays in the caches of a CPU, or keeps an accelerator busy."""
        return 1024 if self.device.type == "cpu" else 8192

    @property
    def supports_text_only_decoder(self) -> bool:
        """Whether the decoder alone may read texts: after a prefix that they share, or packed into one row."""
        return self.config.backbone_config.model_type in TEXT_ONLY_DECODER_FAMILIES

    @torch.no_grad()
    def embed_micro_batches(
        self, batches: Iterable[MicroBatch], truncate_dim: int | None = None
    ) -> Iterator[tuple[list[int], np.ndarray]]:
        """Embed micro-batches; one for which memory does not suffice is made again as two, which is logged.

        Args:
            batches (`Iterable`): What [`plan`] made.
            truncate_dim (`int`, *optional*): Leading dimensions to keep (Matryoshka).

        Yields:
            `tuple[list[int], np.ndarray]`: Numbers of items, and their unit vectors `(items, dimensions)`, float32.

        Raises:
            ValueError: Memory does not suffice for an item alone.
        """
        tokens_read, prefix = (), None
        for batch, tensors in _prefetch(batches):
            if batch.prefix != tokens_read:
                tokens_read, prefix = batch.prefix, prefill(self.backbone, batch.prefix) if batch.prefix else None
            waiting = deque([(batch, tensors)])
            while waiting:
                batch, tensors = waiting.popleft()
                vectors = self._embed_if_it_fits(tensors, truncate_dim, prefix)
                if vectors is not None:
                    yield batch.numbers, vectors
                    continue
                size = tensors["input_ids"].numel()
                if len(batch.rows) == 1:
                    raise ValueError(
                        f"item {batch.numbers[0]} ({size} tokens) does not fit into the memory of {self.device} even "
                        "alone: shorten its text, make its images smaller, or free memory"
                    )
                logger.warning(
                    f"{len(batch.rows)} items of {size} tokens do not fit into the memory of {self.device} together: "
                    "trying them in halves; a smaller token budget saves the time"
                )
                waiting.extendleft((half, half.tensors()) for half in reversed(batch.halves()))

    def _embed_if_it_fits(
        self, tensors: BatchFeature, truncate_dim: int | None, prefix: Cache | None
    ) -> np.ndarray | None:
        # Packed texts have their last tokens in one row; what is not causal is not known to ask for one token only.
        rows = self.supports_text_only_decoder and "ends" not in tensors
        try:
            with last_layer_on_last_token(self.backbone, tensors["attention_mask"]) if rows else nullcontext():
                output = self(**tensors.to(self.device), truncate_dim=truncate_dim, prefix=prefix)
            return output.embeddings.cpu().numpy()
        except RuntimeError as error:  # which holds on to the tensors of the pass until this function is left
            # The CPU's allocator, unlike those of accelerators, has no class of error of its own.
            if isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error):
                return None
            raise

    def _saved_processor(self) -> ProcessorMixin:
        if not self.name_or_path:
            raise ValueError("this model was not loaded from a checkpoint: pass encode(items, processor)")
        # Where this class is the checkpoint's own code, whoever loaded it has trusted the checkpoint already.
        trusted = type(self).__module__.startswith("transformers_modules.")
        return AutoProcessor.from_pretrained(self.name_or_path, trust_remote_code=trusted)


__all__ = ["UniMEModel", "UniMEOutput"]
