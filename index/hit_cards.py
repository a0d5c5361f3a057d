"""Search results as the cards of a page: each has a title, and identical results share one."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePath

from ..data.html_pages import data_url
from ..image_formats import HEIF_SUFFIXES, IMAGE_SUFFIXES
from .index import Hit
from .schema import THUMBNAIL_SIDE, thumbnail


TITLE_KEYS = ("caption", "title", "name")  # of metadata


@dataclass(frozen=True)
class Card:
    """Identical results, best first.

    Args:
        hits (`list[Hit]`): The results; they have the same image and text.
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
        """Return the text of the entry, or what its metadata calls it."""
        named = (self.hit.metadata.get(key) for key in TITLE_KEYS)
        return self.hit.text or next((name for name in named if isinstance(name, str) and name), None)

    @property
    def name(self) -> str:
        """Return the id; that of an image file without its folders and suffix."""
        path = PurePath(self.hit.id)
        return path.stem if path.suffix.lower() in IMAGE_SUFFIXES | HEIF_SUFFIXES else self.hit.id


def fold_hits(hits: Sequence[Hit], max_side: int = THUMBNAIL_SIDE) -> list[Card]:
    """Return a card for each distinct image and text, in the order of the results.

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
        if content in card_of and any(content):  # an unreadable image without a text is equal to no other
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
