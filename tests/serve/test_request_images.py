"""Strangers' images: every good format is read alike, and everything else is one sentence."""

import base64
import struct
import zlib
from collections.abc import Callable
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from unime.serve.request_images import decode_image, open_image, read_data_url


def read(url: str) -> Image.Image:
    return decode_image(open_image(read_data_url(url, "item 3"), "item 3"), "item 3")


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True})])
def test_a_lossless_image_arrives_pixel_by_pixel(image: Image.Image, data_url: Callable[..., str], kind, options):
    np.testing.assert_array_equal(read(data_url(image, kind, **options)), image)


def test_a_photograph_is_turned_the_way_its_camera_says(data_url: Callable[..., str]):
    lying = Image.new("RGB", (64, 32), "red")
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    assert read(data_url(lying, "JPEG", exif=exif)).size == (32, 64)


def test_palettes_and_transparency_become_rgb(image: Image.Image, data_url: Callable[..., str]):
    for other in (image.convert("P"), image.convert("RGBA"), image.convert("L")):
        assert read(data_url(other)).mode == "RGB"


def encoded(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def cut(image: Image.Image) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()[:-40]


def test_what_is_no_image_is_one_sentence(image: Image.Image):
    postscript = BytesIO()
    image.save(postscript, "EPS")  # Pillow would start Ghostscript for it
    for url, reason in [
        ("https://example.org/cat.png", "must be a data URL"),
        ("data:text/html;base64,AAAA", "must be a data URL"),
        ("data:image/png,cat", "must be a data URL"),
        ("data:image/png;base64,???", "is not valid base64"),
        ("data:image/png;base64,AAA", "is not valid base64"),
        ("data:image/png;base64,", "cannot be read"),
        (encoded(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), "cannot be read"),
        (encoded(postscript.getvalue()), "cannot be read"),
        (encoded(cut(image)), "is damaged"),
    ]:
        with pytest.raises(ValueError, match=f"^item 3: .*{reason}.*") as caught:
            read(url)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_a_bomb_is_refused_by_its_head():
    head = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)  # 400 megapixels of RGB
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000)))
    with pytest.raises(ValueError, match="item 3: the image is far too large"):
        open_image(bomb, "item 3")
