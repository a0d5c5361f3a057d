"""The examples of a report: queries with their best candidates, and images with both captions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...processing_unime import Item
from ..tasks import CompositionalTask, RetrievalTask, SimilarityTask


@dataclass(frozen=True)
class Candidate:
    """A candidate with its similarity to the query, and whether it is a positive."""

    item: Item
    score: float
    right: bool


@dataclass(frozen=True)
class Answer:
    """A query, its best candidates, its best positive, and the number of negatives ranked before it."""

    query: Item
    top: list[Candidate]
    right: Candidate
    rank: int


@dataclass(frozen=True)
class Probe:
    """A row of a compositional task: an image with its true and its false caption, and the similarity to each."""

    image: Item
    caption: Item
    negative: Item
    true: float
    false: float


@dataclass(frozen=True)
class Gallery:
    """Evenly spaced examples of a task, and its largest errors, largest first."""

    name: str
    examples: list[Answer] | list[Probe]
    mistakes: list[Answer] | list[Probe]


def build_galleries(
    rankings: Mapping[str, Any],
    tasks: Sequence[RetrievalTask | SimilarityTask],
    compositional_tasks: Sequence[CompositionalTask] = (),
) -> list[Gallery]:
    """Look up the items of the rankings of `tasks.evaluate`, for `html_report.write_report`.

    Args:
        rankings (`Mapping`): The second value that `evaluate` returns, or the same read from JSON.
        tasks (`Sequence[RetrievalTask | SimilarityTask]`): The evaluated tasks; similarity tasks have no gallery.
        compositional_tasks (`Sequence[CompositionalTask]`, *optional*): The evaluated compositional tasks.
    """

    def answer(task: RetrievalTask, record: Mapping[str, Any]) -> Answer:
        top = zip(record["top"], record["scores"], record["right"], strict=True)
        return Answer(
            query=task.queries[record["query"]],
            top=[Candidate(task.candidates[candidate], score, right) for candidate, score, right in top],
            right=Candidate(task.candidates[record["answer"]], record["answer_score"], True),
            rank=record["rank"],
        )

    def probe(task: CompositionalTask, record: Mapping[str, Any]) -> Probe:
        row = record["row"]
        return Probe(task.images[row], task.captions[row], task.negatives[row], record["true"], record["false"])

    retrieval_tasks = [task for task in tasks if isinstance(task, RetrievalTask)]
    galleries = []
    kinds: list[tuple[str, Sequence[Any], Callable[..., Any]]] = [
        ("retrieval", retrieval_tasks, answer),
        ("compositional", compositional_tasks, probe),
    ]
    for kind, ranked_tasks, build in kinds:
        for task in ranked_tasks:
            records = rankings[kind][task.name]
            examples = [build(task, record) for record in records["examples"]]
            mistakes = [build(task, record) for record in records["mistakes"]]
            galleries.append(Gallery(task.name, examples, mistakes))
    return galleries
