"""Images of a request: data URLs, checked before they are decoded."""

import base64
import re

from PIL import Image

from ..image_formats import open_image_bytes
from ..processing_unime import to_rgb


# Parameters such as ";charset=utf-8" may stand before the encoding.
DATA_URL_HEAD = re.compile(r"data:image/[\w.+-]+(;[\w.+-]+=[\w.+-]*)*;base64,", re.IGNORECASE | re.ASCII)


def read_data_url(url: str, name: str) -> bytes:
    """Return the encoded image of a data URL; the base64 may be wrapped into lines, as MIME and `base64 FILE` do.

    Args:
        url (`str`): The data URL.
        name (`str`): Name of the item, for error messages.

    Raises:
        ValueError: The URL is not the data URL of an image, or is not valid base64.
    """
    head = DATA_URL_HEAD.match(url)
    if head is None:
        raise ValueError(f"{name}: an image must be a data URL such as data:image/png;base64,..., got {url[:20]!r}...")
    try:
        return base64.b64decode("".join(url[head.end() :].split()), validate=True)
    except ValueError:
        raise ValueError(f"{name}: the image's data URL is not valid base64") from None


def open_image(encoded: bytes, name: str) -> Image.Image:
    """Read the header of an image, which gives its size; the pixels are not decoded yet.

    Args:
        encoded (`bytes`): The encoded image.
        name (`str`): Name of the item, for error messages.

    Raises:
        ValueError: The format is not one of those that the package opens (see `image_formats.py`), the header is
            damaged, or Pillow considers the image a decompression bomb.
    """
    try:
        return open_image_bytes(encoded)
    except Image.DecompressionBombError:
        raise ValueError(f"{name}: the image is far too large: make it smaller") from None
    except ValueError as error:
        raise ValueError(f"{name}: the image cannot be read ({error}): send PNG or JPEG, for example") from None
    except Exception:  # an untrusted file may fail in any way
        raise ValueError(f"{name}: the image cannot be read (its header is damaged): send it again") from None


def decode_image(image: Image.Image, name: str) -> Image.Image:
    """Decode an image with [`to_rgb`]; of an animation, the first frame.

    Args:
        image (`Image.Image`): An image that [`open_image`] has opened.
        name (`str`): Name of the item, for error messages.

    Raises:
        ValueError: The file is damaged, or its mode has no RGB meaning.
    """
    try:
        return to_rgb(image)
    except ValueError as error:
        raise ValueError(f"{name}: the image cannot be read ({error})") from None
    except Exception:  # an untrusted file may fail in any way
        raise ValueError(f"{name}: the image is damaged or truncated: send it again") from None
