"""The tiny models are native checkpoints that the Auto classes load and that tell items apart."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_models import TINY_MODELS
from transformers import AutoModelForImageTextToText, AutoProcessor


@pytest.mark.parametrize("name", TINY_MODELS)
def test_a_tiny_model_is_a_native_image_text_checkpoint(name: str, tiny_model: Callable[[str], Path]) -> None:
    processor = AutoProcessor.from_pretrained(tiny_model(name))
    model = AutoModelForImageTextToText.from_pretrained(tiny_model(name)).eval()
    states = []
    for color in ("red", "blue"):
        parts = [
            {"type": "image", "image": Image.new("RGB", (40, 64), color)},
            {"type": "text", "text": "a pizza 日本"},
        ]
        tensors = processor.apply_chat_template(
            [{"role": "user", "content": parts}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        assert "日本" in processor.tokenizer.decode(tensors["input_ids"][0])
        with torch.no_grad():
            states.append(model(**tensors, output_hidden_states=True).hidden_states[-1][0, -1])
    assert torch.cosine_similarity(states[0], states[1], dim=0) < 0.999


def test_a_tiny_model_is_built_once(tiny_model: Callable[[str], Path]) -> None:
    assert tiny_model("llava") is tiny_model("llava")
    assert not (tiny_model("text-only") / "processor_config.json").exists()
