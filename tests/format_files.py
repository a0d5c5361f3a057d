"""Files of every image format, with the image that each shows, or the reason why it is not opened.

The images are constructed, not read with the code under test.
"""

import base64
import struct
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from icc_profiles import display_p3
from odd_images import BLUE, RED, WHITE, encode, exif_with, two_colours
from PIL import Image, ImageCms, PngImagePlugin
from PIL.Image import Transpose
from PIL.TiffImagePlugin import ImageFileDirectory_v2


@dataclass(frozen=True)
class FormatFile:
    """A file, and the image that it shows or the reason why it is not opened.

    Args:
        suffix (`str`): Suffix of its name.
        content (`bytes`): The file.
        shown (`Image` or `str`): The image, or the reason.
        note (`str`): What of the file is shown, for the table.
    """

    suffix: str
    content: bytes
    shown: Image.Image | str
    note: str = ""


def photo() -> Image.Image:
    """Return a smooth image of many colors, which survives lossy compression."""
    y, x = np.mgrid[0:72, 0:96]
    return Image.fromarray(np.stack([255 * x / 96, 255 * y / 72, 128 + 100 * np.sin(x / 9)], -1).astype(np.uint8))


PHOTO = photo()
GREY = PHOTO.convert("L")
OTHER = PHOTO.transpose(Transpose.ROTATE_180)
BLACK = Image.new("RGB", PHOTO.size)
FAX = Image.new("1", PHOTO.size, 1)
FAX.paste(0, (10, 10, 60, 40))
TRANSPARENT = PHOTO.copy()
TRANSPARENT.putalpha(Image.linear_gradient("L").resize(PHOTO.size))
ON_WHITE = Image.alpha_composite(Image.new("RGBA", PHOTO.size, "white"), TRANSPARENT).convert("RGB")
JPEG = encode(PHOTO, "JPEG", quality=95)
# How a camera stores an image that an EXIF orientation makes upright.
STORED = {
    1: None,
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_90,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_270,
}
# An image of 40 x 24 pixels, encoded by libheif: red on the left, blue on the right.
HEIC = base64.b64decode(
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAXxtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAACJpbG9jAAAA"
    "AERAAAEAAQAAAAABoAABAAAAAAAAAJ8AAAAjaWluZgAAAAAAAQAAABVpbmZlAgAAAAABAABodmMxAAAAAA5waXRtAAAAAAABAAAA/GlwcnAAAADc"
    "aXBjbwAAAHVodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQApQgEBA3AAAAMAkAAAAwAA"
    "AwAeoCCBBZbqrprm4CGgwIAAAAyAAAADAIRiAAEABkQBwXPBiQAAABNjb2xybmNseAABAA0ABoAAAAAUaXNwZQAAAAAAAABAAAAAQAAAAChjbGFw"
    "AAAAKAAAAAEAAAAYAAAAAf///+gAAAAC////2AAAAAIAAAAQcGl4aQAAAAADCAgIAAAAGGlwbWEAAAAAAAAAAQABBYECAwWEAAAAp21kYXQAAACb"
    "KAGvBjIeMOPwiSDwv7UE///2VP9l/JdG2O5Pz/vXiT+2zPlk1beO+f739ph4yvlVMCnHSdIC1F+0fNzvVsPgC/ST4Qr3sqV7qogU0GVRhPpka+/y"
    "oJJwf+k7u6mHfAhggYJc9joCfzMmB5pHXmx+ss26JnV6D9vDGe+8j6gYgE6UVZCYB8/Z5pP4pX8Id/IhsAiQg9rR0Cqqfh4="
)
HEIC_SHOWN = two_colours(RED, BLUE)


def oriented(orientation: int) -> bytes:
    """Return a JPEG of the photo, stored as a camera in another position stores it."""
    transpose = STORED[orientation]
    stored = PHOTO if transpose is None else PHOTO.transpose(transpose)
    return encode(stored, "JPEG", quality=95, exif=exif_with(orientation))


def display_p3_pixels() -> Image.Image:
    """Return the numbers in Display P3 for the colors of the photo."""
    profiles = ImageCms.createProfile("sRGB"), ImageCms.ImageCmsProfile(BytesIO(display_p3()))
    return ImageCms.profileToProfile(PHOTO, *profiles)


def with_gain_map() -> bytes:
    """Return an Ultra HDR JPEG, in which a second image says how much brighter the first is on other screens."""
    xmp = b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta hdrgm:Version="1.0"/>'
    file = encode(PHOTO, "MPO", save_all=True, append_images=[BLACK], quality=95)
    return file[:2] + b"\xff\xe1" + struct.pack(">H", len(xmp) + 2) + xmp + file[2:]


def sixteen_bit_rgb() -> bytes:
    """Return a PNG with 16 bits per channel."""
    import zlib

    values = np.asarray(PHOTO).astype(">u2") * 257
    rows = b"".join(b"\0" + row.tobytes() for row in values)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *PHOTO.size, 16, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def gamma_png() -> bytes:
    """Return a PNG with linear values and the chunk that says so."""
    linear = PHOTO.point([round(255 * (value / 255) ** 2.2) for value in range(256)] * 3)
    chunks = PngImagePlugin.PngInfo()
    chunks.add(b"gAMA", struct.pack(">I", 100_000))
    return encode(linear, pnginfo=chunks)


def raw_thumbnail() -> bytes:
    """Return what Pillow sees of a DNG: a small TIFF that says that it is a copy of reduced resolution."""
    tags = ImageFileDirectory_v2()
    tags[254] = 1
    return encode(PHOTO, "TIFF", tiffinfo=tags)


def palette_with_alpha() -> bytes:
    """Return a PNG with a palette, one color of which is half transparent."""
    image = Image.new("P", (40, 24), 1)
    image.paste(0, (0, 0, 20, 24))
    image.putpalette([*RED, *BLUE])
    return encode(image, transparency=bytes([128, 255]))


def lab() -> bytes:
    """Return a TIFF in the color space LAB."""
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    return encode(to_lab.apply(PHOTO), "TIFF")


def animated(image_format: str, **options) -> bytes:
    """Return an animation that begins with the photo."""
    # Copies, because Pillow keeps the settings of an encoder in the images that it saves.
    first, *others = (image.copy() for image in (PHOTO, OTHER, BLACK))
    return encode(first, image_format, save_all=True, append_images=others, **options)


GREY_16 = np.asarray(GREY).astype(np.uint16)
FIRST, NONE = "the first frame", "the file is rejected"
FILES = {
    "JPEG": FormatFile(".jpg", JPEG, PHOTO),
    "JPEG, progressive": FormatFile(".jpeg", encode(PHOTO, "JPEG", quality=95, progressive=True), PHOTO),
    "JPEG, grey": FormatFile(".jpe", encode(GREY, "JPEG", quality=95), GREY.convert("RGB")),
    "JPEG, CMYK with Adobe marker": FormatFile(
        ".jpg", encode(PHOTO.convert("CMYK"), "JPEG", quality=95), PHOTO, "the colors; without a profile, simple ones"
    ),
    **{
        f"JPEG, EXIF orientation {orientation}": FormatFile(".jpg", oriented(orientation), PHOTO, "the upright image")
        for orientation in STORED
    },
    "JPEG, Display P3": FormatFile(
        ".jpg", encode(display_p3_pixels(), "JPEG", quality=95, icc_profile=display_p3()), PHOTO, "the colors in sRGB"
    ),
    "JPEG with a gain map": FormatFile(".jpg", with_gain_map(), PHOTO, "the image for ordinary screens"),
    "MPO": FormatFile(".mpo", animated("MPO", quality=95), PHOTO, "the first image"),
    "JPEG, truncated": FormatFile(".jpg", JPEG[: len(JPEG) // 2], "truncated", NONE),
    "PNG": FormatFile(".png", encode(PHOTO), PHOTO),
    "PNG, 16 bits, color": FormatFile(".png", sixteen_bit_rgb(), PHOTO, "the upper 8 bits"),
    "PNG, 16 bits, grey": FormatFile(
        ".png", encode(Image.fromarray(GREY_16 * 257)), GREY.convert("RGB"), "the upper 8 bits"
    ),
    "PNG, transparent": FormatFile(".png", encode(TRANSPARENT), ON_WHITE, "on white"),
    "PNG, palette with alpha": FormatFile(
        ".png", palette_with_alpha(), two_colours((255, 127, 127), BLUE), "on white"
    ),
    "PNG with iCCP (Display P3)": FormatFile(
        ".png", encode(display_p3_pixels(), icc_profile=display_p3()), PHOTO, "the colors in sRGB"
    ),
    "PNG with gAMA": FormatFile(".png", gamma_png(), PHOTO, "the colors in sRGB"),
    "PNG, animated": FormatFile(".apng", animated("PNG"), PHOTO, FIRST),
    "WebP": FormatFile(".webp", encode(PHOTO, "WEBP", quality=95), PHOTO),
    "WebP, animated": FormatFile(".webp", animated("WEBP", lossless=True), PHOTO, FIRST),
    "GIF": FormatFile(".gif", encode(two_colours(RED, BLUE), "GIF"), two_colours(RED, BLUE)),
    "GIF, animated": FormatFile(
        ".gif",
        encode(two_colours(RED, BLUE), "GIF", save_all=True, append_images=[two_colours(BLUE, WHITE)]),
        two_colours(RED, BLUE),
        FIRST,
    ),
    "TIFF": FormatFile(".tif", encode(PHOTO, "TIFF", compression="tiff_lzw"), PHOTO),
    "TIFF of several pages": FormatFile(".tiff", animated("TIFF"), PHOTO, "the first page"),
    "TIFF, 16 bits": FormatFile(
        ".tif", encode(Image.fromarray(GREY_16 * 257), "TIFF"), GREY.convert("RGB"), "the upper 8 bits"
    ),
    "TIFF, 12 of 16 bits": FormatFile(
        ".tif", encode(Image.fromarray(GREY_16 * 16), "TIFF"), GREY.convert("RGB"), "the upper 8 of the bits in use"
    ),
    "TIFF, fax (group 4)": FormatFile(".tif", encode(FAX, "TIFF", compression="group4"), FAX.convert("RGB")),
    "TIFF, LAB": FormatFile(".tif", lab(), PHOTO, "the colors in sRGB"),
    "TIFF, floating point": FormatFile(
        ".tif", encode(Image.new("F", (40, 24)), "TIFF"), "its mode F has no RGB meaning", NONE
    ),
    "AVIF": FormatFile(".avif", encode(PHOTO, "AVIF", quality=95), PHOTO),
    "JPEG 2000": FormatFile(".jp2", encode(PHOTO, "JPEG2000"), PHOTO),
    "JPEG 2000, codestream": FormatFile(".j2k", encode(PHOTO, "JPEG2000", no_jp2=True), PHOTO),
    "BMP": FormatFile(".bmp", encode(PHOTO, "BMP"), PHOTO),
    "PPM, PGM, PBM": FormatFile(".pgm", encode(GREY, "PPM"), GREY.convert("RGB")),
    "ICO": FormatFile(
        ".ico",
        encode(PHOTO.resize((64, 64)), "ICO", sizes=[(16, 16), (64, 64)]),
        PHOTO.resize((64, 64)),
        "the largest image",
    ),
    "no suffix": FormatFile("", encode(PHOTO), PHOTO, "in a folder, if the content is an image"),
    "HEIC with the extra `heic`": FormatFile(".heic", HEIC, HEIC_SHOWN),
    "HEIC without": FormatFile(".heic", HEIC, "it is HEIC: install the extra `heic`, or save it as JPEG", NONE),
    "SVG": FormatFile(
        ".svg", b"<?xml version='1.0'?><svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG drawing", NONE
    ),
    "PDF": FormatFile(".pdf", b"%PDF-1.7\n", "it is a PDF: export its pages as images", NONE),
    "PSD": FormatFile(".psd", b"8BPS" + bytes(100), "it is a Photoshop file: export it as PNG or JPEG", NONE),
    "RAW (DNG, NEF, ARW, CR2, ...)": FormatFile(".dng", raw_thumbnail(), "it is a RAW file of a camera", NONE),
    "EPS": FormatFile(".eps", encode(PHOTO, "EPS"), "it is PostScript: export it as PNG", NONE),
}
