"""Rerank the best candidates of each query before a task is scored."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..processing_unime import Item, frames_as_images


BELOW_ALL = 2.0  # subtracted from cosines: no cosine stays above a reranker's score, which is at least 0


@dataclass(frozen=True)
class Reranking:
    """A reranker and how far down it goes.

    Args:
        scores (`Callable`): Takes a query and candidates, and returns a score from 0 to 1 for each, such as
            [`UniMEReranker.scores`].
        depth (`int`, *optional*, defaults to 10): Candidates of each query that are reranked, those with the largest
            cosines.

    Raises:
        ValueError: `depth` is less than 2.
    """

    scores: Callable[[Item, Sequence[Item]], Sequence[float]]
    depth: int = 10

    def __post_init__(self):
        if self.depth < 2:
            raise ValueError(f"depth must be at least 2 to change an order, got {self.depth}")

    def rerank(
        self,
        similarities: np.ndarray,
        queries: Sequence[Item],
        candidates: Sequence[Item],
        pools: Sequence[Sequence[int]] | None,
    ) -> np.ndarray:
        """Return similarities in which the best candidates have the reranker's scores, and all others are lower.

        Args:
            similarities (`np.ndarray` of shape `(queries, candidates)`): Cosines.
            queries (`Sequence[Item]`): The queries.
            candidates (`Sequence[Item]`): The candidates.
            pools (`Sequence[Sequence[int]]`, *optional*): As in [`RetrievalTask`].
        """
        reranked = similarities - BELOW_ALL
        for row in range(len(similarities)):
            pool = np.arange(len(candidates)) if pools is None else np.asarray(pools[row])
            best = pool[np.argsort(-similarities[row, pool], kind="stable")[: self.depth]]
            # The reranker's prompt has no place for a video.
            query, *shown = map(frames_as_images, [queries[row], *(candidates[int(index)] for index in best)])
            reranked[row, best] = self.scores(query, shown)
        return reranked

    def compare_captions(
        self, images: Sequence[Item], captions: Sequence[Item], negatives: Sequence[Item]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the scores of the true and of the false captions of images, each of shape `(images,)`."""
        rows = zip(images, captions, negatives, strict=True)
        scores = np.array([self.scores(image, [true, false]) for image, true, false in rows])
        return scores[:, 0], scores[:, 1]


__all__ = ["Reranking"]
