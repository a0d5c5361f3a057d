"""The large twins are what they are said to be."""

from pathlib import Path

import numpy as np
import pytest
from models import FAMILIES, large_twin
from PIL import Image

from unime import load_model


@pytest.mark.parametrize("family", FAMILIES)
def test_a_large_twin_embeds_what_a_checkpoint_does(family: str, tmp_path: Path):
    model, processor = load_model(str(large_twin(family, tmp_path)), dtype="float32")
    assert 60e6 < sum(weight.numel() for weight in model.parameters()) < 100e6
    picture = Image.new("RGB", (96, 128), "red")
    vectors = model.encode(["a cat", "a pizza on a tile", picture], processor)
    cosines = vectors @ vectors.T
    assert np.abs(cosines - np.eye(3)).max() < 0.9  # random weights keep them apart


def test_a_twin_of_no_known_family_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="there is no twin of 'clip': choose from llava-onevision, qwen2-vl"):
        large_twin("clip", tmp_path)
