"""hit@1 and mean reciprocal rank over a whole evaluation set, from the embeddings that its batches leave."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .right_answers import distinct_items, first_occurrence, merge_columns, right_answers


TIE = 1e-6  # as in `unime.eval.metrics`
QUERIES_AT_ONCE = 256


class EvaluatedBatch(NamedTuple):
    """The items of a batch and how its rows refer to them; see [`ContrastiveCollator`].

    Args:
        embeddings (`Tensor` of shape `(items, dimensions)`): Unit vectors.
        identity (`Tensor` of shape `(items,)`): Hash of each item.
        content (`Tensor` of shape `(items,)`): Hash of each item without its instruction.
        candidate (`Tensor` of shape `(candidates,)`): Item index of each candidate.
        label (`Tensor` of shape `(candidates,)`): Hash of each candidate's task and label; -1 means none.
        query, positive, task (`Tensor` of shape `(pairs,)`): Item index of the query, candidate index of the positive,
            and hash of the task of each pair.
    """

    embeddings: Tensor
    identity: Tensor
    content: Tensor
    candidate: Tensor
    label: Tensor
    query: Tensor
    positive: Tensor
    task: Tensor


def join(batches: Sequence[EvaluatedBatch]) -> EvaluatedBatch:
    """Return the batches as one; an item of several batches stays several items with equal hashes."""
    first_item = first_candidate = 0
    shifted = []
    for batch in batches:
        shifted.append(
            batch._replace(
                candidate=batch.candidate + first_item,
                query=batch.query + first_item,
                positive=batch.positive + first_candidate,
            )
        )
        first_item += len(batch.embeddings)
        first_candidate += len(batch.candidate)
    return EvaluatedBatch(*map(torch.cat, zip(*shifted, strict=True)))


def retrieval_metrics(batches: Sequence[EvaluatedBatch]) -> dict[str, float]:
    """Rank all candidates of an evaluation set for each of its queries, as `unime eval --benchmark rows` does.

    Right answers are the positives of all rows with the query's content and task, and candidates with the content, or
    the task and label, of one of them. The query's own content is no candidate of it. A tie counts as wrong.

    Args:
        batches (`Sequence[EvaluatedBatch]`): The batches of the set.

    Returns:
        `dict[str, float]`: `hit@1` and `mrr`, the mean reciprocal rank of the best right answer, over the distinct
            queries.
    """
    joined = join(batches)
    item = first_occurrence(joined.identity)
    candidate, query = item[joined.candidate], item[joined.query]
    distinct_candidate, column = distinct_items(candidate, joined.identity)
    embeddings = joined.embeddings[distinct_candidate]
    _, group = _unique_pairs(joined.content[query], joined.task)
    ranks = []
    # Rows with one query content and task stay together: their positives are right answers to each other's query.
    for pairs in torch.argsort(group, stable=True).tensor_split(_group_starts(group)):
        # One query in two tasks is two queries.
        (queries, _), pair = _unique_pairs(query[pairs], group[pairs])
        first = torch.full_like(queries, len(pairs)).scatter_reduce(0, pair, torch.arange(len(pairs)), "amin")
        right = right_answers(
            joined.content[query[pairs]],
            joined.task[pairs],
            joined.positive[pairs],
            joined.content[candidate],
            joined.label,
        )
        right = merge_columns(right[first], column, len(embeddings))
        is_own = joined.content[distinct_candidate] == joined.content[queries][:, None]
        scores = joined.embeddings[queries] @ embeddings.T
        best = scores.masked_fill(~right | is_own, -torch.inf).amax(dim=1, keepdim=True)
        ranks.append((~right & (scores >= best - TIE)).sum(dim=1))
    rank = torch.cat(ranks).double()
    return {"hit@1": (rank == 0).double().mean().item(), "mrr": (1 / (rank + 1)).mean().item()}


def _unique_pairs(first: Tensor, second: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
    """Return the distinct pairs of two columns, as columns, and the index of each pair among them."""
    distinct, index = torch.unique(torch.stack([first, second], dim=1), dim=0, return_inverse=True)
    return distinct.unbind(1), index


def _group_starts(group: Tensor) -> Tensor:
    """Return where to split pairs that are sorted by group: between groups, into about `QUERIES_AT_ONCE` pairs."""
    ends = torch.bincount(group).cumsum(0)
    chunk = ends // QUERIES_AT_ONCE
    return ends[:-1][chunk[1:] > chunk[:-1]]
