"""The image processor of Phi-3-Vision gives the authors' pixels, bit for bit, and counts their tokens."""

import hashlib

import numpy as np
import pytest
import torch
from phi3_v_parity import draw, read
from PIL import Image

from unime.image_processing_phi3_v import Phi3VImageProcessor


PIXELS = read("pixels.json")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * name.endswith("crops16")) for name in PIXELS]
)
def test_pixels_are_those_of_the_authors_bit_for_bit(name: str) -> None:
    image, crops = name.split("/crops")
    output = Phi3VImageProcessor(num_crops=int(crops))(draw(image), return_tensors="pt")
    assert hashlib.sha256(output["pixel_values"].numpy().tobytes()).hexdigest() == PIXELS[name]["sha256"]
    assert output["image_sizes"].tolist() == [PIXELS[name]["image_sizes"]]
    assert output["pixel_values"].shape[:2] == (1, int(crops) + 1)


def test_sizes_and_token_counts_are_those_of_the_authors() -> None:
    reference = read("grids.json")
    processor = Phi3VImageProcessor()

    def counted(width: int, height: int, num_crops: int) -> list[int] | None:
        try:
            rows, columns = processor.grid(width, height, num_crops)
        except ValueError:
            return None
        return [336 * rows, 336 * columns, processor.count_tokens(rows, columns)]

    for width, height, *expected in reference["rows"]:
        assert [counted(width, height, crops) for crops in reference["num_crops"]] == expected, (width, height)


def test_an_image_that_is_too_thin_is_refused() -> None:
    with pytest.raises(ValueError, match="longer side may be at most 1344 times as long as its shorter side"):
        Phi3VImageProcessor()(Image.new("RGB", (1, 1345)))


def test_images_of_other_kinds_give_the_same_pixels() -> None:
    image = draw("50x30")
    array = np.array(image)
    processor = Phi3VImageProcessor(num_crops=1)
    expected = processor([image], return_tensors="pt")["pixel_values"]
    for other in (array, torch.from_numpy(array).permute(2, 0, 1), image.convert("RGBA")):
        assert torch.equal(processor([other], return_tensors="pt")["pixel_values"], expected)


def test_images_of_several_shapes_form_one_batch() -> None:
    processor = Phi3VImageProcessor(num_crops=2)
    output = processor([draw("40x20"), draw("20x20")], return_tensors="pt")
    assert output["pixel_values"].shape == (2, 3, 3, 336, 336) and output["image_sizes"].tolist() == [
        [336, 672],
        [336, 336],
    ]
    assert output["pixel_values"][0].flatten(1).any(dim=1).all() and not output["pixel_values"][1, 2].any()


def test_settings_survive_saving(tmp_path) -> None:
    Phi3VImageProcessor(num_crops=9, size={"height": 32, "width": 32}, num_img_tokens=4).save_pretrained(tmp_path)
    loaded = Phi3VImageProcessor.from_pretrained(tmp_path)
    assert (loaded.num_crops, loaded.size["height"], loaded.num_img_tokens) == (9, 32, 4)
    assert loaded(draw("20x20"), return_tensors="pt")["pixel_values"].shape == (1, 10, 3, 32, 32)
