"""The HTML of search results and heat maps."""

from collections.abc import Sequence
from functools import cache

import numpy as np
from jinja2 import Environment
from PIL import Image

from ..data.html_pages import data_url, templates
from ..index.hit_cards import Card, fold_hits
from ..index.schema import thumbnail
from .collection import SearchResult


def render_hits(result: SearchResult) -> str:
    """Return search results as cards; identical images share one."""
    cards = fold_hits(result.hits)
    return _templates().get_template("hits.html.jinja").render(result=result, cards=cards, title=None, ranks=None)


def render_comparison(results: Sequence[SearchResult], titles: Sequence[str]) -> list[str]:
    """Return the results of two models as cards that show their place in the results of the other model.

    Args:
        results (`Sequence[SearchResult]`): Results of both models.
        titles (`Sequence[str]`): Headings.
    """
    template = _templates().get_template("hits.html.jinja")
    both = [fold_hits(result.hits) for result in results]
    return [
        template.render(result=result, cards=cards, title=title, ranks=places_in(others, cards))
        for result, cards, others, title in zip(results, both, both[::-1], titles, strict=True)
    ]


def places_in(others: Sequence[Card], cards: Sequence[Card]) -> list[int | None]:
    """Return the place (from 1) of each card's results among another model's cards; `None` if they are not there."""
    places = {hit.id: place for place, card in enumerate(others, start=1) for hit in card.hits}
    return [min((places[hit.id] for hit in card.hits if hit.id in places), default=None) for card in cards]


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


def _source(image: Image.Image) -> str:
    """Return a small copy of an image as a data URL, so that the page requests no files of this machine."""
    return data_url(thumbnail(image))


def _cosine(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


@cache
def _templates() -> Environment:
    environment = templates("unime.page")
    environment.filters |= {"source": _source, "cosine": _cosine}
    return environment
