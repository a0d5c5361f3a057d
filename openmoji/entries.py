"""The OpenMoji drawings as a corpus to embed, index and search."""

from io import BytesIO

from PIL import Image

from ..corpus.corpus import Corpus
from ..corpus.entry import Entry
from .catalogue import Emoji, catalogue, drawings


def openmoji_corpus() -> Corpus:
    """Return all drawings as a corpus; the id of an entry is its name, its image a PNG on white."""

    def entry(emoji: Emoji, index: int) -> Entry:
        drawing = Image.fromarray(drawings()[index])
        white = Image.new("RGBA", drawing.size, "white")
        encoded = BytesIO()
        Image.alpha_composite(white, drawing).convert("RGB").save(encoded, "png")
        metadata = {"name": emoji.name, "category": emoji.category, "subcategory": emoji.subcategory}
        return Entry(emoji.name, None, encoded.getvalue(), metadata | {"tone": emoji.tone, "code": emoji.code})

    return Corpus(catalogue(), entry)
