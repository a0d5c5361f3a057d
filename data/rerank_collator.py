"""Collator of the reranker's training: from rows to conversations with an image-text model."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import ProcessorMixin

from ..judging import Conversation, conversation_images, listwise_messages, pairwise_messages, prompt_tensors, render
from ..rerank_answers import FILLER, answer_end, answer_tokens, position_answer, with_answers
from .row_forms import row_positives
from .rows import content_hashes


GENERATIVE_OBJECTIVES = ("both", "pairwise", "listwise")
MAX_LENGTH_RATIO = 1.25  # of the texts of a micro-batch

Candidate = tuple[Any, float | None]  # item, score
Question = tuple[Conversation, str]  # and its right answer


def _draw_candidates(row: Mapping[str, Any], where: str, source: random.Random) -> tuple[Candidate, list[Candidate]]:
    """Return one of a row's positives, and its distinct negatives that have the content of no positive.

    Raises:
        ValueError: There is no such negative.
    """
    positives = row_positives(row, where)
    scores = row.get("scores") or [None] * (len(positives) + len(row["negatives"]))
    drawn = source.randrange(len(positives))
    seen = {content_hashes(item)[1] for item in positives}
    negatives = []
    for item, score in zip(row["negatives"], scores[len(positives) :], strict=True):
        content = content_hashes(item)[1]
        if content not in seen:
            seen.add(content)
            negatives.append((item, score))
    if not negatives:
        raise ValueError(
            f"{where}: it has no negative that differs from its positive, and a reranker learns to tell them apart: "
            "mine hard negatives (recipes/mine.py), or remove the row"
        )
    return (positives[drawn], scores[drawn]), negatives


def similar_sizes(sizes: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Group conversations that have equally many images and texts of similar length, so that little is padding.

    Args:
        sizes (`list[tuple[int, int]]`): Images and characters of each conversation.

    Returns:
        `list[list[int]]`: Indices of the conversations of each group. Its longest text has at most `MAX_LENGTH_RATIO`
        times the characters of its shortest one.
    """
    groups: list[list[int]] = []
    for index in sorted(range(len(sizes)), key=sizes.__getitem__):
        images, characters = sizes[index]
        fewest_images, fewest_characters = sizes[groups[-1][0]] if groups else (-1, 0)
        if images != fewest_images or characters > MAX_LENGTH_RATIO * fewest_characters:
            groups.append([])
        groups[-1].append(index)
    return groups


@dataclass
class RerankCollator:
    """Collator that asks about the query and the candidates of each row, and knows the right answers.

    What is drawn at random (the negative of the answer "No", the candidates of a list and the place of the positive)
    depends on the seed, the row and the epoch alone, so it is the same for any number of processes and after resuming.

    Calling it with rows returns a `dict` with:

    - `micro_batches` (list of tensor dicts): the conversations, left-padded; a micro-batch has those of similar size
      (see [`similar_sizes`]). With a generative objective they end with the answers, and `answers` of shape
      `(conversations, answer tokens)` holds the tokens with a loss, filled up with -100;
    - `labels`: one value for each term of the loss, which is their mean: the tokens of all answers; with `"ranking"`
      one for each row, with `"distillation"` one for each candidate;
    - with `"ranking"` and `"distillation"`: `order` `(candidates,)`, the index of the candidate that each conversation
      of the concatenated micro-batches is about, `num_candidates` `(rows,)` and `scores` `(candidates,)`;
    - `provenance` (list of `str`): the rows, for errors.

    Args:
        processor (`ProcessorMixin`): Processor of the model.
        objective (`str`): One of those of [`RerankConfig`].
        num_candidates (`int`): Most candidates of a row, the positive included.
        seed (`int`): Seed of what is drawn.
        dtype (`torch.dtype`, *optional*): Type of pixels.
        epoch (`Tensor`, *optional*): The epoch, in memory that the workers of a loader share.
    """

    processor: ProcessorMixin
    objective: str
    num_candidates: int
    seed: int
    dtype: torch.dtype | None = None
    epoch: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.long).share_memory_())

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        places = [row.get("where") or f"row {index} of the batch" for index, row in enumerate(rows)]
        batch: dict[str, Any] = {"provenance": places}
        if self.objective in GENERATIVE_OBJECTIVES:
            asked = [self.questions(row, where) for row, where in zip(rows, places, strict=True)]
            micro_batches, _ = self._tensors([question for questions in asked for question in questions])
            labels = torch.cat([tensors["answers"].flatten() for tensors in micro_batches])
            return batch | {"micro_batches": micro_batches, "labels": labels[labels != FILLER]}
        offered = [self.candidates(row, where) for row, where in zip(rows, places, strict=True)]
        pairs = [
            (pairwise_messages(row["query"], item), "")
            for row, candidates in zip(rows, offered, strict=True)
            for item, _ in candidates
        ]
        micro_batches, order = self._tensors(pairs)
        scores = []
        if self.objective == "distillation":
            scores = [
                _probability(score, where) for where, row in zip(places, offered, strict=True) for _, score in row
            ]
        return batch | {
            "micro_batches": micro_batches,
            "order": torch.tensor(order),
            "num_candidates": torch.tensor([len(candidates) for candidates in offered]),
            "scores": torch.tensor(scores),
            "labels": torch.zeros(len(scores) or len(rows), dtype=torch.long),
        }

    def questions(self, row: Mapping[str, Any], where: str) -> list[Question]:
        """Return the conversations about one candidate of a row and about a list, each with its right answer.

        Args:
            row (`Mapping`): The row.
            where (`str`): Its place, which the draws depend on.

        Raises:
            ValueError: The row has no negative that differs from its positives.
        """
        source, query = self._source(where), row["query"]
        (positive, _), negatives = _draw_candidates(row, where, source)
        wrong, _ = source.choice(negatives)
        offered = [item for item, _ in self._sample(negatives, source)]
        place = source.randint(0, len(offered))
        offered.insert(place, positive)
        pairs = [(pairwise_messages(query, positive), "Yes"), (pairwise_messages(query, wrong), "No")]
        lists = [(listwise_messages(query, offered), position_answer(place))]
        return {"pairwise": pairs, "listwise": lists}.get(self.objective, pairs + lists)

    def candidates(self, row: Mapping[str, Any], where: str) -> list[Candidate]:
        """Return a row's positive and the negatives to compare it with, each with its score; see [`questions`]."""
        source = self._source(where)
        positive, negatives = _draw_candidates(row, where, source)
        if self.objective == "distillation":
            negatives = [candidate for candidate in negatives if candidate[1] is not None]
        return [positive, *self._sample(negatives, source)]

    def _source(self, where: str) -> random.Random:
        return random.Random(f"{self.seed}/{int(self.epoch)}/{where}")

    def _sample(self, negatives: Sequence[Candidate], source: random.Random) -> list[Candidate]:
        return source.sample(negatives, min(len(negatives), self.num_candidates - 1))

    def _tensors(self, questions: Sequence[Question]) -> tuple[list[dict[str, Tensor]], list[int]]:
        """Return the micro-batches, and the place of each of their conversations."""
        texts = render(self.processor, [conversation for conversation, _ in questions])
        images = [conversation_images(conversation) for conversation, _ in questions]
        groups = similar_sizes([(len(shown), len(text)) for shown, text in zip(images, texts, strict=True)])
        micro_batches = []
        for group in groups:
            prompts = prompt_tensors(self.processor, [texts[index] for index in group], [images[i] for i in group])
            prompts = prompts if self.dtype is None else prompts.to(dtype=self.dtype)
            micro_batches.append(self._with_answers(prompts, [questions[index][1] for index in group]))
        return micro_batches, [index for group in groups for index in group]

    def _with_answers(self, prompts: Mapping[str, Tensor], answers: Sequence[str]) -> dict[str, Tensor]:
        if not any(answers):
            return dict(prompts)
        end = answer_end(self.processor)
        tokens = [torch.tensor(answer_tokens(self.processor, answer) + end) for answer in answers]
        padded = pad_sequence(tokens, batch_first=True, padding_value=FILLER)
        return with_answers(prompts, padded) | {"answers": padded}


def _probability(score: float | None, where: str) -> float:
    if score is None or not 0 <= score <= 1:
        raise ValueError(
            f"{where}: objective 'distillation' needs 'scores' that are probabilities, from 0 to 1, got {score}: "
            "judge the rows (recipes/judge.py), or choose another objective"
        )
    return score
