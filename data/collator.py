"""From rows to a batch: distinct items as a list of micro-batches, and indices that say who is whose positive."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .rows import content_hash, label_hash, parse_teacher_embedding


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
        `content` and `label` (candidates,): hashes, label -1 where there is none, and `provenance` (items, list of str):
        where each item was met first, for errors.
    """

    prepare: Prepare

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        items: dict[int, Any] = {}  # content hash -> item, in order of first appearance
        numbers: dict[int, int] = {}
        candidates: dict[tuple[int, int], int] = {}  # (content, label) -> index
        found: dict[int, str] = {}  # content hash -> where it was met first
        places = [row.get("where") or f"row {number} of the batch" for number, row in enumerate(rows)]

        def number(content: int, item: Any, where: str) -> int:
            items.setdefault(content, item)
            found.setdefault(content, where)
            return numbers.setdefault(content, len(numbers))

        def candidate(item: Any, label: int, where: str) -> int:
            content = content_hash(item)
            number(content, item, where)
            return candidates.setdefault((content, label), len(candidates))

        queries = [
            number(content_hash(row["query"]), row["query"], f"{where}, query")
            for row, where in zip(rows, places, strict=True)
        ]
        positives = [
            candidate(row["positive"], label_hash(row["task"], row["label"]), f"{where}, positive")
            for row, where in zip(rows, places, strict=True)
        ]
        pool = {content for content, _ in candidates}
        for row, where in zip(rows, places, strict=True):
            for position, negative in enumerate(row["negatives"]):
                if content_hash(negative) not in pool:  # a negative that is a row's positive is in the pool already
                    candidate(negative, -1, f"{where}, negative {position}")
        return _micro_batches(self.prepare, list(items.values())) | {
            "provenance": list(found.values()),
            "query": torch.tensor(queries),
            "candidate": torch.tensor([numbers[content] for content, _ in candidates]),
            "positive": torch.tensor(positives),
            "content": torch.tensor([content for content, _ in candidates]),
            "label": torch.tensor([label for _, label in candidates]),
        }


@dataclass
class DistillationCollator:
    """Collate texts for the distillation stage; every distinct text is embedded once, however many rows have it.

    Args:
        prepare (`Callable`): Items to `[(indices, tensors), ...]`, as [`unime.micro_batches`] does.

    Returns of a call:
        `dict`: `micro_batches`, `order` (texts,), `provenance` (texts, list of str) which names each text for errors,
        `text` (batch,): which text is that of each row, and `teacher` (batch, teacher dimensions) where the rows carry
        it, else `texts` (list of str).

    Raises of a call:
        ValueError: The teacher's embedding of a text is missing, not finite, or of another length than the others.
    """

    prepare: Prepare

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        contents = [content_hash({"text": row["text"]}) for row in rows]
        texts = {content: row["text"] for content, row in zip(contents, rows, strict=True)}  # by first appearance
        numbers = {content: number for number, content in enumerate(texts)}
        names = {content: f"the text {text!r:.80}" for content, text in texts.items()}
        batch = _micro_batches(self.prepare, [{"text": text} for text in texts.values()]) | {
            "provenance": list(names.values()),
            "text": torch.tensor([numbers[content] for content in contents]),
        }
        if "teacher" not in rows[0]:
            return batch | {"texts": list(texts.values())}
        found = [names[content] for content in contents]
        vectors = [parse_teacher_embedding(row["teacher"], where) for row, where in zip(rows, found, strict=True)]
        for vector, where in zip(vectors, found, strict=True):
            if len(vector) != len(vectors[0]):
                raise ValueError(
                    f"{where}: its teacher embedding has {len(vector)} numbers, that of {found[0]} "
                    f"{len(vectors[0])}: compute them with one teacher"
                )
        return batch | {"teacher": torch.from_numpy(np.stack(vectors))}
