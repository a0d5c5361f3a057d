"""Rerank the results of a search with an image-text model."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ..data.image_files import read_image
from ..processing_unime import Item
from .index import Hit


def hit_item(hit: Hit) -> dict[str, Any]:
    """Return a result as an item; its image is read from its file, or is the small copy of an index without files.

    Args:
        hit ([`Hit`]): The result.

    Raises:
        ValueError: The image cannot be read any longer.
    """
    item: dict[str, Any] = {} if hit.text is None else {"text": hit.text}
    if hit.image is not None:
        stored = hit.image if isinstance(hit.image, str) else {"bytes": hit.image, "path": None}
        item["image"] = read_image(stored, f"the entry {hit.id}")
    return item


def rerank_hits(
    scores: Callable[[Item, Sequence[Item]], Sequence[float]], query: Item, hits: Sequence[Hit], k: int
) -> list[Hit]:
    """Return the best results by a reranker's scores; those of equal score keep their order.

    Args:
        scores (`Callable`): Takes a query and candidates and returns their scores, such as [`UniMEReranker.scores`].
        query (`Item`): The query. It needs no instruction: the reranker has its own question.
        hits (`Sequence[Hit]`): The results of [`Index.search`].
        k (`int`): How many to return.
    """
    scored = zip(scores(query, [hit_item(hit) for hit in hits]), hits, strict=True)
    ranked = sorted(scored, key=lambda pair: -pair[0])[:k]
    return [replace(hit, rerank_score=float(score)) for score, hit in ranked]


__all__ = ["hit_item", "rerank_hits"]
