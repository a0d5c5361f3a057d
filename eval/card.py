"""What a model card says of an evaluation: metadata that the Hub reads, and tables that people read."""

from collections.abc import Mapping
from typing import Any

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, eval_result_entries_to_yaml

from .benchmarks import BENCHMARKS


Results = Mapping[str, Any]

METRICS = {"hit@1": "hit_at_1", "ndcg@5": "ndcg_at_5", "spearman": "cosine_spearman"}  # here -> on the Hub


def scores(results: Results) -> list[tuple[str, str, float]]:
    """The scores of a model on a benchmark as `(task, metric, per cent)`: every task, kind and mean."""
    found = [(name, METRICS[task["metric"]], task[task["metric"]]) for name, task in results["tasks"].items()]
    found += [(kind, "accuracy", accuracy) for kind, accuracy in results["compositional"].items()]
    if results["tasks"]:
        used = {metric for _, metric, _ in found[: len(results["tasks"])]}
        found.append(("mean of tasks", used.pop() if len(used) == 1 else "mean", results["overall"]))
    found += [(f"mean of {group}", "accuracy", mean) for group, mean in results["compositional_groups"].items()]
    return [(name, metric, round(100 * share, 2)) for name, metric, share in found]


def model_index(results: Results) -> list[EvalResult]:
    """The scores as entries of a card's `model-index`."""
    benchmark = results["benchmark"]
    return [
        EvalResult(
            task_type="retrieval",
            dataset_type=BENCHMARKS[benchmark].dataset or benchmark,
            dataset_name=f"{benchmark} {name}",
            dataset_config=name,  # the Hub takes entries of one configuration for one task
            metric_type=metric,
            metric_value=value,
        )
        for name, metric, value in scores(results)
    ]


def eval_results(results: Results) -> str | None:
    """The scores as a file of `.eval_results/`; None where the benchmark is no dataset of the Hub."""
    dataset = BENCHMARKS[results["benchmark"]].dataset
    if dataset is None:
        return None
    run = results["run"]
    notes = f"python -m unime.eval, revision {run['revision']}, {run['dtype']}"
    entries = [
        EvalResultEntry(dataset_id=dataset, task_id=name, value=value, date=run["date"], notes=notes)
        for name, _, value in scores(results)
    ]
    return yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False)
