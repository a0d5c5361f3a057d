"""Images that visitors give: opened upright as RGB, or refused in one sentence."""

from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from ..data.image_files import IMAGE_FORMATS, read_image


MOST_PIXELS = 50_000_000  # opened, 150 MB


def open_upload(path: str) -> Image.Image:
    """Open an image that was uploaded.

    Raises:
        gr.Error: It cannot be read, or is too large; the message, which the page shows as HTML, names the file.
    """
    name = escape(Path(path).name)
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as unread:
            width, height = unread.size
        if width * height <= MOST_PIXELS:
            return read_image(path, name)
    except Image.DecompressionBombError:
        raise _refused(
            f"{name} is too large: give an image of at most {MOST_PIXELS // 10**6} million pixels"
        ) from None
    except (OSError, ValueError, SyntaxError):  # Pillow's decoders raise all of these
        raise _refused(f"{name} cannot be read as an image: give a PNG, JPEG, WebP or GIF file") from None
    raise _refused(
        f"{name} is {width} × {height} pixels: give an image of at most {MOST_PIXELS // 10**6} million pixels"
    )


def _refused(sentence: str) -> gr.Error:
    return gr.Error(sentence, print_exception=False)


def image_field(**options: Any) -> gr.Image:
    """A field for an image; what a visitor gives goes through [`open_upload`]."""
    field = gr.Image(type="filepath", **options)
    # Gradio opens the file itself, and tells visitors of one that it cannot read no more than that there was an error.
    field.preprocess = lambda payload: None if payload is None or payload.path is None else open_upload(payload.path)
    return field
