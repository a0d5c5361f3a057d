"""Search results as the cards of a page: each has a title, and identical images share one."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from ..data.html_pages import data_url
from ..image_formats import HEIF_SUFFIXES, IMAGE_SUFFIXES
from .index import Hit
from .schema import THUMBNAIL_SIDE, thumbnail


TITLE_KEYS = ("caption", "title", "name")  # of metadata


@dataclass(frozen=True)
class Card:
    """A result, and others with the same image and text.

    Args:
        hits (`list[Hit]`): The results, best first.
        image (`str`, *optional*): Data URL of the image, `''` if it can no longer be read, `None` if there is none.
    """

    hits: list[Hit] = field(repr=False)
    image: str | None = field(repr=False)

    @property
    def hit(self) -> Hit:
        """Return the best result."""
        return self.hits[0]

    @property
    def caption(self) -> str | None:
        """Return the text of the entry, or what its metadata calls it unless that is its id."""
        named = (self.hit.metadata.get(key) for key in TITLE_KEYS)
        titles = (name for name in named if isinstance(name, str) and name not in ("", self.hit.id))
        return self.hit.text or next(titles, None)

    @property
    def metadata(self) -> dict[str, Any]:
        """Return the metadata of the entry without a title that is the caption."""
        shown = self.hit.metadata.items()
        return {key: value for key, value in shown if key not in TITLE_KEYS or value != self.caption}

    @property
    def name(self) -> str:
        """Return the id; that of an image file without its folders and suffix."""
        path = PurePath(self.hit.id)
        return path.stem if path.suffix.lower() in IMAGE_SUFFIXES | HEIF_SUFFIXES else self.hit.id


def fold_hits(hits: Sequence[Hit], max_side: int = THUMBNAIL_SIDE) -> list[Card]:
    """Return a card for each result, in their order; results with the same image and text share one.

    Args:
        hits (`Sequence[Hit]`): Results, best first.
        max_side (`int`, *optional*, defaults to 320): Longer side of images in pixels. Images are identical if these
            copies are.
    """
    cards: list[Card] = []
    card_of: dict[tuple[str | None, str | None], Card] = {}
    for hit in hits:
        image = None if hit.image is None else image_source(hit.image, max_side)
        content = image, hit.text
        if image and content in card_of:
            card_of[content].hits.append(hit)
            continue
        card_of[content] = card = Card([hit], image)
        cards.append(card)
    return cards


def image_source(image: str | bytes, max_side: int) -> str:
    """Return a small WebP copy of an image, as hits have it unless it is a file; '' if it cannot be read."""
    try:
        return data_url(image if isinstance(image, bytes) else thumbnail(image, max_side))
    except (ValueError, OSError):  # the file was deleted or damaged after it was indexed
        return ""
