"""A tiny LLaVA with optional dropout, its processor, and training rows of every kind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoConfig, ProcessorMixin

from unime import UniMEModel, processor_from_backbone


# A second thread slows models this small down.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def processor(tiny_model: Callable[[str], Path]) -> ProcessorMixin:
    return processor_from_backbone(str(tiny_model("llava")))


@pytest.fixture
def make_model(tiny_model: Callable[[str], Path]) -> Callable[..., UniMEModel]:
    """Return a function that makes the same model every time, with a given attention dropout."""

    def make(dropout: float = 0.0) -> UniMEModel:
        config = AutoConfig.from_pretrained(tiny_model("llava"))
        config.text_config.attention_dropout = dropout
        config.vision_config.attention_dropout = dropout
        torch.manual_seed(0)
        return UniMEModel.from_backbone(config)

    return make


@pytest.fixture(scope="session")
def make_image() -> Callable[[int], Image.Image]:
    """Return a function that draws a random image from a seed."""

    def draw(seed: int) -> Image.Image:
        noise = torch.randint(0, 256, (24, 24, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
        return Image.fromarray(noise.numpy())

    return draw


@pytest.fixture(scope="session")
def rows(make_image: Callable[[int], Image.Image]) -> list[dict[str, Any]]:
    """Return training rows: images and texts on either side, explicit negatives, shared labels, duplicates."""
    rows = []
    for i in range(24):
        caption = {"text": f"an image of number {i}" + " and more" * (i % 4)}
        image = {"image": make_image(i), "instruction": "Represent the given image."}
        both = {"image": make_image(100 + i), "text": f"which number beside {i}?"}
        query, positive = [(caption, image), (image, caption), (both, {"text": f"answer {i % 3}"})][i % 3]
        rows.append(
            {
                "query": query,
                "positive": positive,
                "negatives": [{"text": f"not the number {i // 2}"}] if i % 2 else [],
                "task": f"task {i % 3}",
                "label": f"answer {i % 3}" if i % 3 == 2 else None,
            }
        )
    return rows
