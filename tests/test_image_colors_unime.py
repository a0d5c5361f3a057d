"""Images are shown in sRGB: color profiles, PNG gamma, and 16-bit values that use fewer bits."""

import io
import struct
from itertools import product

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from unime.image_colors_unime import to_srgb
from unime.processing_unime import to_rgb


def number(value: float) -> bytes:
    """Return a fixed-point number of a profile."""
    return struct.pack(">i", round(value * 65536))


def profile(space: bytes, connection: bytes, parts: dict[bytes, bytes]) -> bytes:
    """Return an ICC profile of a color space with the given tags."""
    parts = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", 2) + b"x" + bytes(79),
        b"cprt": b"text" + bytes(8),
    } | parts
    parts[b"wtpt"] = b"XYZ " + bytes(4) + number(0.9642) + number(1) + number(0.8249)
    offset, table, data = 132 + 12 * len(parts), b"", b""
    for key, part in parts.items():
        part += bytes(-len(part) % 4)
        table += key + struct.pack(">II", offset + len(data), len(part))
        data += part
    header = struct.pack(">I4sI4s4s4s", offset + len(data), b"none", 0x02400000, b"mntr", space, connection)
    header += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + number(0.9642) + number(1)
    return (header + number(0.8249)).ljust(128, b"\0") + struct.pack(">I", len(parts)) + table + data


def curve(gamma: float) -> bytes:
    """Return a tone curve."""
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))


def display_p3() -> bytes:
    """Return the profile of recent phones, with a gamma of 2.2."""
    primaries = {
        b"rXYZ": (0.5151, 0.2412, -0.0011),
        b"gXYZ": (0.2920, 0.6922, 0.0419),
        b"bXYZ": (0.1571, 0.0666, 0.7841),
    }
    colorants = {key: b"XYZ " + bytes(4) + b"".join(map(number, xyz)) for key, xyz in primaries.items()}
    return profile(b"RGB ", b"XYZ ", colorants | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve(2.2)))


def grey(gamma: float) -> bytes:
    """Return the profile of grey values with a gamma."""
    return profile(b"GRAY", b"XYZ ", {b"kTRC": curve(gamma)})


def dark_inks() -> bytes:
    """Return a CMYK profile whose colored inks are grey of L* 50, and whose black ink is black."""
    lightness = [0 if k else 50 if c or m or y else 100 for c, m, y, k in product((0, 1), repeat=4)]
    corners = b"".join(bytes([round(value * 2.55), 128, 128]) for value in lightness)
    identity = number(1) + number(0) * 3 + number(1) + number(0) * 3 + number(1)
    table = (
        b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + identity + bytes(range(256)) * 4 + corners + bytes(range(256)) * 3
    )
    return profile(b"CMYK", b"Lab ", {b"A2B0": table})


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
