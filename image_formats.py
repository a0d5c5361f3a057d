"""Image formats that the package opens, and the reason why a file of another format is not opened.

Pillow identifies a format by content and supports more, some by starting another program (EPS): untrusted files must
not reach those.
"""

from functools import cache
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile


IMAGE_FORMATS = ("AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")  # JPEG includes MPO
HEIF = "HEIF"  # with the extra `heic`
IMAGE_SUFFIXES = frozenset(
    {
        ".apng", ".avif", ".avifs", ".bmp", ".dib", ".gif", ".ico", ".j2c", ".j2k", ".jfif", ".jp2", ".jpc", ".jpe",
        ".jpeg", ".jpf", ".jpg", ".jpx", ".mpo", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp",
    }
)  # fmt: skip
HEIF_SUFFIXES = frozenset({".heic", ".heics", ".heif", ".heifs", ".hif"})
RAW_SUFFIXES = frozenset(
    {
        ".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".kdc", ".mef", ".mos", ".mrw", ".nef", ".nrw",
        ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f",
    }
)  # fmt: skip
# Suffixes of files that show an image and are not opened: in a corpus they are rejected, not overlooked.
UNREAD_SUFFIXES = RAW_SUFFIXES | {".ai", ".eps", ".jxl", ".pdf", ".psb", ".psd", ".svg", ".svgz"}

RAW = "a RAW file of a camera: export it as JPEG or TIFF"
# Reasons by the bytes that a file begins with.
BEGINNINGS = {
    b"%PDF-": "a PDF: export its pages as images",
    b"%!PS": "PostScript: export it as PNG",
    b"8BPS": "a Photoshop file: export it as PNG or JPEG",
    b"\xff\x0a": "JPEG XL: save it as JPEG or PNG",
    b"\x00\x00\x00\x0cJXL ": "JPEG XL: save it as JPEG or PNG",
    b"FUJIFILMCCD-RAW": RAW,
    b"IIRO": RAW,
    b"IIRS": RAW,
    b"MMOR": RAW,
    b"IIU\x00": RAW,
    b"FOVb": RAW,
    b"\x00MRM": RAW,
    b"\x1f\x8b": "compressed with gzip, as SVGZ is: save it as PNG or JPEG",
}
SVG = "an SVG drawing: export it as PNG"
FTYP_BRANDS = {b"crx ": RAW} | dict.fromkeys(
    (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"),
    "HEIC: install the extra `heic`, or save it as JPEG",
)
NEW_SUBFILE_TYPE, DNG_VERSION = 254, 50706  # tags of TIFF
REDUCED_RESOLUTION = 1


def open_image_bytes(encoded: bytes) -> Image.Image:
    """Read the header of an encoded image, which gives its size; the pixels are not decoded yet.

    Raises:
        ValueError: The format is not one of those that the package opens; the message names it if it is a common one.
            It continues a sentence that names the file.
        Exception: The file is damaged or a decompression bomb; Pillow's decoders raise errors of many types.
    """
    try:
        image = Image.open(BytesIO(encoded), formats=image_formats())
    except UnidentifiedImageError:
        # Pillow's own message contains the address of a buffer, which differs from run to run.
        raise ValueError(_describe(encoded)) from None
    if isinstance(image, TiffImageFile) and _is_raw(image, encoded):
        raise ValueError(f"it is {RAW}")  # what Pillow would open is its thumbnail
    return image


@cache
def image_formats() -> tuple[str, ...]:
    """Return the names of the formats as Pillow has them: [`IMAGE_FORMATS`], and HEIF with the extra `heic`."""
    if find_spec("pillow_heif") is None:
        return IMAGE_FORMATS
    from pillow_heif import register_heif_opener

    register_heif_opener(thumbnails=False)
    return (*IMAGE_FORMATS, HEIF)


def is_image(path: Path) -> bool:
    """Return whether a file is an image by its content, reading its header."""
    if not path.is_file():  # opening a pipe would block forever
        return False
    try:
        with Image.open(path, formats=image_formats()):
            return True
    except Exception:  # Pillow's decoders raise errors of many types for broken files
        return False


def _is_raw(image: TiffImageFile, encoded: bytes) -> bool:
    """Return whether a TIFF holds a RAW image behind the small one that it begins with (DNG, NEF, ARW, CR2, PEF)."""
    tags = image.tag_v2
    return tags.get(NEW_SUBFILE_TYPE) == REDUCED_RESOLUTION or DNG_VERSION in tags or encoded[8:10] == b"CR"


def _describe(encoded: bytes) -> str:
    for beginning, reason in BEGINNINGS.items():
        if encoded.startswith(beginning):
            return f"it is {reason}"
    if encoded[4:8] == b"ftyp" and encoded[8:12] in FTYP_BRANDS:
        return f"it is {FTYP_BRANDS[encoded[8:12]]}"
    head = encoded[:1024].lstrip(b"\xef\xbb\xbf \t\r\n")
    if head.startswith(b"<") and b"<svg" in head:
        return f"it is {SVG}"
    if head.lower().startswith((b"<!doctype html", b"<html")):
        return "it is a web page, not an image: download the image itself"
    return "its format is unknown"


__all__ = [
    "HEIF_SUFFIXES",
    "IMAGE_FORMATS",
    "IMAGE_SUFFIXES",
    "RAW_SUFFIXES",
    "UNREAD_SUFFIXES",
    "image_formats",
    "is_image",
    "open_image_bytes",
]
