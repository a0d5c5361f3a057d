"""The large tiny models are what they are said to be."""

from pathlib import Path

import numpy as np
import pytest
from models import FAMILIES, large_model
from PIL import Image

from unime import load_model


@pytest.mark.parametrize("family", FAMILIES)
def test_a_large_model_embeds_what_a_checkpoint_does(family: str, tmp_path: Path):
    model, processor = load_model(str(large_model(family, tmp_path)), dtype="float32")
    assert 60e6 < sum(weight.numel() for weight in model.parameters()) < 100e6
    image = Image.new("RGB", (96, 128), "red")
    vectors = model.encode(["a cat", "a pizza on a tile", image], processor)
    cosines = vectors @ vectors.T
    assert np.abs(cosines - np.eye(3)).max() < 0.9  # random weights keep them apart


def test_a_tiny_model_of_no_known_family_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="there is no tiny model of 'clip': choose from llava-onevision, qwen2-vl"):
        large_model("clip", tmp_path)
