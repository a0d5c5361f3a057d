"""How much work training does: tokens, images and embeddings per second, and floating-point operations."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..modeling_unime import UniMEModel
from .distributed import gather


def count_tokens(micro_batches: Sequence[Mapping[str, Tensor]], padding: bool = False) -> int:
    """Return the number of tokens of a batch, those of images included.

    Args:
        micro_batches (`Sequence`): The micro-batches.
        padding (`bool`, *optional*, defaults to `False`): Whether padding counts.
    """
    masks = [tensors["attention_mask"] for tensors in micro_batches if "attention_mask" in tensors]
    packed = sum(tensors["input_ids"].numel() for tensors in micro_batches if "item_ends" in tensors)
    return packed + int(sum(mask.numel() if padding else mask.sum() for mask in masks))


class Throughput:
    """Counts the work of training steps and divides it by their time, which excludes evaluation and saving."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Start counting and the clock."""
        self._counts = {"tokens": 0, "images": 0, "embeddings": 0}
        self._started = time.perf_counter()

    def add(self, batch: Mapping[str, Any]) -> None:
        """Count a batch of this process, as a collator returns it."""
        self._counts["tokens"] += count_tokens(batch["micro_batches"])
        self._counts["images"] += batch.get("num_images", 0)
        self._counts["embeddings"] += len(batch["order"])

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the clock inside this context."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._started += time.perf_counter() - started

    def rates(self, device: torch.device) -> dict[str, float]:
        """Return the rates of all processes together since the start, and start again; every process must call this.

        Args:
            device (`torch.device`): Device of the tensors that the processes exchange.
        """
        seconds = time.perf_counter() - self._started
        counts, _ = gather(torch.tensor([list(self._counts.values())], device=device))
        rates = {
            f"{name}_per_second": n / seconds for name, n in zip(self._counts, counts.sum(0).tolist(), strict=True)
        }
        self.start()
        return rates


class ModelFlops:
    """The floating-point operations of a model's linear layers in a training step.

    A linear layer of `w` weights takes, for each of its vectors, 2w operations in the forward pass, 2w for the
    gradient of its input if a trained weight comes before it or in it, and 2w more if its own weights are trained: 6w
    for full fine-tuning and 4w for the base weights below an adapter. The vectors are the tokens of the language
    model, those of images included, and the patches of the vision tower and the projector. A vision tower without
    trained weights has no backward pass.

    As usual for model FLOPs, this excludes padding, attention scores, embedding tables and convolutions, and the
    second forward pass of gradient caching or activation checkpointing. The vision tower counts as zero if its
    configuration states no patch size.

    Args:
        model ([`UniMEModel`]): The model, with adapters if there are any.
    """

    def __init__(self, model: UniMEModel):
        decoder = set(model.backbone.get_decoder().modules())
        layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
        inside = [layer for layer in layers if layer in decoder]
        outside = [layer for layer in layers if layer not in decoder]
        vision_is_trained = any(layer.weight.requires_grad for layer in outside)
        self.per_patch = _training_flops(outside, vision_is_trained)
        self.per_token = _training_flops(inside, vision_is_trained or any(x.weight.requires_grad for x in inside))
        vision = model.config.backbone_config.to_dict().get("vision_config", {})
        patch_size, frames = vision.get("patch_size"), vision.get("temporal_patch_size", 1)
        self._numbers_per_patch = 3 * patch_size**2 * frames if isinstance(patch_size, int) else None

    def of_batch(self, micro_batches: Sequence[Mapping[str, Tensor]]) -> int:
        """Return the operations of one training step.

        Args:
            micro_batches (`Sequence`): The micro-batches of this process.
        """
        numbers = sum(tensors["pixel_values"].numel() for tensors in micro_batches if "pixel_values" in tensors)
        patches = numbers // self._numbers_per_patch if self._numbers_per_patch is not None else 0
        return self.per_token * count_tokens(micro_batches) + self.per_patch * patches


def _training_flops(layers: Sequence[nn.Linear], backward: bool) -> int:
    weights = [(layer.in_features * layer.out_features, layer.weight.requires_grad) for layer in layers]
    return sum(2 * size * (1 + backward + trained) for size, trained in weights)
