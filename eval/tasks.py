"""What an evaluation asks, and the one function that answers it for any embedder."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from ..processing_unime import Item
from .metrics import TIE, compositional_accuracy, first_is_best, mean_by_group, pessimistic_ranks, recall_at_k
from .store import EmbeddingStore


Encode = Callable[[Sequence[Item]], np.ndarray]

META_TASKS = ("classification", "vqa", "retrieval", "grounding", "long")


@dataclass(frozen=True)
class RetrievalTask:
    """Queries that each look for one of their right candidates.

    Args:
        name (`str`): Name of the task, unique in an evaluation.
        meta_task (`str`): One of `META_TASKS`; means are taken per meta-task.
        queries (`Sequence[Item]`): The queries.
        candidates (`Sequence[Item]`): The distinct candidates that all queries share.
        positives (`list[list[int]]`): For each query the indices of its right candidates.
        pools (`list[list[int]]`, *optional*): For each query the indices of the candidates it is compared with, as in
            MMEB, the right ones first; without it, all of them.
        distribution (`str`, *optional*): Whether its training data is MMEB-train's ("IND") or not ("OOD").
    """

    name: str
    meta_task: str
    queries: Sequence[Item]
    candidates: Sequence[Item]
    positives: list[list[int]]
    pools: list[list[int]] | None = None
    distribution: str | None = None

    @property
    def roles(self) -> dict[str, Sequence[Item]]:
        """What there is to embed, by what it is."""
        return {"query": self.queries, "candidate": self.candidates}

    @property
    def candidates_per_query(self) -> int:
        """How many candidates a query is compared with; the rounded mean where pools differ in size."""
        return len(self.candidates) if self.pools is None else round(np.mean([len(pool) for pool in self.pools]))

    def __post_init__(self):
        if self.meta_task not in META_TASKS:
            raise ValueError(
                f"task '{self.name}' has meta_task '{self.meta_task}'; use one of {', '.join(META_TASKS)}."
            )
        if not len(self.queries) == len(self.positives) > 0:
            raise ValueError(
                f"task '{self.name}' has {len(self.queries)} queries and {len(self.positives)} lists of positives; "
                "give each query its list, and at least one query."
            )
        if self.pools is not None and len(self.pools) != len(self.queries):
            raise ValueError(
                f"task '{self.name}' has {len(self.queries)} queries and {len(self.pools)} pools; "
                "give each query its pool, or none."
            )
        for query, right in enumerate(self.positives):
            allowed = range(len(self.candidates)) if self.pools is None else set(self.pools[query])
            if not right or not all(candidate in allowed for candidate in right):
                raise ValueError(
                    f"query {query} of task '{self.name}' has the positives {right}; "
                    f"name at least one, all among its {len(allowed)} candidates."
                )


@dataclass(frozen=True)
class CompositionalTask:
    """Pictures with a true caption and a false one that differs by a small edit (SugarCrepe).

    Row i is right if and only if the picture is nearer to its caption than to its negative.

    Args:
        name (`str`): The kind of edit, such as `swap_obj`; what stands before the first `_` is its group.
        images, captions, negatives (`Sequence[Item]`): Equally long.
    """

    name: str
    images: Sequence[Item]
    captions: Sequence[Item]
    negatives: Sequence[Item]

    @property
    def roles(self) -> dict[str, Sequence[Item]]:
        """What there is to embed, by what it is."""
        return {"image": self.images, "caption": self.captions, "negative": self.negatives}

    def __post_init__(self):
        if not len(self.images) == len(self.captions) == len(self.negatives) > 0:
            raise ValueError(
                f"task '{self.name}' has {len(self.images)} images, {len(self.captions)} captions and "
                f"{len(self.negatives)} negatives; give equally many of each, and at least one."
            )


def evaluate(
    encode: Encode | EmbeddingStore,
    retrieval_tasks: Sequence[RetrievalTask],
    compositional_tasks: Sequence[CompositionalTask] = (),
    *,
    model: str,
    benchmark: str = "openmoji",
    shown: int = 6,
    progress: bool = True,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Scores an embedder on every task.

    A distinct item (same text, instruction and pictures) is embedded once, however many tasks use it.

    Args:
        encode (`Encode` or `EmbeddingStore`): Items -> `(N, D)` float32 unit rows.
        retrieval_tasks (`Sequence[RetrievalTask]`): Searches.
        compositional_tasks (`Sequence[CompositionalTask]`, *optional*): The probes.
        model (`str`): What is evaluated; goes into the results.
        benchmark (`str`, *optional*, defaults to `"openmoji"`): What it is evaluated on; goes into the results.
        shown (`int`, *optional*, defaults to 6): How many evenly spaced queries, and how many of the hardest mistakes,
            the rankings keep of each task.
        progress (`bool`, *optional*, defaults to `True`): Whether to show a bar over the items.

    Returns:
        `(results, rankings)`, both ready for JSON. Results: the scores, as fractions of 1, per task, per meta-task,
        per distribution and per compositional kind; `overall` is the mean over tasks, as on MMEB, and
        `mean_of_meta_tasks` what UniME's paper prints beside it. Rankings: for some queries of each task the five best
        candidates and their scores, as indices into the task (see `gallery.py`).
    """
    start = time.perf_counter()
    store = encode if isinstance(encode, EmbeddingStore) else EmbeddingStore(encode)
    items_before, seconds_before = store.items, store.seconds  # a store may serve several benchmarks
    tasks, kinds = {}, {}
    rankings = {"retrieval": {}, "compositional": {}}
    every = [*retrieval_tasks, *compositional_tasks]
    with tqdm(total=sum(map(_size, every)), disable=not progress, desc=model, unit="item") as bar:
        for task in every:
            bar.set_postfix_str(task.name)
            embedded = [_finite(store(items), task, role) for role, items in task.roles.items()]
            bar.update(_size(task))
            if isinstance(task, RetrievalTask):
                tasks[task.name], rankings["retrieval"][task.name] = _search(task, *embedded, shown)
            else:
                images, captions, negatives = embedded
                true, false = (images * captions).sum(axis=1), (images * negatives).sum(axis=1)
                kinds[task.name] = compositional_accuracy(true, false)
                rankings["compositional"][task.name] = _shown_probes(true, false, shown)

    hits = [task["hit@1"] for task in tasks.values()]
    meta_tasks = mean_by_group((task["meta_task"], task["hit@1"]) for task in tasks.values())
    results = {
        "model": model,
        "benchmark": benchmark,
        "tasks": tasks,
        "meta_tasks": meta_tasks,
        "distributions": mean_by_group(
            (task["distribution"], task["hit@1"]) for task in tasks.values() if "distribution" in task
        ),
        "overall": float(np.mean(hits)) if hits else None,
        "mean_of_meta_tasks": float(np.mean(list(meta_tasks.values()))) if hits else None,
        "compositional": kinds,
        "compositional_groups": mean_by_group((kind.split("_")[0], accuracy) for kind, accuracy in kinds.items()),
        "seconds": round(time.perf_counter() - start, 1),
        "embedded": {
            "items": store.items - items_before,
            "seconds": round(store.seconds - seconds_before, 1),
        },
    }
    return results, rankings


def _size(task: RetrievalTask | CompositionalTask) -> int:
    return sum(map(len, task.roles.values()))


def _search(
    task: RetrievalTask, queries: np.ndarray, candidates: np.ndarray, shown: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    scores = queries @ candidates.T  # (queries, candidates)
    ranks = pessimistic_ranks(scores, task.positives, task.pools)
    result = {
        "meta_task": task.meta_task,
        "hit@1": recall_at_k(ranks, 1),
        **{f"R@{k}": recall_at_k(ranks, k) for k in (1, 5, 10)},
        "queries": len(task.queries),
        "candidates": task.candidates_per_query,
    }
    if task.distribution is not None:
        result |= {"distribution": task.distribution, "hit@1, ties right": first_is_best(scores, task.pools)}
    return result, _shown_queries(scores, ranks, task, shown)


def _finite(rows: np.ndarray, task: RetrievalTask | CompositionalTask, role: str) -> np.ndarray:
    broken = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(broken):
        raise ValueError(
            f"the embedding of {role} {broken[0]} of task '{task.name}' is not finite; "
            "look for overflow in half precision or for a training that diverged."
        )
    return rows


def _shown_queries(scores: np.ndarray, ranks: np.ndarray, task: RetrievalTask, count: int) -> dict[str, list[dict]]:
    def record(query: int) -> dict[str, Any]:
        pool = np.arange(len(task.candidates)) if task.pools is None else np.asarray(task.pools[query])
        right = np.isin(pool, task.positives[query])
        best_first = np.argsort(TIE * right - scores[query, pool], kind="stable")  # a tie is shown as it is counted
        top = pool[best_first[:5]]
        answer = max(task.positives[query], key=lambda candidate: scores[query, candidate])
        return {
            "query": int(query),
            "top": [int(candidate) for candidate in top],
            "scores": [round(float(scores[query, candidate]), 4) for candidate in top],
            "right": [bool(is_right) for is_right in right[best_first[:5]]],
            "answer": int(answer),
            "answer_score": round(float(scores[query, answer]), 4),
            "rank": int(ranks[query]),
        }

    def margin(query: int) -> float:
        seen = scores[query] if task.pools is None else scores[query, task.pools[query]]
        return round(float(seen.max()), 4) - round(float(scores[query, task.positives[query]].max()), 4)

    worst = sorted(np.flatnonzero(ranks > 0), key=margin, reverse=True)[:count]
    return {
        "examples": [record(query) for query in _evenly_spaced(len(ranks), count)],
        "mistakes": [record(query) for query in worst],
    }


def _shown_probes(true: np.ndarray, false: np.ndarray, count: int) -> dict[str, list[dict]]:
    def record(row: int) -> dict[str, Any]:
        return {"row": int(row), "true": round(float(true[row]), 4), "false": round(float(false[row]), 4)}

    mistakes = [row for row in np.argsort(true - false, kind="stable") if true[row] <= false[row]]
    return {
        "examples": [record(row) for row in _evenly_spaced(len(true), count)],
        "mistakes": [record(row) for row in mistakes[:count]],
    }


def _evenly_spaced(length: int, count: int) -> list[int]:
    """Indices that nobody chose, so that a gallery shows the ordinary case."""
    return [index * length // min(count, length) for index in range(min(count, length))]
