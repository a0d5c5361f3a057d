"""Models of fake tensors, which have shapes and no numbers, for counting operations and bytes at real sizes.

The linear layers are in 4 bits and have adapters, as in the recipes. Masks of dropout take a byte for each number and
operations that torch does not count by itself are registered, so that a CPU counts what a GPU does.
"""

import gc
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from typing import Any

import torch
from bitsandbytes.functional import QuantState
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from transformers import BitsAndBytesConfig
from transformers.integrations.bitsandbytes import replace_with_bnb_linear

from unime import UniMEModel
from unime.cli.plan import image_rows
from unime.trainers.automatic_graph_cache import HostMemory
from unime.trainers.trained_weights import fit_to_model


COLLECT_BYTES = 8e6  # fake tensors of checkpointed layers are in reference cycles: collect before a peak counts
MicroBatch = dict[str, Tensor]


def _attention(query: Any, key: Any, value: Any, dropout: float = 0, causal: bool = False, **_: Any) -> int:
    return sdpa_flop_count(query, key, value) // (1 + causal)


def _attention_backward(
    gradient: Any, query: Any, key: Any, value: Any, _: Any, __: Any, dropout: float, causal: bool, **___: Any
) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value) // (1 + causal)


def _product_of_4_bits(vectors: Sequence[int], _: Sequence[int], shape: Sequence[int], *__: Any, **___: Any) -> int:
    return 2 * math.prod(vectors) * shape[0]


UNCOUNTED = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    torch.ops.bitsandbytes.gemm_4bit: _product_of_4_bits,
}


class FakeMemory(HostMemory):
    """Counts the bytes of fake tensors. What it collects as garbage would not exist on a GPU, and is no peak."""

    _collected_at = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Run an operation and count its results."""
        peak = self._peak
        results = super().__torch_dispatch__(func, types, args, kwargs)
        if self._peak > peak:
            if self._alive > self._collected_at + COLLECT_BYTES:
                gc.collect()
                self._collected_at = self._alive
            self._peak = max(peak, self._alive)
        return results


class MaskedDropout(nn.Dropout):
    """Dropout whose masks have one byte for each number, as on a GPU."""

    def forward(self, vectors: Tensor) -> Tensor:
        """Drop some of the numbers."""
        return torch.native_dropout(vectors, self.p, self.training)[0]


def with_layers(config: Any, decoder_layers: int, tower_layers: int) -> Any:
    """Return a configuration with other numbers of layers."""
    config.text_config.num_hidden_layers = decoder_layers
    if config.text_config.to_dict().get("layer_types"):
        config.text_config.layer_types = config.text_config.layer_types[:1] * decoder_layers
    setattr(config.vision_config, _depth(config.vision_config), tower_layers)
    return config


def _depth(vision_config: Any) -> str:
    return "depth" if "depth" in vision_config.to_dict() else "num_hidden_layers"


def fake_model(config: Any, adapter: LoraConfig) -> Any:
    """Return a model in 4 bits with adapters, made of fake tensors.

    Args:
        config (`PreTrainedConfig`): Configuration of the backbone.
        adapter (`LoraConfig`): The adapters.
    """
    with torch.device("meta"):
        embedder = UniMEModel.from_backbone(config, dtype=torch.bfloat16, attn_implementation="sdpa")
        kind = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16)
        replace_with_bnb_linear(embedder, None, kind)
        embedder.is_loaded_in_4bit = True
        model = get_peft_model(embedder, fit_to_model(copy(adapter), embedder)).train()  # PEFT changes it
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        for module in model.modules():
            if type(module).__name__ == "Linear4bit" and type(module).__module__.startswith("bitsandbytes"):
                count = module.in_features * module.out_features
                weight: Any = nn.Parameter(
                    torch.empty(math.ceil(count / 2), 1, dtype=torch.uint8), requires_grad=False
                )
                shape = torch.Size((module.out_features, module.in_features))
                scales = torch.empty(math.ceil(count / 64))
                weight.quant_state = QuantState(scales, shape, torch.empty(16), 64, "nf4", torch.bfloat16)
                module.weight = weight
                if module.bias is not None:
                    module.bias = nn.Parameter(torch.empty_like(module.bias, dtype=torch.bfloat16), False)
        for module in model.modules():
            for name, child in module.named_children():
                if type(child) is nn.Dropout:
                    setattr(module, name, MaskedDropout(child.p))
        for weight in model.parameters():
            if weight.requires_grad:
                weight.grad = torch.zeros_like(weight)
    embedder.activation_checkpointing_enable()
    return model


def texts(count: int, text_tokens: int) -> MicroBatch:
    """Return a micro-batch of texts of equal length."""
    ids = torch.full((count, text_tokens), 5)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def images(config: Any, count: int, text_tokens: int, side: int) -> MicroBatch:
    """Return a micro-batch of texts with a square image each.

    Args:
        config (`PreTrainedConfig`): Configuration of the backbone: Qwen2-VL or LLaVA-OneVision.
        count (`int`): Items.
        text_tokens (`int`): Tokens of a text.
        side (`int`): Height and width of an image in pixels.
    """
    content, vision = image_rows(config, side), config.vision_config
    tensors = texts(count, text_tokens + int(content["image_tokens"]))
    tensors["input_ids"][:, 1 : 1 + int(content["image_tokens"])] = config.image_token_id
    if config.model_type == "qwen2_vl":
        grid = math.isqrt(int(content["patches"]))
        pixels = torch.empty(count * grid**2, int(content["patch_numbers"]), dtype=torch.bfloat16)
        is_image = (tensors["input_ids"] == config.image_token_id).long()
        sizes = {"image_grid_thw": torch.tensor([[1, grid, grid]] * count), "mm_token_type_ids": is_image}
        return {**tensors, "pixel_values": pixels, **sizes}
    tiles = int(content["patches"] / content["tile_patches"])
    pixels = torch.empty(count, tiles, 3, vision.image_size, vision.image_size, dtype=torch.bfloat16)
    return {**tensors, "pixel_values": pixels, "image_sizes": torch.full((count, 2), side)}


@contextmanager
def counting_flops() -> Iterator[FlopCounterMode]:
    """Count operations under autocast inside this context."""
    counter = FlopCounterMode(display=False, custom_mapping=UNCOUNTED)
    with counter, torch.autocast("cpu", torch.bfloat16):
        yield counter


def real_depth(config: Any) -> tuple[int, int]:
    """Return the numbers of layers of the language model and of the vision tower."""
    return config.text_config.num_hidden_layers, getattr(config.vision_config, _depth(config.vision_config))
