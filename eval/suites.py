"""Suites: named lists of benchmarks with the means that papers and leaderboards report.

MMEB-V2's leaderboard takes hit@1 of images and videos and ndcg@5 of visual documents; Image, Video and VisDoc are the
means over their 36, 18 and 24 subsets, and All is the mean over the 78 (VLM2Vec, `experiments/report_score_v2.py`: the
per-subset scores of its `experiments/public/all_scores/v2.0.0` give the leaderboard's 58.02 for VLM2Vec-V2).
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from statistics import fmean
from typing import Any

from .benchmarks import subset_names


Results = Mapping[str, Any]


@dataclass(frozen=True)
class Suite:
    """Benchmarks that are evaluated together.

    Args:
        parts (`Mapping[str, tuple[str, ...]]`): Title of each part -> its benchmarks. The score of a part is the mean
            over all their tasks; groups of perturbations count as tasks.
        total (`str`, *optional*): Title of the mean over the tasks of all parts, if the suite has one.
        has_leaderboard (`bool`, *optional*, defaults to `False`): Write a file per model in the form of MMEB's
            leaderboard.
        mteb (`str`, *optional*): Name of a benchmark of mteb, which runs instead of parts (see `mteb_suites.py`).
    """

    parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    total: str | None = None
    has_leaderboard: bool = False
    mteb: str | None = None

    @property
    def benchmarks(self) -> list[str]:
        """Return the benchmarks of all parts."""
        return [name for names in self.parts.values() for name in names]


_SHORT, _LONG = ("flickr30k", "coco"), ("sharegpt4v", "urban1k")

SUITES = {
    "paper": Suite(
        {"MMEB": ("mmeb",), "Short captions": _SHORT, "Long captions": _LONG, "Compositional": ("sugarcrepe",)}
    ),
    "mmeb": Suite({"MMEB": ("mmeb",)}),
    "mmeb-v2": Suite({"Image": ("mmeb",), "Video": ("mmeb-v2-video",), "VisDoc": ("mmeb-v2-documents",)}, "All", True),
    "retrieval": Suite({"Short captions": _SHORT, "Long captions": (*_LONG, "docci", "dci"), "CIRCO": ("circo",)}),
    "compositional": Suite({"SugarCrepe": ("sugarcrepe",), "SugarCrepe++": ("sugarcrepe-pp",)}),
    "text": Suite({"STS": ("sts",), "NLI": ("nli",)}),
    "mrmr": Suite({"MRMR": ("mrmr",)}),
    "m-beir": Suite({"M-BEIR": ("m-beir",)}),
    "mmeb-v3": Suite({"Text": ("mmeb-v3-text",), "Tools": ("mmeb-v3-tools",)}),
    "mieb-lite": Suite(mteb="MIEB(lite)"),
    "vidore-v3": Suite(mteb="ViDoRe(v3)"),
    "mteb-eng-v2": Suite(mteb="MTEB(eng, v2)"),
    "jina-vdr": Suite(mteb="JinaVDR"),
}


def find_suite(name: str) -> Suite:
    """Return the suite of a name.

    Raises:
        ValueError: The name is unknown.
    """
    if name not in SUITES:
        raise ValueError(f"unknown suite {name!r}: choose from {', '.join(SUITES)}")
    return SUITES[name]


def suite_results(name: str, model: str, results: Mapping[str, Results]) -> dict[str, Any]:
    """Combine the results of a model on the benchmarks of a suite.

    Args:
        name (`str`): Key of `SUITES`.
        model (`str`): Title of the model.
        results (`Mapping[str, Results]`): Benchmark -> results of `tasks.evaluate`, for those that were evaluated.

    Returns:
        `dict`: `scores` are the means of the suite, as fractions of 1, in the order of a table: of all parts, then of
        each part and its groups, titled `PART: GROUP`. `evaluated` are the numbers of tasks of each mean, `expected`
        those of the whole suite. `tasks`, `compositional` and `compositional_rows` join those of the benchmarks, and
        `runs` has their settings.
    """
    suite = SUITES[name]
    scores_of_part: dict[str, list[float]] = {}
    expected, groups = {}, {}
    for part, names in suite.parts.items():
        # A subset of MRMR may have several tasks.
        expected[part] = sum(
            max(len(subset_names(name) or ()), len(_main_scores(results[name])) if name in results else 0)
            for name in names
        )
        part_results = [results[name] for name in names if name in results]
        if part_results:
            scores_of_part[part] = [score for result in part_results for score in _main_scores(result).values()]
            groups[part] = {group: score for result in part_results for group, score in _group_scores(result).items()}
    scores, evaluated = {}, {}
    if suite.total is not None:
        all_scores = [score for part in scores_of_part.values() for score in part]
        scores[suite.total], evaluated[suite.total] = fmean(all_scores), len(all_scores)
        expected[suite.total] = sum(expected.values())
    for part, part_scores in scores_of_part.items():
        scores[part], evaluated[part] = fmean(part_scores), len(part_scores)
        scores |= {f"{part}: {group}": score for group, score in groups[part].items()}
    joined = {key: _join(results, key) for key in ("tasks", "compositional", "compositional_rows")}
    return {
        "model": model,
        "benchmark": name,
        "scores": scores,
        "evaluated": evaluated,
        "expected": expected,
        **joined,
        "runs": {benchmark: result["run"] for benchmark, result in results.items() if "run" in result},
    }


def _join(results: Mapping[str, Results], key: str) -> dict[str, Any]:
    """Join a part of the results; a task that several benchmarks have is named with its benchmark."""
    counts = Counter(task for result in results.values() for task in result[key])
    return {
        task if counts[task] == 1 else f"{benchmark}: {task}": value
        for benchmark, result in results.items()
        for task, value in result[key].items()
    }


def _main_scores(results: Results) -> dict[str, float]:
    """Return the score of each task, and of each group of perturbations."""
    tasks = {name: task[task["metric"]] for name, task in results["tasks"].items()}
    return tasks | results["compositional_groups"]


def _group_scores(results: Results) -> dict[str, float]:
    """Return the means that a benchmark reports, or the scores of its tasks if there are none."""
    meta_tasks = results["meta_tasks"] if len(results["meta_tasks"]) > 1 else {}
    groups = {**meta_tasks, **results["distributions"]}
    if groups:
        return groups
    scores = _main_scores(results)
    return scores if len(scores) > 1 else {}


def leaderboard_entry(name: str, model: str, results: Mapping[str, Results]) -> dict[str, Any]:
    """Return a model's scores in the form that MMEB's leaderboard takes.

    The form is that of VLM2Vec's `experiments/report_score_v2.py`: metrics per modality and subset, `FILE_N/A` for a
    subset that was not evaluated, and the page subsets of ViDoSeek and MMLongBench under their corrected names. A tie
    is wrong in these scores, while its order is undefined there. Fields of `metadata` that are null are for the
    submitter.

    Args:
        name (`str`): Key of `SUITES`.
        model (`str`): Title of the model.
        results (`Mapping[str, Results]`): Benchmark -> results of `tasks.evaluate`.
    """
    metrics = {}
    for part, names in SUITES[name].parts.items():
        tasks = {task: scores for each in names if each in results for task, scores in results[each]["tasks"].items()}
        metrics[part.lower()] = {
            f"{subset}-fixed" if subset in ("ViDoSeek-page", "MMLongBench-page") else subset: _leaderboard_scores(
                tasks.get(subset)
            )
            for each in names
            for subset in subset_names(each) or ()
        }
    to_fill = ("model_backbone", "model_size", "embedding_dimension", "max_length_tokens", "model_release_date", "url")
    metadata = {"model_name": model, **dict.fromkeys(to_fill), "data_source": "Self-Reported"}
    generated = {"report_generated_date": datetime.now(UTC).isoformat(timespec="seconds")}
    return {"metadata": metadata | generated, "metrics": metrics}


def _leaderboard_scores(task: Mapping[str, Any] | None) -> dict[str, float] | str:
    if task is None:
        return "FILE_N/A"
    scores = {f"hit@{k}": task[f"R@{k}"] for k in (1, 5, 10)}
    if "ndcg@5" in task:
        scores["ndcg_linear@5"] = task["ndcg@5"]
    return scores | {"num_pred": task["queries"], "num_data": task["queries"]}
