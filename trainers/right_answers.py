"""Right answers among the candidates of a batch, which are never negatives."""

import torch
from torch import Tensor


def right_answers(query_content: Tensor, task: Tensor, positive: Tensor, content: Tensor, label: Tensor) -> Tensor:
    """Find the candidates that are no wrong answer to the query of each row, as far as the batch tells.

    These are the positives of all rows with an equal query (the same content and task), every candidate with the
    content or the label of one of them, and every candidate with the query's own content: the image of an
    image-to-text row is the positive of the text-to-image row of the same pair.

    Args:
        query_content (`Tensor` of shape `(rows,)`, long): Hash of the content of each row's query.
        task (`Tensor` of shape `(rows,)`, long): Hash of each row's task.
        positive (`Tensor` of shape `(rows,)`, long): Index of each row's positive among the candidates.
        content (`Tensor` of shape `(candidates,)`, long): Hash of each candidate's content.
        label (`Tensor` of shape `(candidates,)`, long): Hash of each candidate's task and label; -1 means none.

    Returns:
        `Tensor`: True where a candidate is a right answer or the query itself, shape `(rows, candidates)`.
    """
    queries, query = torch.unique(torch.stack([query_content, task], dim=1), dim=0, return_inverse=True)
    contents, content_indices = torch.unique(torch.cat([content, query_content]), return_inverse=True)
    content, query_content = content_indices.split([len(content), len(query_content)])
    labels, label = torch.unique(label, return_inverse=True)

    right_contents = torch.zeros(len(queries), len(contents), dtype=torch.bool, device=content.device)
    right_contents[query, content[positive]] = True
    right_contents[query, query_content] = True
    right_labels = torch.zeros(len(queries), len(labels), dtype=torch.bool, device=content.device)
    right_labels[query, label[positive]] = True
    right_labels[:, labels == -1] = False
    return (right_contents[:, content] | right_labels[:, label])[query]


def first_occurrence(values: Tensor) -> Tensor:
    """Return for each value the index of the first equal one, shape `(values,)`."""
    distinct, index = torch.unique(values, return_inverse=True)
    positions = torch.arange(len(values), device=values.device)
    return torch.full_like(distinct, len(values)).scatter_reduce(0, index, positions, "amin")[index]


def distinct_items(items: Tensor, identity: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distinct ones of some items, and the index of each item among them.

    Their order is that of their hashes, which does not depend on the number of processes.

    Args:
        items (`Tensor` of shape `(n,)`, long): Item indices; those of equal items are equal.
        identity (`Tensor` of shape `(items,)`, long): Hash of each item.
    """
    hashes, index = torch.unique(identity[items], return_inverse=True)
    return torch.empty_like(hashes).scatter_(0, index, items), index


def merge_columns(mask: Tensor, index: Tensor, size: int) -> Tensor:
    """Return a mask of shape `(rows, size)` that is True where a column with that index is True in `mask`."""
    merged = torch.zeros(len(mask), size, dtype=torch.bool, device=mask.device)
    row, column = torch.nonzero(mask, as_tuple=True)
    merged[row, index[column]] = True
    return merged
