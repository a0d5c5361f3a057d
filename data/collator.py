"""From rows to a batch: distinct items as a list of micro-batches, and indices that say who is whose positive."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .rows import content_hash, label_hash


Prepare = Callable[[Sequence[Any]], list[tuple[list[int], Mapping[str, Tensor]]]]


def _micro_batches(prepare: Prepare, items: list[Any]) -> dict[str, Any]:
    prepared = prepare(items)
    order = [index for indices, _ in prepared for index in indices]
    return {"micro_batches": [dict(tensors) for _, tensors in prepared], "order": torch.tensor(order)}


@dataclass
class ContrastiveCollator:
    """Collate rows of the contract for the contrastive stage; every distinct item is embedded once.

    Candidates are the rows' positives and explicit negatives, distinct by content and label.

    Args:
        prepare (`Callable`): Items to `[(indices, tensors), ...]`, as [`unime.micro_batches`] does.

    Returns of a call:
        `dict`: `micro_batches` (list of tensors), `order` (items,): item of each row of the joined micro-batches,
        `query` (batch,) and `candidate` (candidates,): indices of items, `positive` (batch,): indices of candidates,
        `content` and `label` (candidates,): hashes, label -1 where there is none.
    """

    prepare: Prepare

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        items: dict[int, Any] = {}  # content hash -> item, in order of first appearance
        numbers: dict[int, int] = {}
        candidates: dict[tuple[int, int], int] = {}  # (content, label) -> index

        def number(content: int, item: Any) -> int:
            items.setdefault(content, item)
            return numbers.setdefault(content, len(numbers))

        def candidate(item: Any, label: int) -> int:
            content = content_hash(item)
            number(content, item)
            return candidates.setdefault((content, label), len(candidates))

        queries = [number(content_hash(row["query"]), row["query"]) for row in rows]
        positives = [candidate(row["positive"], label_hash(row["task"], row["label"])) for row in rows]
        pool = {content for content, _ in candidates}
        for row in rows:
            for negative in row["negatives"]:
                if content_hash(negative) not in pool:  # a negative that is a row's positive is in the pool already
                    candidate(negative, -1)
        return _micro_batches(self.prepare, list(items.values())) | {
            "query": torch.tensor(queries),
            "candidate": torch.tensor([numbers[content] for content, _ in candidates]),
            "positive": torch.tensor(positives),
            "content": torch.tensor([content for content, _ in candidates]),
            "label": torch.tensor([label for _, label in candidates]),
        }


@dataclass
class DistillationCollator:
    """Collate texts for the distillation stage, with their teacher embeddings where the rows carry them.

    Args:
        prepare (`Callable`): Items to `[(indices, tensors), ...]`, as [`unime.micro_batches`] does.

    Returns of a call:
        `dict`: `micro_batches`, `order` (batch,) and either `teacher` (batch, teacher dimensions) or `texts`.
    """

    prepare: Prepare

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        batch = _micro_batches(self.prepare, [{"text": row["text"]} for row in rows])
        if "teacher" in rows[0]:
            return batch | {
                "teacher": torch.from_numpy(np.asarray([row["teacher"] for row in rows], dtype=np.float32))
            }
        return batch | {"texts": [row["text"] for row in rows]}
