"""What the page searches: an index and the model that made its vectors."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np
from PIL import Image
from transformers import PreTrainedModel, ProcessorMixin

from ..checkpoint import PROMPTS, fingerprint, load_model
from ..corpus.corpus import open_corpus
from ..index.index import RECORD_FILE, Hit, Index
from ..index.index_diff import Report
from ..index.queries import query_item
from ..openmoji.catalogue import cache_folder, sources_version


@dataclass(frozen=True)
class SearchResult:
    """An answer: the instruction that was given with the query, and what was found, the nearest first."""

    instruction: str
    hits: list[Hit]


@dataclass(frozen=True)
class Collection:
    """An index with its model.

    Args:
        title (`str`): Name of the model.
        store ([`Index`]): The index.
        model ([`UniMEModel`]), processor (`ProcessorMixin`): What made its vectors.
    """

    title: str
    store: Index
    model: PreTrainedModel
    processor: ProcessorMixin

    def search(
        self, text: str | None, image: Image.Image | None, instruction: str | None = None, k: int = 12
    ) -> SearchResult:
        """Find the `k` entries nearest to a text, to an image, or to an image with a change that the text asks for.

        Args:
            text (`str`, *optional*), image (`PIL.Image`, *optional*): The query; one of them at least.
            instruction (`str`, *optional*, defaults to the one that UniME was trained with for such a query):
                What is asked of the query.
            k (`int`): How many to find.

        Raises:
            ValueError: There is neither text nor image.
        """
        item = query_item(text, image, self.store.holds_images, instruction)
        hits = self.store.search(self.model.encode(item, self.processor), k)
        return SearchResult(item.get("instruction", ""), hits)

    def similarities(self, texts: Sequence[str], images: Sequence[Image.Image]) -> np.ndarray:
        """Cosines of texts, as queries, with images: `(len(texts), len(images))`, float32."""
        items = [{"text": text, "instruction": PROMPTS["text_to_image"]} for text in texts]
        items += [{"image": image, "instruction": PROMPTS["image"]} for image in images]
        vectors = self.model.encode(items, self.processor)
        return vectors[: len(texts)] @ vectors[len(texts) :].T


def open_index(folder: str | Path, report: Report | None = None) -> Collection:
    """Open an index that `unime index` made, with the model that made it.

    Raises:
        ValueError: The folder holds no index, or its model has changed since.
    """
    store = Index.open(folder)
    checkpoint = store.record.checkpoint
    store.check_model(checkpoint)
    return Collection(_name(checkpoint), store, *load_model(checkpoint, dtype="float32"))


def open_openmoji(checkpoint: str | Path, report: Report | None = None) -> Collection:
    """Open the images of the OpenMoji world, embedded by a model; they are kept, so the next start is quick.

    Args:
        checkpoint (`str` or `Path`): Folder or Hub id of a UniME checkpoint or of a backbone.
        report (`Callable`, *optional*): Told what is done, how many images are done and how many there are.
    """
    checkpoint = str(checkpoint)
    model, processor = load_model(checkpoint, dtype="float32")
    folder = cache_folder() / f"page-{fingerprint(checkpoint)}-{sources_version()}"
    store = Index.open(folder) if (folder / RECORD_FILE).is_file() else Index.create(folder, checkpoint)
    world = open_corpus("openmoji")
    if len(store) < len(world):  # whatever could change an entry is in the folder's name
        store.sync(world, model, processor, report)
    return Collection(_name(checkpoint), store, model, processor)


class LazyCollection:
    """A collection that is opened when it is first asked for: to load a second model takes time and memory."""

    def __init__(self, open: Callable[[str, Report | None], Collection], source: str):
        self.open, self.source = open, source
        self.collection: Collection | None = None
        self.lock = Lock()  # the page answers several people at a time

    def __call__(self, report: Report | None = None) -> Collection:
        with self.lock:
            if self.collection is None:
                self.collection = self.open(self.source, report)
            return self.collection


def _name(checkpoint: str) -> str:
    return Path(checkpoint).name
