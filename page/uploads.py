"""Uploaded images: opened upright as RGB, or rejected with one sentence."""

from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from ..image_formats import open_image_bytes
from ..processing_unime import to_rgb


MAX_IMAGE_PIXELS = 50_000_000  # 150 MB when decoded


def open_upload(path: str) -> Image.Image:
    """Open an uploaded image.

    Raises:
        gr.Error: The image cannot be read or is too large. The message names the file, escaped for HTML.
    """
    name = escape(Path(path).name)
    limit = f"upload an image of at most {MAX_IMAGE_PIXELS // 10**6} million pixels"
    try:
        with open_image_bytes(Path(path).read_bytes()) as image:
            width, height = image.size
            if width * height <= MAX_IMAGE_PIXELS:
                return to_rgb(image)
    except Image.DecompressionBombError:
        raise _error(f"{name} is too large: {limit}") from None
    except (OSError, ValueError, SyntaxError) as error:  # Pillow's decoders raise all of these
        # An error of the file system names the file on the server's disk, which visitors must not learn.
        reason = "" if isinstance(error, OSError) and error.filename else f" ({escape(str(error))})"
        raise _error(f"{name} cannot be read as an image{reason}: upload a PNG, JPEG, WebP or GIF file") from None
    raise _error(f"{name} is {width} × {height} pixels: {limit}")


def _error(message: str) -> gr.Error:
    return gr.Error(message, print_exception=False)


def image_field(**options: Any) -> gr.Image:
    """Return an image field; uploaded files go through [`open_upload`]."""
    field = gr.Image(type="filepath", **options)
    # By default Gradio opens the file itself, and shows only "Error" for a file that it cannot read.
    field.preprocess = lambda payload: None if payload is None or payload.path is None else open_upload(payload.path)
    return field
