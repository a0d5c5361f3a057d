"""The HTML of search results and heat maps."""

from collections.abc import Sequence
from functools import cache

import numpy as np
from jinja2 import Environment
from PIL import Image

from ..data.html_pages import data_url, templates
from ..index.index import Hit
from ..index.schema import thumbnail
from .collection import SearchResult


def render_hits(result: SearchResult, title: str | None = None, other_hits: Sequence[Hit] | None = None) -> str:
    """Return search results as cards.

    Args:
        result ([`SearchResult`]): Results to show.
        title (`str`, *optional*): Heading.
        other_hits (`Sequence[Hit]`, *optional*): Results of another model; each card then shows its rank there.
    """
    ranks = None if other_hits is None else ranks_in(other_hits, result.hits)
    return _templates().get_template("hits.html.jinja").render(result=result, title=title, ranks=ranks)


def ranks_in(other_hits: Sequence[Hit], hits: Sequence[Hit]) -> list[int | None]:
    """Return the rank (from 1) of each hit among another model's hits; `None` if it is not among them."""
    ranks = {hit.id: rank for rank, hit in enumerate(other_hits, start=1)}
    return [ranks.get(hit.id) for hit in hits]


def render_heat_map(texts: Sequence[str], images: Sequence[Image.Image], similarities: np.ndarray) -> str:
    """Return a table of texts by images, coloured from the lowest to the highest similarity.

    Args:
        texts (`Sequence[str]`): Rows.
        images (`Sequence[PIL.Image]`): Columns.
        similarities (`np.ndarray` of shape `(len(texts), len(images))`): Cosines.
    """
    lowest, highest = float(similarities.min()), float(similarities.max())
    heats = (similarities - lowest) / max(highest - lowest, 1e-6)
    return (
        _templates()
        .get_template("heat_map.html.jinja")
        .render(
            texts=texts,
            images=images,
            similarities=similarities.tolist(),
            heats=heats.tolist(),
            best=similarities.argmax(axis=1).tolist(),
            range=(lowest, highest),
        )
    )


def _source(image: str | bytes | Image.Image) -> str:
    """Return a small copy of an image as a data URL, so that the page requests no files of this machine."""
    try:
        return data_url(image if isinstance(image, bytes) else thumbnail(image))
    except ValueError:  # the file was deleted or damaged after it was indexed
        return ""


def _cosine(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


@cache
def _templates() -> Environment:
    environment = templates("unime.page")
    environment.filters |= {"source": _source, "cosine": _cosine}
    return environment
