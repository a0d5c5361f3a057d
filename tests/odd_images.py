"""Image files of every format: readable ones with the expected pixels, and unreadable ones with the expected error.

All are small. The expected pixels are constructed, not read with the code under test.
"""

import struct
import zlib
from io import BytesIO
from typing import Any

import numpy as np
from PIL import ExifTags, Image, PngImagePlugin
from PIL.Image import Transpose


RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def encode(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def decode(file: bytes) -> Image.Image:
    """Return the pixels of a plain RGB file with lossy compression."""
    return Image.open(BytesIO(file)).copy()


def png(width: int, height: int, pixels: bytes) -> bytes:
    """Return an RGB PNG with 8 bits per channel, whose header states the given size."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


def exif_with(orientation: Any) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif


def palette(format: str = "PNG", **options: Any) -> bytes:
    image = Image.new("P", (40, 24), 1)
    image.paste(0, (0, 0, 20, 24))
    image.putpalette([*BLUE, *RED])
    return encode(image, format, **options)


def two_colours(left: tuple[int, ...], right: tuple[int, ...], mode: str = "RGB") -> Image.Image:
    """Return an image with one colour on its left half and another on its right half."""
    image = Image.new(mode, (40, 24), right)
    image.paste(left, (0, 0, 20, 24))
    return image


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8))
JPEG = encode(NOISE, "JPEG")
RED_BLUE = two_colours(RED, BLUE)
HALF_RED = (255, 127, 127)  # red with an opacity of 128/255 on white
LARGE_TEXT = PngImagePlugin.PngInfo()
LARGE_TEXT.add_text("comment", "a" * 2**21, zip=True)

# name -> (file, expected image)
GOOD: dict[str, tuple[bytes, Image.Image]] = {
    "1x1": (encode(Image.new("RGB", (1, 1), RED)), Image.new("RGB", (1, 1), RED)),
    "20,000x10": (encode(Image.new("RGB", (20_000, 10), RED)), Image.new("RGB", (20_000, 10), RED)),
    "grey": (encode(Image.new("L", (40, 24), 7)), Image.new("RGB", (40, 24), (7, 7, 7))),
    "one bit": (encode(Image.new("1", (40, 24), 1)), Image.new("RGB", (40, 24), WHITE)),
    "16 bit": (
        encode(Image.fromarray(np.full((24, 40), 40_000, np.uint16))),
        Image.new("RGB", (40, 24), (156, 156, 156)),  # 40,000 // 256
    ),
    "cmyk jpeg": (
        encode(Image.new("CMYK", (40, 24), (0, 255, 255, 0)), "JPEG", quality=100),
        Image.new("RGB", (40, 24), RED),
    ),
    "alpha": (encode(two_colours((*RED, 128), (*BLUE, 0), "RGBA")), two_colours(HALF_RED, WHITE)),
    "alpha webp": (
        encode(two_colours((*RED, 255), (*BLUE, 0), "RGBA"), "WEBP", lossless=True),
        two_colours(RED, WHITE),
    ),
    "grey with alpha": (encode(Image.new("LA", (40, 24), (0, 128))), Image.new("RGB", (40, 24), (127, 127, 127))),
    "palette": (palette(), two_colours(BLUE, RED)),
    "palette with alpha": (palette(transparency=bytes([0, 128])), two_colours(WHITE, HALF_RED)),
    "transparent gif": (palette("GIF", transparency=0), two_colours(WHITE, RED)),
    "transparent colour": (encode(RED_BLUE, transparency=BLUE), two_colours(RED, WHITE)),
    "animated gif": (
        encode(Image.new("RGB", (40, 24), RED), "GIF", save_all=True, append_images=[Image.new("RGB", (40, 24))]),
        Image.new("RGB", (40, 24), RED),
    ),
    "animated png": (encode(RED_BLUE, save_all=True, append_images=[NOISE.resize((40, 24))]), RED_BLUE),
    "exif rotation": (
        encode(NOISE, "JPEG", exif=exif_with(6)),
        decode(JPEG).transpose(Transpose.ROTATE_270),  # its left side becomes its top
    ),
    "exif upside down png": (encode(RED_BLUE, exif=exif_with(3)), two_colours(BLUE, RED)),
    "exif mirrored webp": (encode(RED_BLUE, "WEBP", lossless=True, exif=exif_with(2)), two_colours(BLUE, RED)),
    "exif with no such orientation": (encode(RED_BLUE, exif=exif_with(99)), RED_BLUE),
    "damaged exif": (encode(NOISE, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01"), decode(JPEG)),
    "trailing garbage": (encode(RED_BLUE) + bytes(99), RED_BLUE),
}

# name -> (file, error message when Pillow opens it)
BAD: dict[str, tuple[bytes, str]] = {
    "zero bytes": (b"", "is empty: replace it"),
    "truncated jpeg": (JPEG[: len(JPEG) // 2], "image file is truncated"),
    "jpeg with only a header": (JPEG[:100], "Truncated File Read"),
    "truncated png": (encode(NOISE)[:1000], "image file is truncated"),
    "truncated gif": (encode(NOISE.quantize(), "GIF")[:1500], "image file is truncated"),
    "truncated webp": (encode(NOISE, "WEBP")[:200], "could not create decoder object"),
    "false size": (png(640, 480, bytes(24 * (3 * 40 + 1))), "image file is truncated"),
    "size of nothing": (png(0, 5, b""), "its format is unknown"),
    "decompression bomb": (png(50_000, 50_000, bytes(1000)), "decompression bomb"),
    "bomb in a comment": (encode(RED_BLUE, pnginfo=LARGE_TEXT), "Decompressed data too large"),
    "web page": (b"<!doctype html><title>404 Not Found</title>", "it is a web page, not an image: download"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "it is an SVG drawing: export it as PNG"),
    "postscript": (encode(RED_BLUE, "EPS"), "it is PostScript: export it"),  # Pillow would start Ghostscript for it
    "photoshop": (b"8BPS" + bytes(100), "it is a Photoshop file: export it"),
    "pixels that are not numbers": (
        encode(Image.new("F", (40, 24), float("nan")), "TIFF"),
        "its mode F has no RGB meaning: save it with 8 or 16 bits per channel",
    ),
    "32-bit integers": (
        encode(Image.new("I", (40, 24), 70_000), "TIFF"),
        "its mode I has no RGB meaning: save it",
    ),
}
