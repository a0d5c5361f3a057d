"""Embedding of batches for a server: items of different clients share a batch, and each gets a result or an error."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import ProcessorMixin

from ..batching_unime import MicroBatch, default_max_length, plan_micro_batches
from ..encoding_unime import embed_micro_batches
from ..isolate_failures import map_isolating_failures
from ..modeling_unime import UniMEModel
from ..processing_unime import normalize_item


UNLIMITED = sys.maxsize


class RefusedItem(ValueError):
    """An item that the model cannot read; the message tells the client why."""


@dataclass(frozen=True)
class Task:
    """An item to embed.

    Args:
        item (`dict`): The item.
        truncate (`bool`, *optional*, defaults to `False`): Whether to truncate a text that is too long instead of
            refusing it.
    """

    item: dict[str, Any]
    truncate: bool = False


@dataclass(frozen=True)
class Embedded:
    """The embedding of an item.

    Args:
        embedding (`np.ndarray` of shape `(dimensions,)`): Unit vector in float32.
        tokens (`int`): Number of tokens that the model read.
    """

    embedding: np.ndarray
    tokens: int


class Embedder:
    """A model that embeds batches as [`UniMEModel.encode`] does, and counts tokens.

    Args:
        model ([`UniMEModel`]): The model.
        processor (`ProcessorMixin`): Its processor.
        micro_batch_tokens (`int`, *optional*, defaults to the model's `default_micro_batch_tokens`): Token budget of
            one forward pass.
    """

    def __init__(self, model: UniMEModel, processor: ProcessorMixin, micro_batch_tokens: int | None = None):
        self.model = model.eval()
        self.processor = processor
        self.micro_batch_tokens = micro_batch_tokens or model.default_micro_batch_tokens
        self.max_length = default_max_length(processor, model.config)

    def __call__(self, tasks: list[Task]) -> list[Embedded | Exception]:
        """Embed a batch.

        Returns:
            `list`: The result of each task, or its error: [`RefusedItem`] if the item is at fault.
        """
        refusals = [self._check_length(task) for task in tasks]
        accepted = [task for task, refusal in zip(tasks, refusals, strict=True) if refusal is None]
        results = iter(map_isolating_failures(self._embed, accepted, Exception))
        return [next(results) if refusal is None else refusal for refusal in refusals]

    def _check_length(self, task: Task) -> RefusedItem | None:
        """Refuse a text that is too long even without its prompt, at the cost of tokenizing it once."""
        parts = (task.item.get("instruction"), task.item.get("text"), *task.item.get("content", ()))
        text = "".join(part for part in parts if isinstance(part, str))
        if task.truncate or len(text.encode()) <= self.max_length:  # a token has at least one byte
            return None
        tokens = len(self.processor.tokenizer(text)["input_ids"])
        return self._too_long(tokens) if tokens > self.max_length else None

    def _too_long(self, tokens: int) -> RefusedItem:
        return RefusedItem(
            f"it has {tokens} tokens, the model reads at most {self.max_length} with its prompt: shorten or split it, "
            'or send "truncate_prompt_tokens": -1 to have texts truncated'
        )

    @torch.inference_mode()
    def _embed(self, tasks: Sequence[Task]) -> list[Embedded]:
        batches = self._plan(tasks)
        tokens = {item.index: item.length for batch in batches for item in batch.items}
        results: dict[int, Embedded] = {}
        for positions, embeddings in embed_micro_batches(self.model, batches):
            for position, embedding in zip(positions, embeddings, strict=True):
                results[position] = Embedded(embedding, tokens[position])
        return [results[position] for position in range(len(tasks))]

    def _plan(self, tasks: Sequence[Task]) -> list[MicroBatch]:
        """Render and check all tasks before the model computes any, so that a refusal costs no forward pass."""
        batches = []
        for truncate in (False, True):
            limit = self.max_length if truncate else UNLIMITED
            try:
                items = {
                    position: normalize_item(task.item, position)
                    for position, task in enumerate(tasks)
                    if task.truncate == truncate
                }
                batches += plan_micro_batches(
                    self.processor,
                    items,
                    self.micro_batch_tokens,
                    limit,
                    share_prefixes=self.model.pools_last_token,
                    config=self.model.config.backbone_config,
                )
            except ValueError as error:
                reason = str(error).removeprefix("item 0").lstrip(": ")
                raise RefusedItem(f"the model's processor refuses it: {reason}") from error
        longest = max(item.length for batch in batches for item in batch.items)
        if longest > self.max_length:
            raise self._too_long(longest)
        return batches
