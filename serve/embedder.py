"""Embedding of batches for a server: items of different clients share a batch, and each gets a result or an error."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import ProcessorMixin

from ..batching_unime import MicroBatch, default_max_length, plan_micro_batches
from ..encoding_unime import embed_micro_batches
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

    def __call__(self, tasks: Sequence[Task]) -> Iterator[Mapping[int, Embedded | Exception]]:
        """Embed a batch.

        Yields:
            `dict`: Results by the index of the task, those of one forward pass at a time, or the errors of tasks:
            [`RefusedItem`] if the item is at fault.
        """
        refusals = {index: self._check_length(task) for index, task in enumerate(tasks)}
        refused = {index: refusal for index, refusal in refusals.items() if refusal is not None}
        if refused:
            yield refused
        yield from self._isolate_failures({index: task for index, task in enumerate(tasks) if index not in refused})

    def _isolate_failures(self, tasks: Mapping[int, Task]) -> Iterator[Mapping[int, Embedded | Exception]]:
        """Embed tasks; if that fails, the halves of what is left, until only the tasks at fault have an error."""
        left = dict(tasks)
        try:
            for results in self._embed(left) if left else ():
                left = {index: task for index, task in left.items() if index not in results}
                yield results
            return
        except Exception as error:  # each task gets its own, which the request raises again
            if len(left) == 1:
                yield dict.fromkeys(left, error)
                return
        indices = list(left)
        for half in (indices[: len(left) // 2], indices[len(left) // 2 :]):
            yield from self._isolate_failures({index: left[index] for index in half})

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
    def _embed(self, tasks: Mapping[int, Task]) -> Iterator[dict[int, Embedded]]:
        batches = self._plan(tasks)
        tokens = {item.index: item.length for batch in batches for item in batch.items}
        for indices, embeddings in embed_micro_batches(self.model, batches):
            yield {
                index: Embedded(embedding, tokens[index]) for index, embedding in zip(indices, embeddings, strict=True)
            }

    def _plan(self, tasks: Mapping[int, Task]) -> list[MicroBatch]:
        """Render and check all tasks before the model computes any, so that a refusal costs no forward pass."""
        batches = []
        for truncate in (False, True):
            limit = self.max_length if truncate else UNLIMITED
            try:
                items = {
                    index: normalize_item(task.item, index)
                    for index, task in tasks.items()
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
                reason = str(error).removeprefix(f"item {next(iter(tasks))}").lstrip(": ")
                raise RefusedItem(f"the model's processor refuses it: {reason}") from error
        longest = max(item.length for batch in batches for item in batch.items)
        if longest > self.max_length:
            raise self._too_long(longest)
        return batches
