"""The tasks of an evaluation, and `evaluate`, which scores any encoder on them."""

import math
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from ..processing_unime import Item, split_content, to_item_dict
from .embedding_cache import EmbeddingCache
from .lazy_items import LazyItems
from .metrics import chance_level, compositional_accuracy, mean_by_group, spearman
from .report_examples import compositional_examples
from .reranking import Reranking
from .retrieval_scores import score_retrieval


Encode = Callable[[Sequence[Item]], np.ndarray]

META_TASKS = ("classification", "vqa", "retrieval", "grounding", "long", "documents", "moments", "text")
SUPPLEMENTARY_META_TASKS = ("plain", "dark", "unseen")  # reported beside the others, outside of all their means


@dataclass(frozen=True)
class RetrievalTask:
    """Queries that each retrieve one of their positives.

    Args:
        name (`str`): Name of the task, unique in an evaluation.
        meta_task (`str`): One of `META_TASKS` or `SUPPLEMENTARY_META_TASKS`; means are reported per meta-task.
        queries (`Sequence[Item]`): The queries.
        candidates (`Sequence[Item]`): The distinct candidates of all queries.
        positives (`list[list[int]]`): Indices of each query's positives among the candidates, at least one.
        pools (`list[list[int]]`, *optional*, defaults to all candidates): Indices of the candidates that each query is
            compared with, positives first, as in MMEB.
        distribution (`str`, *optional*): A second group to report means of: MMEB's "IND" and "OOD", or MMEB-V2's
            groups of documents.
        relevance (`list[list[float]]`, *optional*): Relevance of each of the `positives`, for ndcg.
        metric (`str`, *optional*): The task's score: `"hit@1"`, or `"R"`, `"ndcg"` or `"mAP"` with `"@"` and a number
            of places. By default `"ndcg@5"` if there is a `relevance`, as for visual documents, and else `"hit@1"`.
        baseline (`float`, *optional*): Score of an untrained method, to report beside the models'.

    Raises:
        ValueError: The parts differ in length, an index is out of range, or an item cannot be embedded.
    """

    name: str
    meta_task: str
    queries: Sequence[Item]
    candidates: Sequence[Item]
    positives: list[list[int]]
    pools: list[list[int]] | None = None
    distribution: str | None = None
    relevance: list[list[float]] | None = None
    metric: str | None = None
    baseline: float | None = None

    @property
    def roles(self) -> dict[str, Sequence[Item]]:
        """Return the items to embed by their role."""
        return {"query": self.queries, "candidate": self.candidates}

    @property
    def candidates_per_query(self) -> int:
        """Return the number of candidates per query; the rounded mean if pools differ in size."""
        return len(self.candidates) if self.pools is None else round(np.mean([len(pool) for pool in self.pools]))

    @property
    def chance(self) -> float:
        """Return the expected score of random similarities: the mean of `metrics.chance_level` over queries."""
        sizes = [len(self.candidates)] * len(self.queries) if self.pools is None else map(len, self.pools)
        relevance = [None] * len(self.queries) if self.relevance is None else self.relevance
        return float(
            np.mean(
                [
                    chance_level(self.main_metric, len(right), size, gains)
                    for right, size, gains in zip(self.positives, sizes, relevance, strict=True)
                ]
            )
        )

    @property
    def main_metric(self) -> str:
        """Return the name of the task's score."""
        return self.metric or ("hit@1" if self.relevance is None else "ndcg@5")

    def __post_init__(self):
        meta_tasks = (*META_TASKS, *SUPPLEMENTARY_META_TASKS)
        if self.meta_task not in meta_tasks:
            raise ValueError(
                f"task '{self.name}' has meta_task '{self.meta_task}'; use one of {', '.join(meta_tasks)}"
            )
        if not re.fullmatch(r"hit@1|(R|ndcg|mAP)@[1-9]\d*", self.main_metric):
            raise ValueError(
                f"task '{self.name}' has the metric '{self.metric}'; use hit@1, R@5, ndcg@10, mAP@5 or another number"
            )
        if not len(self.queries) == len(self.positives) > 0:
            raise ValueError(
                f"task '{self.name}' has {len(self.queries)} queries and {len(self.positives)} lists of positives; "
                "give one list per query, and at least one query"
            )
        if self.pools is not None and len(self.pools) != len(self.queries):
            raise ValueError(
                f"task '{self.name}' has {len(self.queries)} queries and {len(self.pools)} pools; "
                "give one pool per query, or none"
            )
        _check_items(self)
        if self.relevance is not None and list(map(len, self.relevance)) != list(map(len, self.positives)):
            raise ValueError(f"task '{self.name}' needs exactly one relevance per positive of each query")
        for query, pool in enumerate(self.pools or ()):
            if not all(0 <= candidate < len(self.candidates) for candidate in pool):
                raise ValueError(
                    f"query {query} of task '{self.name}' has the pool {pool}; "
                    f"use candidate indices from 0 to {len(self.candidates) - 1}"
                )
        for query, positives in enumerate(self.positives):
            allowed = range(len(self.candidates)) if self.pools is None else set(self.pools[query])
            if not positives or not all(candidate in allowed for candidate in positives):
                raise ValueError(
                    f"query {query} of task '{self.name}' has the positives {positives}; "
                    f"give at least one, all among its {len(allowed)} candidates"
                )


@dataclass(frozen=True)
class SimilarityTask:
    """Pairs of items with reference similarities, such as human scores (STS) or those of a teacher.

    Args:
        name (`str`): Name of the task, unique in an evaluation.
        first (`Sequence[Item]`): First item of each pair.
        second (`Sequence[Item]`): Second item of each pair.
        similarities (`Sequence[float]`): Reference similarity of each pair; only their order matters.
        meta_task (`str`, *optional*, defaults to `"text"`): One of `META_TASKS`.

    Raises:
        ValueError: The parts differ in length, the similarities are constant or not finite, or an item cannot be
            embedded.
    """

    name: str
    first: Sequence[Item]
    second: Sequence[Item]
    similarities: Sequence[float]
    meta_task: str = "text"

    @property
    def roles(self) -> dict[str, Sequence[Item]]:
        """Return the items to embed by their role."""
        return {"first": self.first, "second": self.second}

    def __post_init__(self):
        if not len(self.first) == len(self.second) == len(self.similarities) > 1:
            raise ValueError(
                f"task '{self.name}' has {len(self.first)} and {len(self.second)} items and {len(self.similarities)} "
                "similarities; give equally many of each, and at least two"
            )
        for pair, similarity in enumerate(self.similarities):
            if not isinstance(similarity, (int, float)) or not math.isfinite(similarity):
                raise ValueError(
                    f"pair {pair} of task '{self.name}' has the similarity {similarity!r}; give a finite number"
                )
        if min(self.similarities) == max(self.similarities):
            raise ValueError(
                f"all similarities of task '{self.name}' are {self.similarities[0]}, so there is no order to compare "
                "with; give different ones"
            )
        _check_items(self)


@dataclass(frozen=True)
class CompositionalTask:
    """Images with a true caption and a minimally edited false one (SugarCrepe), or with two true ones (SugarCrepe++).

    A row is correct if and only if the image is closer to each true caption than to its negative. With two true
    captions, the texts are compared without the image as well, as the task `text_NAME`: a row is correct if and only
    if the true captions are closer to each other than either is to the negative.

    Args:
        name (`str`): The perturbation, such as `swap_obj`; the part before the first `_` is its group.
        images (`Sequence[Item]`): The images.
        captions (`Sequence[Item]`): The true caption of each image.
        negatives (`Sequence[Item]`): The false caption of each image.
        paraphrases (`Sequence[Item]`, *optional*): A second true caption of each image, in other words.

    Raises:
        ValueError: The parts differ in length, or an item cannot be embedded.
    """

    name: str
    images: Sequence[Item]
    captions: Sequence[Item]
    negatives: Sequence[Item]
    paraphrases: Sequence[Item] | None = None

    @property
    def roles(self) -> dict[str, Sequence[Item]]:
        """Return the items to embed by their role."""
        paraphrases = {} if self.paraphrases is None else {"paraphrase": self.paraphrases}
        return {"image": self.images, "caption": self.captions, "negative": self.negatives, **paraphrases}

    @property
    def chance(self) -> float:
        """Return the expected accuracy of random scores: one of two, or of three, must be the lowest or highest."""
        return 1 / 2 if self.paraphrases is None else 1 / 3

    def __post_init__(self):
        lengths = {role: len(items) for role, items in self.roles.items()}
        if len(set(lengths.values())) > 1 or not len(self.images):
            counts = [f"{length} {role}s" for role, length in lengths.items()]
            raise ValueError(
                f"task '{self.name}' has {', '.join(counts[:-1])} and {counts[-1]}; give equally many of each, and at "
                "least one"
            )
        _check_items(self)


Task = RetrievalTask | SimilarityTask | CompositionalTask


def _check_items(task: Task) -> None:
    """Raise an error that names the first invalid item; images of [`LazyItems`] are checked when they are read."""
    for role, items in task.roles.items():
        stored: Sequence[Any] = items.stored if isinstance(items, LazyItems) else items
        for index, item in enumerate(stored):
            try:
                if isinstance(items, LazyItems):
                    item = _without_images(item)
                to_item_dict(item)
            except ValueError as error:
                raise ValueError(f"{role} {index} of task '{task.name}': {error}") from None


def _without_images(item: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a stored item with empty texts instead of images."""
    if item.get("content") is not None:
        content, _ = split_content(item["content"])
        return {**item, "content": [part if isinstance(part, str) else "" for part in content]}
    if item.get("image") is not None or item.get("video") is not None:
        return {"text": item.get("text") or "", "instruction": item.get("instruction")}
    return item


def evaluate(
    encode: Encode | EmbeddingCache,
    tasks: Sequence[RetrievalTask | SimilarityTask],
    compositional_tasks: Sequence[CompositionalTask] = (),
    *,
    model: str,
    benchmark: str = "openmoji",
    shown: int = 6,
    progress: bool | tqdm = True,
    reranking: Reranking | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Score an encoder on every task.

    A distinct item (same text, instruction and images) is embedded once, however many tasks use it.

    Args:
        encode (`Encode` or [`EmbeddingCache`]): Takes items, returns `(N, D)` float32 unit vectors.
        tasks (`Sequence[RetrievalTask | SimilarityTask]`): Retrieval and similarity tasks.
        compositional_tasks (`Sequence[CompositionalTask]`, *optional*): Compositional tasks.
        model (`str`): Name of the model in the results.
        benchmark (`str`, *optional*, defaults to `"openmoji"`): Name of the benchmark in the results.
        shown (`int`, *optional*, defaults to 6): Number of evenly spaced examples, and of the largest errors, to keep
            per task for a report.
        progress (`bool` or `tqdm`, *optional*, defaults to `True`): Show a progress bar over the items, or update one
            that several benchmarks share.
        reranking ([`Reranking`], *optional*): What reranks the best candidates of retrieval tasks, and compares the
            captions of compositional ones; texts are compared without it.

    Returns:
        `(results, rankings)`, both ready for JSON. `results` has the scores, as fractions of 1, per task (the key
        `metric` names the task's score, `chance` is that of random similarities), per meta-task, per distribution and
        per perturbation; `overall` is the mean over tasks, as on MMEB, and `mean_of_meta_tasks` the mean that UniME's
        paper prints as well. Tasks of a supplementary meta-task are in none of these: `supplementary_tasks` has their
        scores, `supplementary_means` those per meta-task. `rankings` has the examples of each retrieval and
        compositional task as indices (see `report/gallery.py`).

    Raises:
        ValueError: Two tasks share a name, or an embedding has the wrong shape or is not finite.
    """
    start = time.perf_counter()
    cache = encode if isinstance(encode, EmbeddingCache) else EmbeddingCache(encode)
    # Benchmarks may share a cache.
    items_before, seconds_before = cache.embedded_items, cache.embedding_seconds
    scores_of_task, accuracies = {}, {}
    compositional_rows: dict[str, int] = {}
    compositional_chance: dict[str, float] = {}
    rankings = {"retrieval": {}, "compositional": {}}
    all_tasks = [*tasks, *compositional_tasks]
    names = Counter(task.name for task in all_tasks)
    if names and max(names.values()) > 1:
        raise ValueError(f"two tasks are named '{names.most_common(1)[0][0]}'; give each a unique name")
    if isinstance(progress, bool):
        progress_bar = tqdm(total=num_items(all_tasks), disable=not progress, desc=model, unit="item")
    else:
        progress_bar = nullcontext(progress)
    with progress_bar as bar:
        for task in all_tasks:
            bar.set_postfix_str(task.name)
            embeddings = [_check_finite(cache(items, bar.update), task, role) for role, items in task.roles.items()]
            match task:
                case RetrievalTask():
                    scores_of_task[task.name], rankings["retrieval"][task.name] = score_retrieval(
                        task, embeddings[0], embeddings[1], shown, reranking
                    )
                case SimilarityTask():
                    scores_of_task[task.name] = _score_similarity(task, *embeddings)
                case CompositionalTask():
                    pairs = _compare_captions(*embeddings)
                    if reranking is not None:
                        pairs[0] = _reranked_captions(task, reranking)
                    rankings["compositional"][task.name] = compositional_examples(*pairs[0], shown)
                    for name, pair in zip((task.name, f"text_{task.name}"), pairs, strict=False):
                        accuracies[name], compositional_rows[name] = compositional_accuracy(*pair), len(pair[0])
                        compositional_chance[name] = task.chance

    supplementary = {
        name: scores for name, scores in scores_of_task.items() if scores["meta_task"] in SUPPLEMENTARY_META_TASKS
    }
    scores_of_task = {name: scores for name, scores in scores_of_task.items() if name not in supplementary}
    main_scores = {name: scores[scores["metric"]] for name, scores in scores_of_task.items()}
    meta_tasks = mean_by_group((scores["meta_task"], main_scores[name]) for name, scores in scores_of_task.items())
    results = {
        "model": model,
        "benchmark": benchmark,
        "tasks": scores_of_task,
        "meta_tasks": meta_tasks,
        "distributions": mean_by_group(
            (scores["distribution"], main_scores[name])
            for name, scores in scores_of_task.items()
            if "distribution" in scores
        ),
        "overall": float(np.mean(list(main_scores.values()))) if main_scores else None,
        "mean_of_meta_tasks": float(np.mean(list(meta_tasks.values()))) if main_scores else None,
        "supplementary_tasks": supplementary,
        "supplementary_means": mean_by_group(
            (scores["meta_task"], scores[scores["metric"]]) for scores in supplementary.values()
        ),
        "compositional": accuracies,
        "compositional_groups": mean_by_group((name.split("_")[0], score) for name, score in accuracies.items()),
        "compositional_rows": compositional_rows,
        "compositional_chance": compositional_chance,
        "seconds": round(time.perf_counter() - start, 1),
        "embedded": {
            "items": cache.embedded_items - items_before,
            "seconds": round(cache.embedding_seconds - seconds_before, 1),
        },
    }
    return results, rankings


def _reranked_captions(task: CompositionalTask, reranking: Reranking) -> tuple[np.ndarray, np.ndarray]:
    true, false = reranking.compare_captions(task.images, task.captions, task.negatives)
    if task.paraphrases is not None:
        also_true, also_false = reranking.compare_captions(task.images, task.paraphrases, task.negatives)
        true, false = np.minimum(true, also_true), np.maximum(false, also_false)
    return true, false


def num_items(tasks: Iterable[Task]) -> int:
    """Return the number of items that tasks embed; an item that occurs twice counts twice."""
    return sum(len(items) for task in tasks for items in task.roles.values())


def _compare_captions(
    images: np.ndarray, captions: np.ndarray, negatives: np.ndarray, paraphrases: np.ndarray | None = None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return similarities of which the first must exceed the second; with two true captions also between texts."""
    true, false = (images * captions).sum(axis=1), (images * negatives).sum(axis=1)
    if paraphrases is None:
        return [(true, false)]
    true = np.minimum(true, (images * paraphrases).sum(axis=1))
    between = (captions * paraphrases).sum(axis=1)
    to_negative = np.maximum((captions * negatives).sum(axis=1), (paraphrases * negatives).sum(axis=1))
    return [(true, false), (between, to_negative)]


def _score_similarity(task: SimilarityTask, first: np.ndarray, second: np.ndarray) -> dict[str, Any]:
    score = spearman((first * second).sum(axis=1), task.similarities)
    return {"meta_task": task.meta_task, "metric": "spearman", "spearman": score, "pairs": len(first)}


def _check_finite(embeddings: np.ndarray, task: Task, role: str) -> np.ndarray:
    nonfinite = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
    if len(nonfinite):
        raise ValueError(
            f"the embedding of {role} {nonfinite[0]} of task '{task.name}' is not finite; "
            "check for overflow in half precision or for a training that diverged"
        )
    return embeddings
