"""Images of every kind that strangers send: files that show something, what they show, and files that show nothing.

Each is small. What a good file shows is written down pixel by pixel, not read by what is tested.
"""

import struct
import zlib
from io import BytesIO
from typing import Any

import numpy as np
from PIL import ExifTags, Image, PngImagePlugin
from PIL.Image import Transpose


RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def decoded(file: bytes) -> Image.Image:
    """What a file of plain RGB shows, where its compression loses something."""
    return Image.open(BytesIO(file)).copy()


def png(width: int, height: int, pixels: bytes) -> bytes:
    """A PNG of RGB with 8 bits a channel, whose head says what it is told to."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


def turned(orientation: Any) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif


def palette(kind: str = "PNG", **options: Any) -> bytes:
    image = Image.new("P", (40, 24), 1)
    image.paste(0, (0, 0, 20, 24))
    image.putpalette([*BLUE, *RED])
    return encoded(image, kind, **options)


def halves(left: tuple[int, ...], right: tuple[int, ...], mode: str = "RGB") -> Image.Image:
    """Twenty pixels of one colour beside twenty of another."""
    image = Image.new(mode, (40, 24), right)
    image.paste(left, (0, 0, 20, 24))
    return image


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8))
JPEG = encoded(NOISE, "JPEG")
RED_BLUE = halves(RED, BLUE)
HALF_RED = (255, 127, 127)  # red of which 128 in 255 cover the white
LARGE_TEXT = PngImagePlugin.PngInfo()
LARGE_TEXT.add_text("comment", "a" * 2**21, zip=True)

# name -> (the file, what it shows)
GOOD: dict[str, tuple[bytes, Image.Image]] = {
    "1x1": (encoded(Image.new("RGB", (1, 1), RED)), Image.new("RGB", (1, 1), RED)),
    "20,000x10": (encoded(Image.new("RGB", (20_000, 10), RED)), Image.new("RGB", (20_000, 10), RED)),
    "grey": (encoded(Image.new("L", (40, 24), 7)), Image.new("RGB", (40, 24), (7, 7, 7))),
    "one bit": (encoded(Image.new("1", (40, 24), 1)), Image.new("RGB", (40, 24), WHITE)),
    "16 bit": (
        encoded(Image.fromarray(np.full((24, 40), 40_000, np.uint16))),
        Image.new("RGB", (40, 24), (156, 156, 156)),  # 40,000 // 256
    ),
    "cmyk jpeg": (
        encoded(Image.new("CMYK", (40, 24), (0, 255, 255, 0)), "JPEG", quality=100),
        Image.new("RGB", (40, 24), RED),
    ),
    "alpha": (encoded(halves((*RED, 128), (*BLUE, 0), "RGBA")), halves(HALF_RED, WHITE)),
    "alpha webp": (encoded(halves((*RED, 255), (*BLUE, 0), "RGBA"), "WEBP", lossless=True), halves(RED, WHITE)),
    "grey with alpha": (encoded(Image.new("LA", (40, 24), (0, 128))), Image.new("RGB", (40, 24), (127, 127, 127))),
    "palette": (palette(), halves(BLUE, RED)),
    "palette with alpha": (palette(transparency=bytes([0, 128])), halves(WHITE, HALF_RED)),
    "transparent gif": (palette("GIF", transparency=0), halves(WHITE, RED)),
    "transparent colour": (encoded(RED_BLUE, transparency=BLUE), halves(RED, WHITE)),
    "animated gif": (
        encoded(Image.new("RGB", (40, 24), RED), "GIF", save_all=True, append_images=[Image.new("RGB", (40, 24))]),
        Image.new("RGB", (40, 24), RED),
    ),
    "animated png": (encoded(RED_BLUE, save_all=True, append_images=[NOISE.resize((40, 24))]), RED_BLUE),
    "exif rotation": (
        encoded(NOISE, "JPEG", exif=turned(6)),
        decoded(JPEG).transpose(Transpose.ROTATE_270),  # what was its left side is its top
    ),
    "exif upside down png": (encoded(RED_BLUE, exif=turned(3)), halves(BLUE, RED)),
    "exif mirrored webp": (encoded(RED_BLUE, "WEBP", lossless=True, exif=turned(2)), halves(BLUE, RED)),
    "exif with no such orientation": (encoded(RED_BLUE, exif=turned(99)), RED_BLUE),
    "damaged exif": (encoded(NOISE, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01"), decoded(JPEG)),
    "waste behind the end": (encoded(RED_BLUE) + bytes(99), RED_BLUE),
}

# name -> (the file, what is said of it where it is opened by Pillow)
BAD: dict[str, tuple[bytes, str]] = {
    "zero bytes": (b"", "is empty: replace it"),
    "truncated jpeg": (JPEG[: len(JPEG) // 2], "image file is truncated"),
    "jpeg of a head alone": (JPEG[:100], "Truncated File Read"),
    "truncated png": (encoded(NOISE)[:1000], "image file is truncated"),
    "truncated gif": (encoded(NOISE.quantize(), "GIF")[:1500], "image file is truncated"),
    "truncated webp": (encoded(NOISE, "WEBP")[:200], "could not create decoder object"),
    "false size": (png(640, 480, bytes(24 * (3 * 40 + 1))), "image file is truncated"),
    "size of nothing": (png(0, 5, b""), "its format is unknown"),
    "decompression bomb": (png(50_000, 50_000, bytes(1000)), "decompression bomb"),
    "bomb in a comment": (encoded(RED_BLUE, pnginfo=LARGE_TEXT), "Decompressed data too large"),
    "web page": (b"<!doctype html><title>404 Not Found</title>", "its format is unknown"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "its format is unknown"),
    "postscript": (encoded(RED_BLUE, "EPS"), "its format is unknown"),  # Pillow would start Ghostscript for it
    "photoshop": (b"8BPS" + bytes(100), "its format is unknown"),
    "pixels that are not numbers": (
        encoded(Image.new("F", (40, 24), float("nan")), "TIFF"),
        "its pixels are numbers of mode F: save it with 8 or 16 bits a pixel",
    ),
    "32-bit integers": (
        encoded(Image.new("I", (40, 24), 70_000), "TIFF"),
        "are numbers of mode I: save it",
    ),
}
