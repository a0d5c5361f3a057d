"""What an evaluation asks, and the one function that answers it for any embedder."""

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from ..processing_unime import Item, to_item_dict
from .embedding_cache import EmbeddingCache
from .lazy_items import LazyItems
from .metrics import (
    argmax_ties_to_first,
    compositional_accuracy,
    mean_by_group,
    ndcg_at_k,
    pessimistic_ranks,
    recall_at_k,
    spearman,
)
from .report_examples import shown_probes, shown_queries


Encode = Callable[[Sequence[Item]], np.ndarray]

META_TASKS = ("classification", "vqa", "retrieval", "grounding", "long", "documents", "moments", "text")


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
        distribution (`str`, *optional*): A second group that means are taken over: MMEB's "IND" and "OOD", MMEB-V2's
            groups of documents.
        relevance (`list[list[float]]`, *optional*): For each query how relevant each of its `positives` is. Makes
            ndcg@5 the task's metric, as of visual documents, in place of hit@1.
    """

    name: str
    meta_task: str
    queries: Sequence[Item]
    candidates: Sequence[Item]
    positives: list[list[int]]
    pools: list[list[int]] | None = None
    distribution: str | None = None
    relevance: list[list[float]] | None = None

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
        _check_items(self)
        if self.relevance is not None and list(map(len, self.relevance)) != list(map(len, self.positives)):
            raise ValueError(f"task '{self.name}' needs the relevance of each positive of each query, and no other.")
        for query, pool in enumerate(self.pools or ()):
            if not all(0 <= candidate < len(self.candidates) for candidate in pool):
                raise ValueError(
                    f"query {query} of task '{self.name}' has the pool {pool}; "
                    f"name candidates from 0 to {len(self.candidates) - 1}."
                )
        for query, right in enumerate(self.positives):
            allowed = range(len(self.candidates)) if self.pools is None else set(self.pools[query])
            if not right or not all(candidate in allowed for candidate in right):
                raise ValueError(
                    f"query {query} of task '{self.name}' has the positives {right}; "
                    f"name at least one, all among its {len(allowed)} candidates."
                )


@dataclass(frozen=True)
class SimilarityTask:
    """Pairs whose similarities should rank as the given ones do, such as human judgements (STS) or a teacher's.

    Args:
        name (`str`): Name of the task, unique in an evaluation.
        first, second (`Sequence[Item]`): The sides of the pairs, equally long.
        similarities (`Sequence[float]`): What was judged; only the order counts.
        meta_task (`str`, *optional*, defaults to `"text"`): One of `META_TASKS`.
    """

    name: str
    first: Sequence[Item]
    second: Sequence[Item]
    similarities: Sequence[float]
    meta_task: str = "text"

    @property
    def roles(self) -> dict[str, Sequence[Item]]:
        """What there is to embed, by what it is."""
        return {"first": self.first, "second": self.second}

    def __post_init__(self):
        if not len(self.first) == len(self.second) == len(self.similarities) > 1:
            raise ValueError(
                f"task '{self.name}' has {len(self.first)} and {len(self.second)} items and {len(self.similarities)} "
                "similarities; give equally many of each, and at least two."
            )
        for pair, similarity in enumerate(self.similarities):
            if not isinstance(similarity, (int, float)) or not math.isfinite(similarity):
                raise ValueError(
                    f"pair {pair} of task '{self.name}' has the similarity {similarity!r}; give a finite number."
                )
        if min(self.similarities) == max(self.similarities):
            raise ValueError(f"all similarities of task '{self.name}' are {self.similarities[0]}; there is no rank.")
        _check_items(self)


@dataclass(frozen=True)
class CompositionalTask:
    """Images with a true caption and a false one that differs by a small edit (SugarCrepe).

    Row i is right if and only if the image is nearer to its caption than to its negative.

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
        _check_items(self)


Task = RetrievalTask | SimilarityTask | CompositionalTask


def _check_items(task: Task) -> None:
    """Name an item that cannot be embedded; images that are stored are read later."""
    for role, items in task.roles.items():
        stored = items.stored if isinstance(items, LazyItems) else items
        for number, item in enumerate(stored):
            if isinstance(items, LazyItems) and item.get("image") is not None:
                item = {"text": item.get("text") or "", "instruction": item.get("instruction")}
            try:
                to_item_dict(item)
            except ValueError as error:
                raise ValueError(f"{role} {number} of task '{task.name}': {error}") from None


def evaluate(
    encode: Encode | EmbeddingCache,
    tasks: Sequence[RetrievalTask | SimilarityTask],
    compositional_tasks: Sequence[CompositionalTask] = (),
    *,
    model: str,
    benchmark: str = "openmoji",
    shown: int = 6,
    progress: bool = True,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Scores an embedder on every task.

    A distinct item (same text, instruction and images) is embedded once, however many tasks use it.

    Args:
        encode (`Encode` or `EmbeddingStore`): Items -> `(N, D)` float32 unit rows.
        tasks (`Sequence[RetrievalTask | SimilarityTask]`): Searches, and pairs.
        compositional_tasks (`Sequence[CompositionalTask]`, *optional*): The probes.
        model (`str`): What is evaluated; goes into the results.
        benchmark (`str`, *optional*, defaults to `"openmoji"`): What it is evaluated on; goes into the results.
        shown (`int`, *optional*, defaults to 6): How many evenly spaced queries, and how many of the hardest mistakes,
            the rankings keep of each task.
        progress (`bool`, *optional*, defaults to `True`): Whether to show a bar over the items.

    Returns:
        `(results, rankings)`, both ready for JSON. Results: the scores, as fractions of 1, per task (that which its
        `metric` names is *the* score), per meta-task, per distribution and per compositional kind; `overall` is the
        mean over tasks, as on MMEB, and `mean_of_meta_tasks` what UniME's paper prints beside it. Rankings: for some
        queries of each search the five best candidates and their scores, as indices into the task (see `gallery.py`).
    """
    start = time.perf_counter()
    store = encode if isinstance(encode, EmbeddingCache) else EmbeddingCache(encode)
    items_before, seconds_before = store.items, store.seconds  # a store may serve several benchmarks
    found, kinds = {}, {}
    rankings = {"retrieval": {}, "compositional": {}}
    every = [*tasks, *compositional_tasks]
    names = Counter(task.name for task in every)
    if names and max(names.values()) > 1:
        raise ValueError(f"two tasks are called '{names.most_common(1)[0][0]}'; give each a name of its own.")
    with tqdm(total=sum(map(_size, every)), disable=not progress, desc=model, unit="item") as bar:
        for task in every:
            bar.set_postfix_str(task.name)
            embedded = [_finite(store(items), task, role) for role, items in task.roles.items()]
            bar.update(_size(task))
            match task:
                case RetrievalTask():
                    found[task.name], rankings["retrieval"][task.name] = _search(task, *embedded, shown)
                case SimilarityTask():
                    found[task.name] = _compare(task, *embedded)
                case CompositionalTask():
                    images, captions, negatives = embedded
                    true, false = (images * captions).sum(axis=1), (images * negatives).sum(axis=1)
                    kinds[task.name] = compositional_accuracy(true, false)
                    rankings["compositional"][task.name] = shown_probes(true, false, shown)

    scored = {name: task[task["metric"]] for name, task in found.items()}
    meta_tasks = mean_by_group((task["meta_task"], scored[name]) for name, task in found.items())
    results = {
        "model": model,
        "benchmark": benchmark,
        "tasks": found,
        "meta_tasks": meta_tasks,
        "distributions": mean_by_group(
            (task["distribution"], scored[name]) for name, task in found.items() if "distribution" in task
        ),
        "overall": float(np.mean(list(scored.values()))) if found else None,
        "mean_of_meta_tasks": float(np.mean(list(meta_tasks.values()))) if found else None,
        "compositional": kinds,
        "compositional_groups": mean_by_group((kind.split("_")[0], accuracy) for kind, accuracy in kinds.items()),
        "seconds": round(time.perf_counter() - start, 1),
        "embedded": {
            "items": store.items - items_before,
            "seconds": round(store.seconds - seconds_before, 1),
        },
    }
    return results, rankings


def _size(task: Task) -> int:
    return sum(map(len, task.roles.values()))


def _search(
    task: RetrievalTask, queries: np.ndarray, candidates: np.ndarray, shown: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    scores = queries @ candidates.T  # (queries, candidates)
    ranks = pessimistic_ranks(scores, task.positives, task.pools)
    result = {
        "meta_task": task.meta_task,
        "metric": "hit@1" if task.relevance is None else "ndcg@5",
        "hit@1": recall_at_k(ranks, 1),
        **{f"R@{k}": recall_at_k(ranks, k) for k in (1, 5, 10)},
        "queries": len(task.queries),
        "candidates": task.candidates_per_query,
    }
    if task.distribution is not None:
        result["distribution"] = task.distribution
    if task.relevance is not None:
        result["ndcg@5"] = ndcg_at_k(scores, task.positives, task.relevance, 5, task.pools)
    if task.distribution is not None and task.pools is not None:
        result["hit@1, ties right"] = argmax_ties_to_first(scores, task.pools)
    return result, shown_queries(scores, ranks, task.positives, task.pools, shown)


def _compare(task: SimilarityTask, first: np.ndarray, second: np.ndarray) -> dict[str, Any]:
    score = spearman((first * second).sum(axis=1), task.similarities)
    return {"meta_task": task.meta_task, "metric": "spearman", "spearman": score, "pairs": len(first)}


def _finite(rows: np.ndarray, task: Task, role: str) -> np.ndarray:
    broken = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(broken):
        raise ValueError(
            f"the embedding of {role} {broken[0]} of task '{task.name}' is not finite; "
            "look for overflow in half precision or for a training that diverged."
        )
    return rows
