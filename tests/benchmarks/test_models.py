"""Tests of the random models of the benchmarks."""

from pathlib import Path

import numpy as np
import pytest
from models import FAMILIES, random_model
from PIL import Image

from unime import load_model


@pytest.mark.parametrize("family", FAMILIES)
def test_a_random_model_embeds_texts_and_images(family: str, tmp_path: Path):
    model, processor = load_model(str(random_model(family, tmp_path)), dtype="float32")
    assert 60e6 < sum(weight.numel() for weight in model.parameters()) < 100e6
    image = Image.new("RGB", (96, 128), "red")
    embeddings = model.encode(["a cat", "a pizza on a tile", image], processor)
    cosines = embeddings @ embeddings.T
    assert np.abs(cosines - np.eye(3)).max() < 0.9  # embeddings of different items differ


def test_an_unknown_family_is_rejected(tmp_path: Path):
    with pytest.raises(ValueError, match="there is no random model of 'clip': choose from llava-onevision, qwen2-vl"):
        random_model("clip", tmp_path)
