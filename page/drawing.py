"""What the page draws: found entries, and a heat map; as HTML, in which everything from outside is escaped."""

from collections.abc import Sequence
from functools import cache
from io import BytesIO

import numpy as np
from jinja2 import Environment
from PIL import Image

from ..data.image_files import read_image
from ..index.html_pages import data_url, templates
from ..index.index import Hit
from .collection import SearchResult


SHOWN = 320  # pixels of the longer side


def render_hits(found: SearchResult, title: str | None = None, others: Sequence[Hit] | None = None) -> str:
    """Cards of what was found.

    Args:
        found ([`SearchResult`]): The answer.
        title (`str`, *optional*): Heading.
        others (`Sequence[Hit]`, *optional*): What another model found: each card then says where the other has it.
    """
    places = None if others is None else places_elsewhere(found.hits, others)
    return _templates().get_template("hits.html.jinja").render(found=found, title=title, places=places)


def places_elsewhere(hits: Sequence[Hit], others: Sequence[Hit]) -> list[int | None]:
    """For each hit its place (from 1) among what another model found; None where the other did not find it."""
    places = {hit.id: place for place, hit in enumerate(others, start=1)}
    return [places.get(hit.id) for hit in hits]


def render_heat_map(texts: Sequence[str], images: Sequence[Image.Image], similarities: np.ndarray) -> str:
    """A table of texts by images, coloured between its least and its greatest similarity.

    Args:
        texts (`Sequence[str]`), images (`Sequence[PIL.Image]`): Rows and columns.
        similarities (`np.ndarray` of shape `(len(texts), len(images))`): Cosines.
    """
    least, greatest = float(similarities.min()), float(similarities.max())
    heats = (similarities - least) / max(greatest - least, 1e-6)
    return (
        _templates()
        .get_template("heat_map.html.jinja")
        .render(
            texts=texts,
            images=images,
            similarities=similarities.tolist(),
            heats=heats.tolist(),
            best=similarities.argmax(axis=1).tolist(),
            range=(least, greatest),
        )
    )


def _source(image: str | bytes | Image.Image) -> str:
    """A small copy of an image as an address that holds it: the page asks for no files of this machine."""
    if not isinstance(image, bytes):
        try:
            small = image.copy() if isinstance(image, Image.Image) else read_image(image, "")
        except ValueError:  # the file has gone, or has been damaged, since it was indexed
            return ""
        small.thumbnail((SHOWN, SHOWN))
        data = BytesIO()
        small.save(data, "WEBP", quality=85)
        image = data.getvalue()
    return data_url(image)


def _cosine(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


@cache
def _templates() -> Environment:
    environment = templates("unime.page")
    environment.filters |= {"source": _source, "cosine": _cosine}
    return environment
