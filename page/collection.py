"""The collections that the page searches: an index with the model that produced its embeddings."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import numpy as np
from PIL import Image
from transformers import PreTrainedModel, ProcessorMixin

from ..checkpoint import fingerprint, load_model, named_prompts
from ..corpus.corpus import open_corpus
from ..index.index import RECORD_FILE, Hit, Index
from ..index.index_diff import ProgressCallback
from ..index.queries import embed_queries, query_item, query_items, shown_instruction
from ..index.rerank_hits import rerank_hits
from ..processing_unime import Item
from ..reranker import UniMEReranker


@dataclass(frozen=True)
class SearchResult:
    """The instruction that was used for a query, and the results, best first."""

    instruction: str
    hits: list[Hit]


@dataclass(frozen=True)
class Collection:
    """An index with its model.

    Args:
        title (`str`): Name of the model.
        index ([`Index`]): Index to search.
        model ([`UniMEModel`]): Model of the index.
        processor (`ProcessorMixin`): Processor of the model.
    """

    title: str
    index: Index
    model: PreTrainedModel
    processor: ProcessorMixin

    def search(
        self,
        text: str | None,
        image: Image.Image | None,
        instruction: str | None = None,
        k: int = 12,
        reranker: UniMEReranker | None = None,
    ) -> SearchResult:
        """Search by text, by image, or by an image and a text that describes a change to it.

        Args:
            text (`str`, *optional*): Text of the query. At least one of text and image is required.
            image (`PIL.Image`, *optional*): Image of the query.
            instruction (`str`, *optional*): Instruction of the query. Defaults to the instruction that UniME was
                trained with for this kind of query.
            k (`int`, defaults to 12): Maximum number of results.
            reranker ([`UniMEReranker`], *optional*): Orders these results.

        Raises:
            ValueError: Both `text` and `image` are missing, or the image of a result can no longer be read by the
                reranker.
        """
        prompts = named_prompts(self.model.config)
        items = query_items(self.index.kinds, text, image, instruction, prompts)
        hits = self.index.search(embed_queries(self.model, self.processor, items), k)
        if reranker is not None and hits:
            hits = rerank_hits(reranker.scores, query_item(text, image, instruction=""), hits, k)
        return SearchResult(shown_instruction(items) or "", hits)

    def similarities(self, texts: Sequence[str], images: Sequence[Image.Image]) -> np.ndarray:
        """Return the cosines of text queries with images: `(len(texts), len(images))`, float32."""
        prompts = named_prompts(self.model.config)
        items: list[Item] = [{"text": text, "instruction": prompts["text_to_image"]} for text in texts]
        items += [{"image": image, "instruction": prompts["image"]} for image in images]
        vectors = self.model.encode(items, self.processor)
        return vectors[: len(texts)] @ vectors[len(texts) :].T


def open_index(folder: str | Path, report: ProgressCallback | None = None) -> Collection:
    """Open an index made by `unime index`, and load the model that it was made with.

    Raises:
        ValueError: The folder is not an index, or its model has changed since.
    """
    index = Index.open(folder)
    checkpoint = index.record.checkpoint
    index.check_model(checkpoint)
    settings = index.record.image_size, index.record.preset
    return Collection(Path(checkpoint).name, index, *load_model(checkpoint, *settings, dtype="float32"))


def open_openmoji(checkpoint: str | Path, report: ProgressCallback | None = None) -> Collection:
    """Open the OpenMoji images embedded by a model. The embeddings are cached for the next start.

    Args:
        checkpoint (`str` or `Path`): Folder or Hub id of a UniME checkpoint or of a backbone.
        report (`Callable`, *optional*): Called with the stage, the number of images done, and the total number.
    """
    from ..openmoji.catalogue import cache_folder, sources_version

    checkpoint = str(checkpoint)
    model, processor = load_model(checkpoint, dtype="float32")
    folder = cache_folder() / f"page-{fingerprint(checkpoint)}-{sources_version()}"
    index = Index.open(folder) if (folder / RECORD_FILE).is_file() else Index.create(folder, checkpoint)
    corpus = open_corpus("openmoji")
    if len(index) < len(corpus):  # the folder's name covers everything that could change an entry
        index.sync(corpus, model, processor, report)
    return Collection(Path(checkpoint).name, index, model, processor)


class LazyCollection:
    """A collection that is opened at its first use, because loading a second model takes time and memory."""

    def __init__(self, open: Callable[[str, ProgressCallback | None], Collection], source: str):
        self.open, self.source = open, source
        self.collection: Collection | None = None
        self.lock = Lock()  # the page serves several visitors at a time

    def __call__(self, report: ProgressCallback | None = None) -> Collection:
        with self.lock:
            if self.collection is None:
                self.collection = self.open(self.source, report)
            return self.collection
