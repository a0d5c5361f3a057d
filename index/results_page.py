"""Search results as one self-contained page: the query, then the images, texts and scores of the results."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..data.html_pages import templates
from .hit_cards import fold_hits, image_source
from .index import Hit, Index


MAX_IMAGE_SIDE = 480  # pixels; sharp on high-density screens


@dataclass(frozen=True)
class QueryDescription:
    """A query as the page shows it.

    Args:
        text (`str`, *optional*): Text of the query.
        image (`str`, *optional*): Path of the query's image.
        instruction (`str`, *optional*): Instruction of the query.
        where (`str`, *optional*): Condition that the results pass.
    """

    text: str | None = None
    image: str | None = None
    instruction: str | None = None
    where: str | None = None


def render_results_page(index: Index, query: QueryDescription, hits: Sequence[Hit]) -> str:
    """Return the page as HTML that needs no other file and no network.

    Args:
        index ([`Index`]): The searched index.
        query ([`QueryDescription`]): The query.
        hits (`Sequence[Hit]`): Results, best first. If an image no longer exists, the page shows its path.
    """
    return (
        templates("unime.index")
        .get_template("results_page.html.jinja")
        .render(
            query=query,
            query_image=None if query.image is None else image_source(query.image, MAX_IMAGE_SIDE),
            cards=fold_hits(hits, MAX_IMAGE_SIDE),
            any_images=any(hit.image is not None for hit in hits),
            name=index.folder.resolve().name,
            record=index.record,
            num_entries=len(index),
        )
    )
