"""Collators: from rows to micro-batches of distinct items, and indices that connect them to the rows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..processing_unime import decoded, to_item_dict
from .image_augmentation import ImageAugmentation
from .row_forms import row_positives
from .rows import (
    change_images,
    check_scores,
    content_hash,
    content_hashes,
    label_hash,
    parse_teacher_embedding,
    positive_place,
    task_hash,
)


Prepare = Callable[[Sequence[Any]], list[tuple[list[int], Mapping[str, Tensor]]]]

ITEM_TENSORS = ("order", "identity", "content")  # one value per item; the other tensors belong to rows


def _micro_batches(prepare: Prepare, items: list[Any]) -> dict[str, Any]:
    prepared = prepare(items)
    order = [index for indices, _ in prepared for index in indices]
    return {
        "micro_batches": [dict(tensors) for _, tensors in prepared],
        "order": torch.tensor(order),
        "num_images": sum(len(to_item_dict(item)["images"]) for item in items),
    }


@dataclass
class ContrastiveCollator:
    """Collator of the contrastive stage; each distinct item is embedded once.

    Candidates are the positives and the explicit negatives of the rows, distinct by item and label. Calling the
    collator with a list of rows returns a `dict` with:

    - `micro_batches` (list of tensor dicts): the distinct items;
    - `order` `(items,)`: item index of each row of the concatenated micro-batches;
    - `num_images` (`int`): images of the distinct items;
    - `provenance` (items, list of `str`): where each item occurs first, for errors;
    - `identity` and `content` `(items,)`: hashes of each item, with and without its instruction;
    - `candidate` `(candidates,)`: item index of each candidate;
    - `label` `(candidates,)`: hash of the label; -1 means none;
    - `query`, `positive` and `task` `(pairs,)`: for each positive of each row the item index of the query, the
      candidate index of the positive, and the hash of the task;
    - `scored_query` and `scored_task` `(scored rows,)`: item index of the query of each row with scores, and the hash
      of its task;
    - `scored_row`, `scored_candidate` and `score` `(scores,)`: for each score the index of its row in `scored_query`,
      its candidate index, and its value.

    Calling it raises a `ValueError` if the positives or scores of a row are malformed.

    Args:
        prepare (`Callable`): Maps items to `[(indices, tensors), ...]`, as `unime.micro_batches` does.
        augment ([`ImageAugmentation`], *optional*): Changes the images of the items. The hashes are those of the
            unchanged items.
    """

    prepare: Prepare
    augment: ImageAugmentation | None = None

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        items: list[Any] = []
        contents: list[int] = []
        provenance: list[str] = []
        item_indices: dict[int, int] = {}  # hash of an item -> item index
        candidates: dict[tuple[int, int], int] = {}  # (item index, hash of the label) -> candidate index
        places = [row.get("where") or f"row {index} of the batch" for index, row in enumerate(rows)]

        def add_item(item: Any, where: str) -> int:
            item = change_images(item, decoded)  # once, for the hashes and for the tensors
            identity, content = content_hashes(item)
            if identity not in item_indices:
                item_indices[identity] = len(items)
                items.append(item)
                contents.append(content)
                provenance.append(where)
            return item_indices[identity]

        def add_candidate(item: int, label: int) -> int:
            return candidates.setdefault((item, label), len(candidates))

        queries = [add_item(row["query"], f"{where}, query") for row, where in zip(rows, places, strict=True)]
        positives: list[list[int]] = []  # candidate indices of each row's positives
        for row, where in zip(rows, places, strict=True):
            row_items, label = row_positives(row, where), label_hash(row["task"], row["label"])
            names = [positive_place(where, position, len(row_items)) for position in range(len(row_items))]
            positives.append(
                [add_candidate(add_item(item, name), label) for item, name in zip(row_items, names, strict=True)]
            )
        candidate_of_positive: dict[int, int] = {}  # item index -> its first candidate index
        for (item, _), index in candidates.items():
            candidate_of_positive.setdefault(item, index)

        scored_queries: list[tuple[int, int]] = []  # item index, hash of the task
        scores: list[tuple[int, int, float]] = []  # row among those with scores, candidate index, score
        for row, where, query, row_positive in zip(rows, places, queries, positives, strict=True):
            row_candidates = list(row_positive)
            for position, negative in enumerate(row["negatives"]):
                item = add_item(negative, f"{where}, negative {position}")
                if item in candidate_of_positive:  # a candidate already, which may have a label
                    row_candidates.append(candidate_of_positive[item])
                else:
                    row_candidates.append(add_candidate(item, -1))
            row_scores = check_scores(row.get("scores"), len(row_positive), len(row["negatives"]), where)
            if row_scores is not None:
                pairs = zip(row_candidates, row_scores, strict=True)
                scores += [(len(scored_queries), candidate, score) for candidate, score in pairs if score is not None]
                scored_queries.append((query, task_hash(row["task"])))

        row_of_pair = [index for index, row_positive in enumerate(positives) for _ in row_positive]
        shown = items if self.augment is None else self.augment(items, list(item_indices))
        return _micro_batches(self.prepare, shown) | {
            "provenance": provenance,
            "identity": torch.tensor(list(item_indices)),
            "content": torch.tensor(contents),
            "candidate": torch.tensor([item for item, _ in candidates]),
            "label": torch.tensor([label for _, label in candidates]),
            "query": torch.tensor([queries[index] for index in row_of_pair]),
            "positive": torch.tensor([candidate for row_positive in positives for candidate in row_positive]),
            "task": torch.tensor([task_hash(rows[index]["task"]) for index in row_of_pair]),
            "scored_query": torch.tensor([query for query, _ in scored_queries], dtype=torch.long),
            "scored_task": torch.tensor([task for _, task in scored_queries], dtype=torch.long),
            "scored_row": torch.tensor([row for row, _, _ in scores], dtype=torch.long),
            "scored_candidate": torch.tensor([candidate for _, candidate, _ in scores], dtype=torch.long),
            "score": torch.tensor([score for _, _, score in scores], dtype=torch.float32),
        }


@dataclass
class TrainingStreamCollator:
    """Collator of a [`TrainingStream`], which yields `None` in place of a batch that is skipped.

    Args:
        collator (`Callable`): The collator of the other batches.
    """

    collator: Callable[[list[dict[str, Any]]], Mapping[str, Any]]

    def __call__(self, rows: list[dict[str, Any]] | None) -> Mapping[str, Any] | None:
        return None if rows is None else self.collator(rows)


@dataclass
class EvaluationCollator:
    """Collator of evaluation batches: adds `num_rows`, and accepts an empty list of rows.

    A process without rows in a joined batch embeds another row, because the layers of a model that is sharded over the
    processes must run in all of them. Nothing refers to these embeddings.

    Args:
        collate (`Callable`): The collator of the training; its image augmentation is left out.
        filler (`Mapping`): The row to embed in place of no rows.
    """

    collate: Callable[[Sequence[Mapping[str, Any]]], Mapping[str, Any]]
    filler: Mapping[str, Any]

    def __post_init__(self):
        if isinstance(self.collate, ContrastiveCollator):
            self.collate = replace(self.collate, augment=None)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        batch = dict(self.collate(rows or [self.filler]))
        if not rows:
            of_rows = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
            batch |= {name: value[:0] for name, value in of_rows.items() if name not in ITEM_TENSORS}
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
