"""What a search has found as one self-contained page: the query on top, below it images, texts and scores."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .html_pages import data_url, templates
from .index import Hit, Index
from .schema import thumbnail


SHOWN = 480  # pixels of the longer side of an embedded image: sharp on screens of twice the usual resolution


@dataclass(frozen=True)
class QueryDescription:
    """A query as the page shows it.

    Args:
        text (`str`, *optional*): Its text.
        image (`str`, *optional*): Path of its image.
        instruction (`str`, *optional*): What was asked of it.
        where (`str`, *optional*): The condition that hits pass.
    """

    text: str | None = None
    image: str | None = None
    instruction: str | None = None
    where: str | None = None


def render_results_page(store: Index, asked: QueryDescription, hits: Sequence[Hit]) -> str:
    """Write the page: HTML that needs no other file and no network.

    Args:
        store ([`Index`]): What was searched.
        asked ([`QueryDescription`]): The query.
        hits (`Sequence[Hit]`): What was found, the nearest first. An image that is not there any more is named.
    """
    return (
        templates("unime.index")
        .get_template("results_page.html.jinja")
        .render(
            asked=asked,
            picture=asked.image and _shown(asked.image),
            hits=[(hit, _shown(hit.image)) for hit in hits],
            pictures=any(hit.image is not None for hit in hits),
            name=store.folder.resolve().name,
            record=store.record,
            entries=len(store),
        )
    )


def _shown(image: str | bytes | None) -> dict[str, Any] | None:
    """An image's data URL, or where it should be."""
    if image is None:
        return None
    try:
        small = thumbnail(image, SHOWN)
    except (ValueError, OSError):
        return {"url": None, "path": image if isinstance(image, str) else "in the index"}
    return {"url": data_url(small), "path": image}
