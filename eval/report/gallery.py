"""What a report shows of a task: queries with their five best candidates, probes with both captions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...processing_unime import Item
from ..tasks import CompositionalTask, RetrievalTask, SimilarityTask


@dataclass(frozen=True)
class Candidate:
    """A candidate as a query saw it."""

    item: Item
    score: float
    right: bool


@dataclass(frozen=True)
class Answer:
    """A query, its five best candidates, its best right candidate and how many wrong ones stand before that."""

    query: Item
    top: list[Candidate]
    right: Candidate
    rank: int


@dataclass(frozen=True)
class Probe:
    """An image with its true and its false caption, and the similarity to each."""

    image: Item
    caption: Item
    negative: Item
    true: float
    false: float


@dataclass(frozen=True)
class Gallery:
    """Evenly spaced examples of one task, and its hardest mistakes, worst first."""

    name: str
    examples: list[Answer] | list[Probe]
    mistakes: list[Answer] | list[Probe]


def build_galleries(
    rankings: Mapping[str, Any],
    tasks: Sequence[RetrievalTask | SimilarityTask],
    compositional_tasks: Sequence[CompositionalTask] = (),
) -> list[Gallery]:
    """Looks up the items behind the rankings of `tasks.evaluate`, for `report.write_report`.

    Args:
        rankings (`Mapping`): The second value of `evaluate`, or what was read back from its JSON.
        tasks, compositional_tasks: What was evaluated; of pairs nothing is shown.
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

    searches = [task for task in tasks if isinstance(task, RetrievalTask)]
    shown = []
    for kind, ranked, make in (("retrieval", searches, answer), ("compositional", compositional_tasks, probe)):
        for task in ranked:
            records = rankings[kind][task.name]
            examples = [make(task, record) for record in records["examples"]]
            mistakes = [make(task, record) for record in records["mistakes"]]
            shown.append(Gallery(task.name, examples, mistakes))
    return shown
