"""Uploaded images."""

from pathlib import Path

import gradio
import pytest
from PIL import Image

from unime.page.uploads import MAX_IMAGE_PIXELS, image_field, open_upload


def error_message(path: Path) -> str:
    with pytest.raises(gradio.Error) as error:
        open_upload(str(path))
    return error.value.message


def test_an_image_is_opened_upright_as_rgb(tmp_path: Path) -> None:
    image = Image.new("RGB", (4, 2), "red")
    image.getexif()[274] = 6  # rotated by 90 degrees
    image.save(tmp_path / "photo.jpg", exif=image.getexif())
    assert open_upload(str(tmp_path / "photo.jpg")).size == (2, 4)
    Image.new("L", (4, 2)).save(tmp_path / "grey.png")
    assert open_upload(str(tmp_path / "grey.png")).mode == "RGB"


def test_a_file_that_is_not_an_image_is_rejected_by_name(tmp_path: Path) -> None:
    (tmp_path / "notes.png").write_text("not an image")
    assert (
        error_message(tmp_path / "notes.png")
        == "notes.png cannot be read as an image (its format is unknown): upload a PNG, JPEG, WebP or GIF file"
    )


def test_a_damaged_image_is_rejected(tmp_path: Path) -> None:
    intact = tmp_path / "intact.png"
    Image.effect_noise((64, 64), 50).save(intact)
    (tmp_path / "half.png").write_bytes(intact.read_bytes()[:1000])
    assert "half.png cannot be read" in error_message(tmp_path / "half.png")


@pytest.mark.parametrize("side", [7_100, 14_000])  # above our limit, and above Pillow's limit
def test_a_huge_image_is_rejected_before_it_is_decoded(tmp_path: Path, side: int) -> None:
    assert side * side > MAX_IMAGE_PIXELS
    Image.new("1", (side, side)).save(tmp_path / "huge.png")
    assert "at most 50 million pixels" in error_message(tmp_path / "huge.png")


def test_a_file_name_is_escaped_in_the_message(tmp_path: Path) -> None:
    (tmp_path / "<b>.png").write_text("")
    assert error_message(tmp_path / "<b>.png").startswith("&lt;b&gt;.png cannot be read")


def test_an_empty_field_gives_no_image() -> None:
    assert image_field(label="Image").preprocess(None) is None
