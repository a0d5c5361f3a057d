"""Collators: from rows to micro-batches of distinct items, and indices that connect them to the rows."""

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
    """Collator of the contrastive stage; each distinct item is embedded once.

    Candidates are the positives and the explicit negatives of the rows, distinct by content and label. Calling the
    collator with a list of rows returns a `dict` with:

    - `micro_batches` (list of tensor dicts): the distinct items;
    - `order` `(items,)`: item index of each row of the concatenated micro-batches;
    - `query` `(batch,)`: item index of each row's query;
    - `candidate` `(candidates,)`: item index of each candidate;
    - `positive` `(batch,)`: candidate index of each row's positive;
    - `content` and `label` `(candidates,)`: hashes; a label of -1 means none;
    - `provenance` (items, list of `str`): where each item occurs first, for errors.

    Args:
        prepare (`Callable`): Maps items to `[(indices, tensors), ...]`, as `unime.micro_batches` does.
    """

    prepare: Prepare

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        items: dict[int, Any] = {}  # content hash -> item, in order of first occurrence
        item_indices: dict[int, int] = {}  # content hash -> item index
        provenance: dict[int, str] = {}  # content hash -> where the item occurs first
        candidates: dict[tuple[int, int], int] = {}  # (content hash, label hash) -> candidate index
        places = [row.get("where") or f"row {index} of the batch" for index, row in enumerate(rows)]

        def add_item(content: int, item: Any, where: str) -> int:
            items.setdefault(content, item)
            provenance.setdefault(content, where)
            return item_indices.setdefault(content, len(item_indices))

        def add_candidate(item: Any, label: int, where: str) -> int:
            content = content_hash(item)
            add_item(content, item, where)
            return candidates.setdefault((content, label), len(candidates))

        queries = [
            add_item(content_hash(row["query"]), row["query"], f"{where}, query")
            for row, where in zip(rows, places, strict=True)
        ]
        positives = [
            add_candidate(row["positive"], label_hash(row["task"], row["label"]), f"{where}, positive")
            for row, where in zip(rows, places, strict=True)
        ]
        positive_contents = {content for content, _ in candidates}
        for row, where in zip(rows, places, strict=True):
            for position, negative in enumerate(row["negatives"]):
                if content_hash(negative) not in positive_contents:  # a row's positive is a candidate already
                    add_candidate(negative, -1, f"{where}, negative {position}")
        return _micro_batches(self.prepare, list(items.values())) | {
            "provenance": list(provenance.values()),
            "query": torch.tensor(queries),
            "candidate": torch.tensor([item_indices[content] for content, _ in candidates]),
            "positive": torch.tensor(positives),
            "content": torch.tensor([content for content, _ in candidates]),
            "label": torch.tensor([label for _, label in candidates]),
        }


@dataclass
class EvaluationCollator:
    """Collator of evaluation batches: adds `num_rows`, and accepts an empty list of rows.

    A process without rows in a joined batch embeds another row, because the layers of a model that is sharded over the
    processes must run in all of them. Nothing refers to these embeddings.

    Args:
        collate (`Callable`): The collator of the training.
        filler (`Mapping`): The row to embed in place of no rows.
    """

    collate: Callable[[Sequence[Mapping[str, Any]]], Mapping[str, Any]]
    filler: Mapping[str, Any]

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        batch = dict(self.collate(rows or [self.filler]))
        if not rows:  # all tensors but the order of the items index them, or belong to rows
            batch |= {
                name: value[:0] for name, value in batch.items() if isinstance(value, Tensor) and name != "order"
            }
        return batch | {"num_rows": torch.tensor([len(rows)])}


@dataclass
class DistillationCollator:
    """Collator of the distillation stage; each distinct text is embedded once.

    Calling the collator with a list of rows returns a `dict` with:

    - `micro_batches` (list of tensor dicts): the distinct texts;
    - `order` `(texts,)`: text index of each row of the concatenated micro-batches;
    - `provenance` (texts, list of `str`): name of each text, for errors;
    - `text` `(batch,)`: text index of each row;
    - `teacher` `(batch, teacher dimensions)` if the rows have it, otherwise `texts` (list of `str`).

    The call raises a `ValueError` if the teacher's embedding of a text is missing, not finite, or of another length
    than the others.

    Args:
        prepare (`Callable`): Maps items to `[(indices, tensors), ...]`, as `unime.micro_batches` does.
    """

    prepare: Prepare

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        contents = [content_hash({"text": row["text"]}) for row in rows]
        texts = {content: row["text"] for content, row in zip(contents, rows, strict=True)}  # by first occurrence
        text_indices = {content: index for index, content in enumerate(texts)}
        names = {content: f"the text {text!r:.80}" for content, text in texts.items()}
        batch = _micro_batches(self.prepare, [{"text": text} for text in texts.values()]) | {
            "provenance": list(names.values()),
            "text": torch.tensor([text_indices[content] for content in contents]),
        }
        if "teacher" not in rows[0]:
            return batch | {"texts": list(texts.values())}
        row_names = [names[content] for content in contents]
        embeddings = [parse_teacher_embedding(row["teacher"], name) for row, name in zip(rows, row_names, strict=True)]
        for embedding, name in zip(embeddings, row_names, strict=True):
            if len(embedding) != len(embeddings[0]):
                raise ValueError(
                    f"{name}: its teacher embedding has {len(embedding)} dimensions, but {row_names[0]} has "
                    f"{len(embeddings[0])}: compute both with the same teacher"
                )
        return batch | {"teacher": torch.from_numpy(np.stack(embeddings))}
