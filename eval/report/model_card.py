"""The model card of an evaluated checkpoint: metadata for the Hub, and tables for readers."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, eval_result_entries_to_yaml
from transformers import PreTrainedModel

from ...checkpoint import model_card
from ...checkpoint_safety import TRAINING_RECORD
from ...json_output import to_json
from ..benchmarks import BENCHMARKS
from .paper_scores import PUBLISHED


Results = Mapping[str, Any]

METRICS = {"hit@1": "hit_at_1", "ndcg@5": "ndcg_at_5", "spearman": "cosine_spearman"}  # ours -> the Hub's


def scores(results: Results) -> list[tuple[str, str, float]]:
    """Return every score of a model on a benchmark, means included, as `(task, metric, percent)`.

    If the evaluated set is not the one that scores are published of, only the tasks of the published size remain.
    """
    published = PUBLISHED.get(results["benchmark"])
    shares = [(name, METRICS[task["metric"]], task[task["metric"]]) for name, task in results["tasks"].items()]
    metrics = {metric for _, metric, _ in shares}
    # Outside of the mean of tasks; earlier results have none.
    shares += [
        (name, METRICS[task["metric"]], task[task["metric"]])
        for name, task in results.get("supplementary_tasks", {}).items()
    ]
    shares += [(name, "accuracy", accuracy) for name, accuracy in results["compositional"].items()]
    if published is not None and published.partial(results):
        names = published.evaluated(results)
        return [(name, metric, round(100 * share, 2)) for name, metric, share in shares if name in names]
    if metrics:
        shares.append(("mean of tasks", metrics.pop() if len(metrics) == 1 else "mean", results["overall"]))
    shares += [(f"mean of {group}", "accuracy", mean) for group, mean in results["compositional_groups"].items()]
    return [(name, metric, round(100 * share, 2)) for name, metric, share in shares]


def model_index(results: Results) -> list[EvalResult]:
    """Return the scores as entries of a card's `model-index`."""
    benchmark = results["benchmark"]
    return [
        EvalResult(
            task_type="retrieval",
            dataset_type=BENCHMARKS[benchmark].dataset or benchmark,
            dataset_name=f"{benchmark} {name}",
            dataset_config=name,  # the Hub merges entries with equal configurations
            metric_type=metric,
            metric_value=value,
        )
        for name, metric, value in scores(results)
    ]


def eval_results(results: Results) -> str | None:
    """Return the scores as a file of `.eval_results/`.

    Returns:
        `str`: YAML, or `None` if the benchmark is not a dataset on the Hub, or no task of it has the published size.
    """
    dataset, shown = BENCHMARKS[results["benchmark"]].dataset, scores(results)
    if dataset is None or not shown:
        return None
    run = results["run"]
    notes = f"python -m unime.eval, revision {run['revision']}, {run['dtype']}"
    entries = [
        EvalResultEntry(dataset_id=dataset, task_id=name, value=value, date=run["date"], notes=notes)
        for name, _, value in shown
    ]
    return yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False)


def training_table(stages: Sequence[Mapping[str, Any]]) -> str:
    """Return the settings of each training stage that differ from the defaults, as a Markdown table."""
    rows = [["", *(stage["trainer"].removesuffix("Trainer") for stage in stages)]]
    rows += [[name, *(stage[name] for stage in stages)] for name in ("started from", "rows", "processes", "steps")]
    names = dict.fromkeys(name for stage in stages for name in stage["arguments"])
    rows += [[f"`{name}`", *(stage["arguments"].get(name, "") for stage in stages)] for name in names]
    if any("adapter" in stage for stage in stages):
        adapters = [stage.get("adapter", {}) for stage in stages]
        rows.append(["LoRA", *(", ".join(f"{key} {value}" for key, value in adapter.items()) for adapter in adapters)])
    rows = [list(map(_cell, row)) for row in rows]
    rows.insert(1, ["---"] * (1 + len(stages)))
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _cell(value: Any) -> str:
    """Return a value as one table cell, escaped: the training record of a base checkpoint may be untrusted."""
    return escape(" ".join(str(value).split()), quote=False).replace("|", "\\|")


def evaluated_card(
    model: PreTrainedModel,
    name: str,
    evaluations: Sequence[str | Path] = (),
    title: str | None = None,
    notes: str | Path | None = None,
    commands: str | Path | None = None,
    **metadata: Any,
) -> dict[str, str]:
    """Create the card of a checkpoint and the files that belong to it.

    Args:
        model ([`UniMEModel`]): The model; its training record is read from the folder that it was loaded from.
        name (`str`): Name of the model in the metadata.
        evaluations (`Sequence`, *optional*): Folders written by `unime eval`.
        title (`str`, *optional*, defaults to the first): The model's column in the evaluations.
        notes (`str` or `Path`, *optional*): Markdown file on results, data, limits and licenses.
        commands (`str` or `Path`, *optional*): The shell script that trained the model.
        metadata: Passed to [`~unime.checkpoint.model_card`] (`license`, `base_model`, `datasets`, ...).

    Returns:
        `dict[str, str]`: File name in the checkpoint's folder -> text.

    Raises:
        ValueError: An evaluation has no column with the title.
    """
    index, sections, files = [], "", {}
    record = Path(model.name_or_path, TRAINING_RECORD)
    if record.is_file():
        files[TRAINING_RECORD] = record.read_text()
    for evaluation in map(Path, evaluations):
        columns = json.loads((evaluation / "results.json").read_text())
        results = columns.get(title or next(iter(columns)))
        if results is None:
            raise ValueError(f"{evaluation} has no column '{title}': it has {', '.join(columns)}")
        index += model_index(results)
        published = PUBLISHED.get(results["benchmark"])
        other = "a set other than the published " if published is not None and published.partial(results) else ""
        sections += (
            f"## Results on {other}{results['benchmark']}\n\n{(evaluation / 'table.md').read_text().strip()}\n\n"
        )
        files[f"results-{results['benchmark']}.json"] = to_json(columns, indent=2) + "\n"
        if (entries := eval_results(results)) is not None:
            files[f".eval_results/{results['benchmark']}.yaml"] = entries
    if notes is not None:
        sections += Path(notes).read_text().strip() + "\n\n"
    if record.is_file():
        sections += f"## Training\n\n{training_table(json.loads(record.read_text()))}\n\n"
    if commands is not None:
        sections += f"## How it was made\n\n```bash\n{Path(commands).read_text().strip()}\n```\n"
    if index:
        metadata |= {"model_name": name, "eval_results": index}
    return files | {"README.md": model_card(model, sections, **metadata)}


def write_files(folder: str | Path, files: Mapping[str, str]) -> None:
    """Write texts into a folder; file names may include subfolders.

    Args:
        folder (`str` or `Path`): The folder.
        files (`Mapping[str, str]`): File name -> text.
    """
    for name, text in files.items():
        path = Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
