"""Tests of the random models of the benchmarks."""

from pathlib import Path

import numpy as np
import pytest
import torch
from models import FAMILIES, configuration, random_model
from PIL import Image

from unime import UniMEModel, load_model


@pytest.mark.parametrize("family", FAMILIES)
def test_a_random_model_embeds_texts_and_images(family: str, tmp_path: Path):
    model, processor = load_model(str(random_model(family, tmp_path)), dtype="float32")
    assert 60e6 < sum(weight.numel() for weight in model.parameters()) < 100e6
    image = Image.new("RGB", (96, 128), "red")
    embeddings = model.encode(["a cat", "a pizza on a tile", image], processor)
    cosines = embeddings @ embeddings.T
    assert np.abs(cosines - np.eye(3)).max() < 0.9  # embeddings of different items differ


@pytest.mark.parametrize(("name", "billions"), [("qwen2-vl-2b", 2.21), ("qwen2-vl-7b", 7.75)])
def test_a_random_model_of_a_real_size_has_the_weights_of_the_published_one(name: str, billions: float):
    config, processor = configuration(name)
    with torch.device("meta"):
        model = UniMEModel.from_backbone(config)
    # Without the head of the language model, which the smaller checkpoint does not store either.
    assert sum(weight.numel() for weight in model.parameters()) / 1e9 == pytest.approx(billions, abs=0.005)
    image = processor.image_processor(Image.new("RGB", (336, 336)), return_tensors="pt")
    assert image["pixel_values"].shape == (24**2, 3 * 2 * 14**2)  # patches of 14 pixels, two frames


def test_an_unknown_family_is_rejected(tmp_path: Path):
    with pytest.raises(
        ValueError, match="there is no random model of 'clip': choose from llava-onevision, qwen2-vl, "
    ):
        random_model("clip", tmp_path)
