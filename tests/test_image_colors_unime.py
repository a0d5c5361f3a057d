"""Images are shown in sRGB: color profiles, PNG gamma, and 16-bit values that use fewer bits."""

import io
import struct

import numpy as np
import pytest
from icc_profiles import dark_inks, display_p3, grey
from PIL import Image, ImageCms, PngImagePlugin

from unime.image_colors_unime import to_srgb
from unime.processing_unime import to_rgb


def saved(image: Image.Image, image_format: str, **options) -> Image.Image:
    """Return the opened file of an image."""
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return Image.open(io.BytesIO(file.getvalue()))


@pytest.fixture
def colors() -> Image.Image:
    """Return an image of many colors inside sRGB."""
    y, x = np.mgrid[0:48, 0:64]
    return Image.fromarray(np.stack([255 * x / 64, 255 * y / 48, 128 + 100 * np.sin(x / 9)], -1).astype(np.uint8))


def difference(one: Image.Image, other: Image.Image) -> float:
    """Return the mean difference of the values of two images."""
    return float(np.abs(np.asarray(one, np.int16) - np.asarray(other, np.int16)).mean())


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_a_wide_gamut_image_has_the_colors_that_a_viewer_shows(colors: Image.Image, image_format: str) -> None:
    srgb, p3 = ImageCms.createProfile("sRGB"), display_p3()
    same_colors = ImageCms.profileToProfile(colors, srgb, ImageCms.ImageCmsProfile(io.BytesIO(p3)))
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(image_format, {})
    opened = saved(same_colors, image_format, icc_profile=p3, **options)
    assert difference(opened.convert("RGB"), colors) > 5
    assert difference(to_rgb(opened), colors) < 1.5
    assert difference(to_rgb(to_rgb(opened)), to_rgb(opened)) == 0


def test_a_transparent_wide_gamut_image_keeps_its_transparency(colors: Image.Image) -> None:
    colors.putalpha(Image.linear_gradient("L").resize(colors.size))
    p3 = display_p3()
    opened = saved(colors, "PNG", icc_profile=p3)
    shown = to_srgb(opened)
    assert shown.mode == "RGBA" and difference(shown.getchannel("A"), colors.getchannel("A")) == 0
    opaque = to_srgb(saved(colors.convert("RGB"), "PNG", icc_profile=p3))
    assert difference(shown.convert("RGB"), opaque) < 0.1


@pytest.mark.parametrize("mode", ["L", "LA"])
def test_grey_images_follow_their_profile(mode: str) -> None:
    opened = saved(Image.new("L", (8, 8), 128).convert(mode), "PNG", icc_profile=grey(1.0))
    # Half of the light: 255 * (1.055 * 0.502 ** (1 / 2.4) - 0.055) = 188
    np.testing.assert_allclose(np.asarray(to_rgb(opened))[0, 0], [188] * 3, atol=1)


def test_palettes_follow_their_profile() -> None:
    opened = saved(Image.new("RGB", (8, 8), (0, 200, 0)).quantize(4), "PNG", icc_profile=display_p3())
    red, green, _ = np.asarray(to_rgb(opened))[0, 0].tolist()
    assert green > 203 and red == 0  # P3's green is more saturated than any of sRGB


def test_inks_follow_their_profile() -> None:
    image = Image.new("CMYK", (3, 1))
    image.putdata([(0, 0, 0, 0), (255, 0, 0, 0), (0, 0, 0, 255)])
    opened = saved(image, "TIFF", icc_profile=dark_inks())
    white, cyan, black = np.asarray(to_rgb(opened))[0].tolist()
    assert min(white) > 250 and max(black) < 5
    np.testing.assert_allclose(cyan, 119, atol=2)  # L* 50
    assert np.asarray(to_rgb(saved(image, "TIFF")))[0].tolist()[1] == [0, 255, 255]  # without a profile


@pytest.mark.parametrize("damaged", [b"no profile", display_p3()[:150], grey(1.0), dark_inks()])
def test_a_profile_that_does_not_fit_is_ignored(colors: Image.Image, damaged: bytes) -> None:
    opened = saved(colors, "PNG", icc_profile=damaged)
    assert difference(to_rgb(opened), colors) == 0


def test_an_srgb_image_is_returned_as_it_is(colors: Image.Image) -> None:
    colors.info["icc_profile"] = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert to_rgb(colors) is colors
    colors.info = {"gamma": 0.45455}
    assert to_rgb(colors) is colors


def test_the_gamma_of_a_png_is_applied_unless_it_is_srgb() -> None:
    info = PngImagePlugin.PngInfo()
    info.add(b"gAMA", struct.pack(">I", 100000))  # linear light
    opened = saved(Image.new("RGB", (4, 4), (128, 0, 255)), "PNG", pnginfo=info)
    assert np.asarray(to_rgb(opened))[0, 0].tolist() == [186, 0, 255]  # 255 * 0.502 ** (1 / 2.2)
    assert np.asarray(to_rgb(to_rgb(opened)))[0, 0].tolist() == [186, 0, 255]
    info.add(b"sRGB", b"\0")
    opened = saved(Image.new("RGB", (4, 4), (128, 0, 255)), "PNG", pnginfo=info)
    assert np.asarray(to_rgb(opened))[0, 0].tolist() == [128, 0, 255]


@pytest.mark.parametrize(("bits", "brightest"), [(8, 255), (10, 255), (12, 255), (14, 255), (15, 127), (16, 255)])
def test_16_bit_images_are_scaled_by_the_bits_that_they_use(bits: int, brightest: int) -> None:
    values = np.linspace(0, 2**bits - 1, 64).astype(np.uint16).reshape(8, 8)
    shown = np.asarray(to_rgb(saved(Image.fromarray(values), "TIFF")))
    assert shown.min() == 0 and shown.max() == brightest


def test_a_black_16_bit_image_stays_black() -> None:
    assert np.asarray(to_rgb(Image.fromarray(np.zeros((4, 4), np.uint16)))).max() == 0
