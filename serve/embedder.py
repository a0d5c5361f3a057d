"""The model as a server runs it: many strangers' items in one batch, each with its own vector or its own error."""

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import ProcessorMixin

from ..batching_unime import MicroBatch, plan_micro_batches
from ..data.isolate_failures import map_isolating_failures
from ..modeling_unime import UniMEModel
from ..processing_unime import normalize_item


UNLIMITED = sys.maxsize


class RefusedItem(ValueError):
    """An item that the model cannot read, and why: its sender's to mend."""


@dataclass(frozen=True)
class Task:
    """An item to embed, and whether its text may be shortened to what the model reads."""

    item: dict[str, Any]
    shorten: bool = False


@dataclass(frozen=True)
class Embedded:
    """A unit vector of shape `(dimensions,)`, float32, and how many tokens were read for it."""

    vector: np.ndarray
    tokens: int


class Embedder:
    """Embeds batches of items as [`UniMEModel.encode`] does, and counts their tokens.

    Args:
        model ([`UniMEModel`]): The model.
        processor (`ProcessorMixin`): Its processor.
        micro_batch_tokens (`int`, *optional*, defaults to the model's `default_micro_batch_tokens`): Of one forward pass.
    """

    def __init__(self, model: UniMEModel, processor: ProcessorMixin, micro_batch_tokens: int | None = None):
        self.model = model.eval()
        self.processor = processor
        self.micro_batch_tokens = micro_batch_tokens or model.default_micro_batch_tokens
        text = model.config.backbone_config.get_text_config()
        self.micro_batch_tokens = min(processor.tokenizer.model_max_length, text.max_position_embeddings)

    def __call__(self, tasks: list[Task]) -> list[Embedded | Exception]:
        """Embed a batch.

        Returns:
            `list`: For each task what it gave, or its error: [`RefusedItem`] if the item is to blame.
        """
        refusals = [self._refusal(task) for task in tasks]
        taken = [task for task, no in zip(tasks, refusals, strict=True) if no is None]
        embedded = iter(map_isolating_failures(self._together, taken, Exception))
        return [next(embedded) if no is None else no for no in refusals]

    def _refusal(self, task: Task) -> RefusedItem | None:
        """Find a text that is too long by itself, at the cost of reading it once."""
        text = (task.item.get("instruction") or "") + (task.item.get("text") or "")
        if task.shorten or len(text.encode()) <= self.micro_batch_tokens:  # no token is shorter than a byte
            return None
        tokens = len(self.processor.tokenizer(text)["input_ids"])
        return self._too_long(tokens) if tokens > self.micro_batch_tokens else None

    def _too_long(self, tokens: int) -> RefusedItem:
        return RefusedItem(
            f"it has {tokens} tokens, the model reads at most {self.micro_batch_tokens} with its prompt: shorten or split it, "
            'or send "truncate_prompt_tokens": -1 to have texts shortened'
        )

    @torch.inference_mode()
    def _together(self, tasks: list[Task]) -> list[Embedded]:
        batches = self._plan(tasks)
        tokens = {row.number: row.length for batch in batches for row in batch.rows}
        results: dict[int, Embedded] = {}
        for positions, vectors in self.model.embed_micro_batches(batches):
            if not np.isfinite(vectors).all():
                raise FloatingPointError("a vector is not finite: serve the model in another --dtype")
            for position, vector in zip(positions, vectors, strict=True):
                results[position] = Embedded(vector, tokens[position])
        return [results[position] for position in range(len(tasks))]

    def _plan(self, tasks: list[Task]) -> list[MicroBatch]:
        """Render and check all tasks before the model computes any: a refusal costs no forward pass."""
        batches = []
        for shorten in (False, True):
            chosen = {position: task.item for position, task in enumerate(tasks) if task.shorten == shorten}
            limit = self.micro_batch_tokens if shorten else UNLIMITED
            try:
                items = {position: normalize_item(item, position) for position, item in chosen.items()}
                batches += plan_micro_batches(
                    self.processor,
                    items,
                    self.micro_batch_tokens,
                    limit,
                    share_prefixes=self.model.supports_text_only_decoder,
                )
            except ValueError as error:
                raise RefusedItem(f"the model's processor refuses it: {str(error).removeprefix('item 0 ')}") from error
        longest = max(row.length for batch in batches for row in batch.rows)
        if longest > self.micro_batch_tokens:
            raise self._too_long(longest)
        return batches
