"""Images of clients: accepted formats give the same pixels, everything else is refused in one sentence."""

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
def test_a_lossless_image_keeps_every_pixel(image: Image.Image, data_url: Callable[..., str], kind, options):
    np.testing.assert_array_equal(read(data_url(image, kind, **options)), image)


@pytest.mark.parametrize(
    ("head", "line_break"),
    [
        ("data:image/png;base64,", "\n"),  # `base64 FILE`, Android
        ("data:image/png;base64,", "\r\n"),  # MIME
        ("DATA:image/png;charset=utf-8;base64,", ""),
        ("data:image/png;name=cat.png;charset=utf-8;base64,", ""),
    ],
)
def test_data_urls_may_have_parameters_and_line_breaks(
    image: Image.Image, data_url: Callable[..., str], head: str, line_break: str
):
    _, _, encoded = data_url(image).partition(",")
    lines = [encoded[start : start + 76] + line_break for start in range(0, len(encoded), 76)]
    np.testing.assert_array_equal(read(head + "".join(lines)), image)


def test_exif_rotation_is_applied(data_url: Callable[..., str]):
    landscape = Image.new("RGB", (64, 32), "red")
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    assert read(data_url(landscape, "JPEG", exif=exif)).size == (32, 64)


def test_palettes_and_transparency_become_rgb(image: Image.Image, data_url: Callable[..., str]):
    for variant in (image.convert("P"), image.convert("RGBA"), image.convert("L")):
        assert read(data_url(variant)).mode == "RGB"


def as_url(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def truncated(image: Image.Image) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()[:-40]


def test_invalid_images_are_refused_in_one_sentence(image: Image.Image):
    postscript = BytesIO()
    image.save(postscript, "EPS")  # Pillow would start Ghostscript for it
    for url, reason in [
        ("https://example.org/cat.png", "must be a data URL"),
        ("data:text/html;base64,AAAA", "must be a data URL"),
        ("data:image/png,cat", "must be a data URL"),
        ("data:image/png;base64;charset=utf-8,AAAA", "must be a data URL"),
        ("data:image/png;base64,???", "is not valid base64"),
        ("data:image/png;base64,AAA", "is not valid base64"),
        ("data:image/png;base64,", "cannot be read"),
        (as_url(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), "cannot be read"),
        (as_url(postscript.getvalue()), "cannot be read"),
        (as_url(truncated(image)), "is damaged"),
    ]:
        with pytest.raises(ValueError, match=f"^item 3: .*{reason}.*") as caught:
            read(url)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_a_decompression_bomb_is_refused_by_its_header():
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)  # 400 megapixels of RGB
    bomb = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(bytes(1000)))
    with pytest.raises(ValueError, match="item 3: the image is far too large"):
        open_image(bomb, "item 3")
