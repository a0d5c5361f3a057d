"""UniME model: a native image-text model of transformers, embedding what it reads in its last token."""

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoModel, AutoProcessor, PreTrainedConfig, PreTrainedModel, ProcessorMixin
from transformers.integrations.peft import maybe_load_adapters
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, MODEL_MAPPING
from transformers.utils import ModelOutput

from .batching_unime import default_max_length, plan_micro_batches
from .configuration_unime import SETTINGS_KEY, UniMEConfig
from .cpu_prepacking_unime import MIN_PREPACKING_TOKENS, prepacked_weights
from .encoding_unime import (
    TEXT_ONLY_DECODER_FAMILIES,
    embed_micro_batches,
    forward_packed,
    grids_of,
    sequential_positions,
)
from .pooling_unime import pool, pool_packed
from .processing_unime import Item
from .windows_unime import read_windows


# A generative checkpoint names its weights "model.visual...", "model.language_model...". When transformers loads
# Qwen2-VL or Qwen2.5-VL without the head, it mistakes the former for weights of the language model. In older
# checkpoints "model." is the language model itself: "model.layers..." and so on.
GENERATIVE_PREFIX = {r"^model\.(?!(layers|embed_tokens|norm)\.)": ""}
# What a class claims about the attention implementations that can be chosen.
ATTENTION_SUPPORT = ("_supports_flash_attn", "_supports_sdpa", "_supports_flex_attn", "_supports_attention_backend")
EMBEDDER_TYPES = frozenset({"embedding_gemma2"})  # backbones that do not generate, which transformers lists apart
# Arguments of `from_pretrained` that say where files are, and those that say how weights are loaded.
SOURCE_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
WEIGHT_ARGUMENTS = ("dtype", "torch_dtype", "quantization_config", "attn_implementation")
ENCODE_WINDOW_ITEMS = 4096  # rendered and sorted together: enough to sort well; images end a window earlier


def require_all_weights(checkpoint: str, missing_keys: Iterable[str]) -> None:
    """Refuse a model with weights that its checkpoint lacks: transformers has initialized them randomly.

    Args:
        checkpoint (`str`): Folder or Hub id, for the error.
        missing_keys (`Iterable[str]`): The names of these weights, as `from_pretrained` reports them.

    Raises:
        ValueError: A weight is missing.
    """
    first = min(missing_keys, default=None)
    if first is not None:
        raise ValueError(
            f"{checkpoint} has no weights for {first}: copy or download the checkpoint again; if it is complete, "
            "update transformers, which may not know the names of its weights yet"
        )


def _load_backbone(path: str, **kwargs) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Load a native model without its head; return it and what transformers reports."""
    options = {"output_loading_info": True} | kwargs
    loaded, report = AutoModel.from_pretrained(path, **{"key_mapping": GENERATIVE_PREFIX} | options)
    if report["missing_keys"]:  # renamings of HunYuan V4 and HyperCLOVA X need the prefix
        loaded, report = AutoModel.from_pretrained(path, **options)
    require_all_weights(path, report["missing_keys"])
    del loaded._weight_conversions  # saving the backbone would reverse the renaming above as well
    return loaded, report


def require_image_text_model(config: PreTrainedConfig, source: str) -> None:
    """Refuse a backbone that is not an image-text model of transformers with one decoder.

    Args:
        config (`PreTrainedConfig`): Configuration of the backbone.
        source (`str`): Folder or Hub id, for the error.

    Raises:
        ValueError: It is a model of another kind.
    """
    generates = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and type(config) in MODEL_MAPPING
    if not (generates or config.model_type in EMBEDDER_TYPES) or config.is_encoder_decoder:
        raise ValueError(
            f"{source} is of type '{config.model_type}', which transformers does not list as an image-text model "
            "with one decoder: choose a backbone such as LLaVA or Qwen2-VL"
        )


def whole_layers(backbone: PreTrainedModel) -> list[str]:
    """Return the class names of the modules that FSDP wraps one by one, and that stay on one device.

    transformers lists the attention alone for the vision layers of SmolVLM and Idefics3, and layers of CLIP's text
    model, which FSDP rejects because there are none.

    Args:
        backbone (`PreTrainedModel`): The image-text model.
    """
    layers = [module for module in backbone.modules() if isinstance(module, GradientCheckpointingLayer)]
    parts = {type(part).__name__ for layer in layers for part in layer.modules() if part is not layer}
    present = {type(module).__name__ for module in backbone.modules()}
    listed = present.intersection(backbone._no_split_modules or ())
    return sorted((listed | {type(layer).__name__ for layer in layers}) - parts)


def keep_batch_statistics(model: nn.Module) -> None:
    """Put the batch normalization of a model, such as that of FastVLM's tower, into evaluation mode.

    With the statistics of a micro-batch, what an image gives would depend on the other images in it, and so on how a
    batch is divided.
    """
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()


@dataclass
class UniMEOutput(ModelOutput):
    """Output of [`UniMEModel`].

    Args:
        embeddings (`Tensor` of shape `(batch, dimensions)`, float32): Embeddings of unit length.
        last_hidden_state (`Tensor` of shape `(batch, tokens, hidden_size)`): Last hidden states of the backbone.
        hidden_states (`tuple[Tensor]`, *optional*): Hidden states of all layers, with `output_hidden_states=True`.
        attentions (`tuple[Tensor]`, *optional*): Attention weights of all layers, with `output_attentions=True`.
    """

    embeddings: Tensor | None = None
    last_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class UniMEModel(PreTrainedModel):
    """Universal multimodal embedder (arXiv 2504.17432): the normalized last hidden state of the last token."""

    config_class = UniMEConfig
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True

    def __init__(self, config: UniMEConfig, backbone: PreTrainedModel | None = None):
        backbone_class = MODEL_MAPPING[type(config.backbone_config)] if backbone is None else type(backbone)
        for name in ATTENTION_SUPPORT:  # asked by the constructor of the base class
            setattr(self, name, getattr(backbone_class, name))
        super().__init__(config)
        self.backbone = AutoModel.from_config(config.backbone_config) if backbone is None else backbone
        self.post_init()
        self._no_split_modules = whole_layers(self.backbone)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | None,
        *model_args,
        config: UniMEConfig | str | None = None,
        **kwargs,
    ) -> "UniMEModel | tuple[UniMEModel, dict[str, Any]]":
        """Load a checkpoint whose weights have the names of this class, or those of the backbone's native class.

        Args:
            pretrained_model_name_or_path (`str`, *optional*): Folder or Hub id of a checkpoint or an adapter.
            model_args: Passed to `PreTrainedModel.from_pretrained`.
            config (`UniMEConfig` or `str`, *optional*): A configuration instead of the saved one.
            kwargs: As in `PreTrainedModel.from_pretrained`.

        Raises:
            ValueError: The checkpoint has the native names, and weights are missing.
        """
        source = {key: kwargs[key] for key in SOURCE_ARGUMENTS if key in kwargs}
        adapter, path, adapter_kwargs = maybe_load_adapters(
            pretrained_model_name_or_path, source, **(kwargs.get("adapter_kwargs") or {})
        )
        if path is None or SETTINGS_KEY not in PreTrainedConfig.get_config_dict(path, **source)[0]:
            return super().from_pretrained(pretrained_model_name_or_path, *model_args, config=config, **kwargs)
        with_report, _ = kwargs.pop("output_loading_info", False), kwargs.pop("adapter_kwargs", None)
        settings: Any = config
        if not isinstance(config, PreTrainedConfig):
            weights = {key: kwargs.pop(key) for key in WEIGHT_ARGUMENTS if key in kwargs}
            settings, unused = UniMEConfig.from_pretrained(config or path, return_unused_kwargs=True, **kwargs)
            kwargs = source | weights | unused
        native = {"config": settings.backbone_config, "trust_remote_code": False}
        backbone, report = _load_backbone(str(path), **kwargs | native)
        model = cls._wrap(backbone, settings).eval()
        model.name_or_path = model.config.name_or_path = str(path)
        if adapter is not None:
            model.load_adapter(adapter, adapter_kwargs=adapter_kwargs)
        return (model, report) if with_report else model

    @classmethod
    def from_backbone(cls, backbone: str | PreTrainedConfig, **kwargs) -> "UniMEModel":
        """Wrap a native image-text model without its language-model head.

        Args:
            backbone (`str` or `PreTrainedConfig`): Folder or Hub id of weights, or a configuration for random weights.
            kwargs: Passed to `AutoModel.from_pretrained` (`dtype`, `device_map`, `attn_implementation`, ...) or to
                `AutoModel.from_config` (`dtype`, `attn_implementation`).

        Raises:
            ValueError: The backbone is not an image-text model of transformers, or weights are missing.
        """
        if isinstance(backbone, PreTrainedConfig):
            require_image_text_model(backbone, "the configuration")
            return cls._wrap(AutoModel.from_config(backbone, **kwargs))
        # Without a value, transformers asks on the terminal whether code of the backbone may run.
        native = {"trust_remote_code": False}
        require_image_text_model(AutoConfig.from_pretrained(backbone, **native), backbone)
        return cls._wrap(_load_backbone(backbone, **native | kwargs)[0])

    @classmethod
    def _wrap(cls, loaded: PreTrainedModel, config: UniMEConfig | None = None) -> "UniMEModel":
        attention = loaded.config._attn_implementation  # a new outer configuration would reset it
        quantizer = getattr(loaded, "hf_quantizer", None)
        if quantizer is not None:
            quantizer.remove_quantization_config(loaded)
        config = UniMEConfig(backbone_config=loaded.config) if config is None else deepcopy(config)
        config.backbone_config, config.dtype = loaded.config, loaded.dtype
        config._attn_implementation = attention
        model = cls(config, loaded)
        if quantizer is not None:
            # Trainer, PEFT and accelerate ask the outermost model whether and how it is quantized.
            model.hf_quantizer = quantizer
            model.is_quantized, model.quantization_method = True, quantizer.quantization_config.quant_method
            quantizer.postprocess_model(model)
        return model

    @property
    def device(self) -> torch.device:
        """Return the device that inputs belong on: where accelerate computes, if it has offloaded the weights."""
        device = super().device
        if device.type != "meta":
            return device
        hooks = [module._hf_hook for module in self.modules() if "_hf_hook" in vars(module)]
        executing = [hook.execution_device for hook in hooks if getattr(hook, "execution_device", None) is not None]
        return torch.device(executing[0]) if executing else device

    def train(self, mode: bool = True) -> "UniMEModel":
        """Set training or evaluation mode; batch normalization is always in the latter."""
        super().train(mode)
        keep_batch_statistics(self)
        return self

    def get_input_embeddings(self) -> nn.Module:
        """Return the token embeddings of the backbone."""
        return self.backbone.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embeddings of the backbone."""
        self.backbone.set_input_embeddings(value)

    def get_decoder(self) -> nn.Module:
        """Return the decoder of the backbone."""
        return self.backbone.get_decoder()

    def get_encoder(self, modality: str | None = None) -> nn.Module:
        """Return the backbone's encoder of a modality, such as `"image"`, or this model, which has none for texts."""
        return self if modality is None else self.backbone.get_encoder(modality)

    @classmethod
    def is_custom_code(cls) -> bool:
        """Return `False`: in custom code, transformers does not initialize missing weights of CLIP as CLIP does."""
        return False

    def should_save_on_this_rank(self, is_main_process: bool) -> bool:
        """Return whether this process writes files in `save_pretrained`: each one that calls it does.

        transformers would let process 0 alone write, but nodes without a shared disk need a copy each.
        """
        return is_main_process

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        item_ends: Tensor | None = None,
        truncate_dim: int | None = None,
        inputs_embeds: Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs,
    ) -> UniMEOutput | tuple:
        """Embed a batch.

        Args:
            input_ids (`Tensor` of shape `(batch, tokens)`): Rendered prompts, padded on either side.
            attention_mask (`Tensor` of shape `(batch, tokens)`, *optional*, defaults to ones): 0 marks padding.
            item_ends (`Tensor` of shape `(items,)`, *optional*): Positions of the last tokens of items that are packed
                into one row, see [`MicroBatch.tensors`]. `position_ids` gives the positions in each item.
            truncate_dim (`int`, *optional*): Number of leading dimensions to keep before the embeddings are normalized
                (Matryoshka embeddings).
            inputs_embeds (`Tensor` of shape `(batch, tokens, hidden_size)`, *optional*): Embeddings of the tokens, in
                place of `input_ids`.
            return_dict (`bool`, *optional*, defaults to the configuration's): Whether to return a [`UniMEOutput`]
                rather than a tuple.
            kwargs: Other inputs of the backbone (`pixel_values`, `image_grid_thw`, ...), and `output_hidden_states`
                and `output_attentions`, which default to the configuration's.

        Raises:
            ValueError: The model does not have `truncate_dim` dimensions, or there are neither `input_ids` nor
                `inputs_embeds`, or both.
        """
        if (input_ids is None) == (inputs_embeds is None) or (item_ends is not None and input_ids is None):
            raise ValueError(
                "forward needs the tokens of rendered prompts, as input_ids or (not packed) as inputs_embeds: render "
                "texts and images by the processor's chat template, or call `encode`, which does this"
            )
        if truncate_dim is not None and not 1 <= truncate_dim <= self.config.hidden_size:
            raise ValueError(f"truncate_dim must be between 1 and {self.config.hidden_size}, got {truncate_dim}")
        kwargs = {
            name: value.to(self.dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
            for name, value in kwargs.items()
        } | {"return_dict": True, "use_cache": False}
        for name in ("output_hidden_states", "output_attentions"):
            if getattr(self.config, name):
                kwargs.setdefault(name, True)
        sequential, pooling = self.config.positions == "sequential", self.config.pooling
        if item_ends is None:
            tokens = cast(Tensor, input_ids if inputs_embeds is None else inputs_embeds)
            mask = tokens.new_ones(tokens.shape[:2], dtype=torch.long) if attention_mask is None else attention_mask
            if inputs_embeds is not None:
                kwargs["inputs_embeds"] = inputs_embeds
            # Without token ids, Qwen-VL would take the position offsets (`rope_deltas`) of an earlier batch.
            own_positions = inputs_embeds is not None and "rope_deltas" in vars(self.backbone)
            grids = grids_of(kwargs)
            if own_positions and not sequential and grids:  # reads the shape of the ids only
                grids["mm_token_type_ids"] = kwargs["mm_token_type_ids"]
                kwargs["position_ids"] = self.backbone.get_rope_index(mask, attention_mask=mask, **grids)[0]
            elif own_positions or sequential:
                kwargs["position_ids"] = sequential_positions(mask)
            states = self.backbone(input_ids=input_ids, attention_mask=attention_mask, **kwargs)
            embeddings = pool(states.last_hidden_state, mask, truncate_dim, pooling)
        else:
            self.require_packing()
            ids = cast(Tensor, input_ids)
            states = forward_packed(self.backbone, ids, item_ends=item_ends, sequential=sequential, **kwargs)
            embeddings = pool_packed(states.last_hidden_state, item_ends, truncate_dim, pooling)
        output = UniMEOutput(
            embeddings=embeddings,
            last_hidden_state=states.last_hidden_state,
            hidden_states=states.hidden_states,
            attentions=states.attentions,
        )
        return_dict = self.config.return_dict if return_dict is None else return_dict
        return output if return_dict else output.to_tuple()

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
        """Embed items: texts, images, lists of texts and images, or dicts with `text`, `image` and `instruction`.

        A list of texts and images is read in its order. `items` is a list itself, so one such item is
        `[["The cat", image, "sits on", image]]`, or `{"content": ["The cat", image, ...], "instruction": ...}`.

        Equal items are embedded once, unless they have images of more than 2 megapixels. Results do not depend on how
        the items are batched. Opened image files (`PIL.Image.open`) are decoded a few at a time and are not decoded in
        `items` itself, see [`read_windows`].

        Args:
            items (`list` or a single item): The items; a single item gives a single embedding.
            processor (`ProcessorMixin`, *optional*, defaults to the one saved with the checkpoint): UniME's processor.
            micro_batch_tokens (`int`, *optional*, defaults to [`default_micro_batch_tokens`]): Token budget of one
                forward pass, padding and the worth of vision patches included ([`vision_token_equivalents`]). It
                affects memory and speed only; 1,024 to 65,536 are common.
            max_length (`int`, *optional*, defaults to the limit of the tokenizer and the model): Maximum number of
                tokens of an item. Longer texts are truncated, the last ones first; prompts and images never are.
            truncate_dim (`int`, *optional*): Number of leading dimensions to keep (Matryoshka embeddings).
            show_progress_bar (`bool`, *optional*, defaults to `False`): Whether to show a progress bar.
            packed (`bool`, *optional*, defaults to `False`): Whether to pack the items of a micro-batch into one row
                without padding. Use it with flash attention; other attention implementations compute a full mask
                of all tokens by all tokens and get slower.

        Returns:
            `np.ndarray` of shape `(len(items), dimensions)`, float32: Embeddings of unit length, in the order of
            `items`.

        Raises:
            ValueError: An item is malformed, its prompt and images exceed `max_length`, it does not fit into memory on
                its own, it has a text before an image and the checkpoint's chat template puts all images first, or
                its embedding is not finite.
        """
        if packed:
            self.require_packing()
        single = isinstance(items, (str, bytes)) or not isinstance(items, Sequence)
        items = cast(Sequence[Item], [items] if single else items)
        processor = processor or self._saved_processor()
        max_length = default_max_length(processor, self.config) if max_length is None else max_length
        budget = micro_batch_tokens or self.default_micro_batch_tokens
        embeddings = np.zeros((len(items), truncate_dim or self.config.hidden_size), dtype=np.float32)
        first_index: dict[int, int] = {}  # key of an item -> index of the first equal item
        in_training_mode = [module for module in self.modules() if module.training]  # frozen parts may not be
        self.eval()
        try:
            with tqdm(total=len(items), desc="Embedding", unit="item", disable=not show_progress_bar) as progress:
                start = 0
                for window in read_windows(items, ENCODE_WINDOW_ITEMS):
                    sources, new_items = [], {}
                    for index, (key, item) in enumerate(window, start):
                        sources.append(first_index.setdefault(key, index))
                        if sources[-1] == index:
                            new_items[index] = item
                    window.clear()
                    progress.update(len(sources) - len(new_items))
                    batches = plan_micro_batches(
                        processor,
                        new_items,
                        budget,
                        max_length,
                        self.pools_last_token,
                        packed,
                        self.config.backbone_config,
                    )
                    new_items.clear()
                    prepack = sum(batch.tokens for batch in batches) >= MIN_PREPACKING_TOKENS
                    with prepacked_weights(self) if prepack else nullcontext():
                        for indices, vectors in embed_micro_batches(self, batches, truncate_dim):
                            embeddings[indices] = vectors
                            progress.update(len(indices))
                    batches.clear()  # with the images, before the window after the next one is decoded
                    embeddings[start : start + len(sources)] = embeddings[sources]
                    start += len(sources)
        finally:
            for module in in_training_mode:
                module.training = True
        return embeddings[0] if single else embeddings

    @property
    def default_micro_batch_tokens(self) -> int:
        """Return the default token budget of a forward pass without gradients: 1,024 on a CPU, 8,192 elsewhere."""
        return 1024 if self.device.type == "cpu" else 8192  # fits a CPU's caches; keeps an accelerator busy

    @property
    def supports_text_only_decoder(self) -> bool:
        """Return whether the decoder alone may embed texts, which packing requires."""
        return self.config.backbone_config.model_type in TEXT_ONLY_DECODER_FAMILIES

    @property
    def pools_last_token(self) -> bool:
        """Return whether the last token alone gives the embedding of a text-only decoder, as shared prefixes require.

        The last decoder layer is then computed for that token only.
        """
        return self.supports_text_only_decoder and self.config.pooling == "last"

    def require_packing(self) -> None:
        """Refuse to pack items into one row where that is not exact.

        Raises:
            ValueError: The backbone is of another family than those in `TEXT_ONLY_DECODER_FAMILIES`.
        """
        if not self.supports_text_only_decoder:
            raise ValueError(
                f"packed=True is exact for {', '.join(sorted(TEXT_ONLY_DECODER_FAMILIES))} only, and this backbone is "
                f"of type '{self.config.backbone_config.model_type}': leave packed out"
            )

    def _saved_processor(self) -> ProcessorMixin:
        if not self.name_or_path:
            raise ValueError("this model was not loaded from a checkpoint: call encode(items, processor)")
        # When this class is the checkpoint's own code, whoever loaded it has already trusted the checkpoint.
        trusted = type(self).__module__.startswith("transformers_modules.")
        return AutoProcessor.from_pretrained(self.name_or_path, trust_remote_code=trusted)


__all__ = ["UniMEModel", "UniMEOutput"]
