"""Images of a request: data URLs, checked before they are decoded."""

import base64
import re
from io import BytesIO

from PIL import Image

from ..processing_unime import to_rgb


# OpenAI's list. Pillow opens far more, some by starting other programs (EPS), which strangers should not reach.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,", re.IGNORECASE | re.ASCII)


def read_data_url(url: str, where: str) -> bytes:
    """Return the encoded image that a data URL holds.

    Raises:
        ValueError: It is no data URL of an image, or not base64; it names the item.
    """
    head = DATA_URL.match(url)
    if head is None:
        raise ValueError(
            f"{where}: an image must be a data URL such as data:image/png;base64,..., got {url[:20]!r}..."
        )
    try:
        return base64.b64decode(url[head.end() :], validate=True)
    except ValueError:
        raise ValueError(f"{where}: the image's data URL is not valid base64") from None


def open_image(encoded: bytes, where: str) -> Image.Image:
    """Read an image's head, thus its size; its pixels are not decoded yet.

    Raises:
        ValueError: It is no image of the formats taken, or one that Pillow calls a decompression bomb.
    """
    try:
        return Image.open(BytesIO(encoded), formats=FORMATS)
    except Image.DecompressionBombError:
        raise ValueError(f"{where}: the image is far too large: make it smaller") from None
    except Exception:  # a stranger's file may fail in any way
        raise ValueError(f"{where}: the image cannot be read: send {', '.join(FORMATS)}") from None


def decode_image(opened: Image.Image, where: str) -> Image.Image:
    """Decode as [`to_rgb`] does: upright, on white where it is transparent; of an animation the first frame.

    Raises:
        ValueError: The file is damaged.
    """
    try:
        return to_rgb(opened)
    except Exception:
        raise ValueError(f"{where}: the image is damaged or cut short: send it again") from None
