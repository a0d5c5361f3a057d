"""Run a study: a grid of short trainings over several seeds, summarised in tables and plots.

    make study
    python recipes/study.py recipes/study/filter.yaml
    python recipes/study.py recipes/study/filter.yaml --cell "beta 0" --seed 2

A study is a YAML file. `steps` are commands of this project (or the name of a file of steps that studies share),
`model` is the output of the step that is evaluated, and each entry of `cells` lists its changes to the settings of the
steps or of the `evaluation` that follows them. "{stage1}" stands for the output folder of the step `stage1`, "{seed}"
for the seed. A step runs when another one needs it, and only once: its folder is named by a hash of its settings, so
cells share common steps and an interrupted study resumes.

Scores are written to `studies/NAME.json`, from which `study_page.py` builds tables and plots. Cells with scores are
skipped unless `--cell` names one: then the script reruns it if its folder is absent, and prints the new scores beside
the saved ones with the expected difference. `--save-rerun` adds the new scores to the file.
"""

import argparse
import hashlib
import itertools
import json
import re
import time
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock
from launch import ROOT, launch
from study_page import CURVES, read_scores, rerun_pairs, rerun_table, table, write_page


SCORES = ROOT / "studies"
GROUPS = ("meta_tasks", "compositional_groups")
STUDY_FIELDS = ("question", "claims", "answer", "size", "seeds")  # saved beside the scores


class StepRunner:
    """Runs the steps of one cell with one seed.

    Args:
        steps (`dict`): Name of each step -> its settings: `script` and the options of the script.
        seed (`int`): Value of "{seed}".
        folder (`Path`): Parent of the output folders, relative to the project root.
    """

    def __init__(self, steps: dict[str, dict[str, Any]], seed: int, folder: Path):
        self.steps, self.seed, self.folder = steps, seed, folder

    def resolve(self, value: Any, run: bool = False) -> str:
        """Return a setting as a string with its placeholders replaced; with `run`, run the steps it refers to."""

        def replacement(match: re.Match) -> str:
            if match[1] == "seed":
                return str(self.seed)
            return str(self.run(match[1]) if run else self.folder / self.folder_name(match[1]))

        return re.sub(r"\{(\w+)\}", replacement, str(value))

    def folder_name(self, step: str) -> str:
        """Return the name of a step's folder: a hash of its settings, including those of the steps it needs.

        Raises:
            ValueError: The study has no such step.
        """
        if step not in self.steps:
            raise ValueError(f"unknown step '{step}': the study has {', '.join(self.steps)}")
        settings = {key: self.resolve(value) for key, value in self.steps[step].items()}
        config = yaml.safe_load((ROOT / settings["config"]).read_text()) if "config" in settings else {}
        text = json.dumps([settings, config]).replace(f"{self.folder}/", "")
        return f"{step}-{hashlib.blake2b(text.encode(), digest_size=6).hexdigest()}"

    def run(self, step: str) -> Path:
        """Run the command of a step unless its output exists; return its folder, relative to the project root."""
        output = self.folder / self.folder_name(step)
        done = ROOT / output / "done.json"
        done.parent.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{done.parent}.lock"):  # another study may need the same step at the same time
            if not done.exists():
                settings = {key: self.resolve(value, run=True) for key, value in self.steps[step].items()}
                script = settings.pop("script").split()
                arguments = [word for key, value in settings.items() for word in (f"--{key}", value)]
                start = time.monotonic()
                launch(*script, *arguments, "--output_dir", str(output))
                seconds = round(time.monotonic() - start)
                done.write_text(json.dumps({"command": [*script, *arguments], "seconds": seconds}))
        return output


def read_study(path: Path) -> dict[str, Any]:
    """Read a study's settings; a file name in `steps` is replaced by the steps in that file.

    Raises:
        ValueError: A cell changes a step that does not exist.
    """
    study = yaml.safe_load(path.read_text())
    if isinstance(study["steps"], str):
        study["steps"] = yaml.safe_load((path.parent / study["steps"]).read_text())
    for cell, changes in study["cells"].items():
        unknown = changes.keys() - {"model", "evaluation", *study["steps"]}
        if unknown:
            raise ValueError(f"the cell '{cell}' changes {', '.join(sorted(unknown))}: the study has no such step")
    return study


def cell_runner(study: dict[str, Any], cell: str, seed: int, folder: Path) -> tuple[StepRunner, str]:
    """Return the runner of one cell with one seed, including its evaluation, and the model that is evaluated."""
    changes = dict(study["cells"][cell])
    model = changes.pop("model", study["model"])
    steps = {name: settings | changes.get(name, {}) for name, settings in study["steps"].items()}
    evaluation = {"script": "-m unime.eval", "models": f"model={model}", "size": study["size"]}
    steps["evaluation"] = evaluation | changes.get("evaluation", {})
    return StepRunner(steps, seed, folder), model


def evaluate(runner: StepRunner, model: str) -> dict[str, Any]:
    """Run the steps and the evaluation of one cell with one seed.

    Returns:
        `dict`: `tasks`, hit@1 of every task and accuracy of every kind of compositional edit, and their `means`, all
        as fractions of 1; `curves` of the training; `made`, the folder name of the evaluation.
    """
    output = runner.run("evaluation")
    results = json.loads((ROOT / output / "results.json").read_text())["model"]
    tasks = {name: task[task["metric"]] for name, task in results["tasks"].items()} | results["compositional"]
    means = {name: score for group in GROUPS for name, score in results[group].items()}
    scores = {"made": output.name, "tasks": tasks, "means": means | {"all tasks": results["overall"]}}
    return scores | {"curves": training_curves(ROOT / runner.resolve(model) / "trainer_state.json")}


def training_curves(state_file: Path) -> dict[str, list[float]]:
    """Read the logged values of a training by name, with the `step` of each; empty if there was no training."""
    history = json.loads(state_file.read_text())["log_history"] if state_file.exists() else []
    history = [entry for entry in history if "loss" in entry]
    return {name: [round(entry[name], 4) for entry in history] for name in CURVES if history and name in history[0]}


def load_scores(file: Path, study: dict[str, Any], folder: Path) -> dict[str, dict[str, Any]]:
    """Load the saved scores of each cell, without the scores of outdated settings."""
    saved = json.loads(file.read_text())["scores"] if file.exists() else {}
    scores: dict[str, dict[str, Any]] = {cell: {} for cell in study["cells"]}
    for cell, seeds in scores.items():
        for seed, result in saved.get(cell, {}).items():
            if result["made"] == cell_runner(study, cell, int(seed), folder)[0].folder_name("evaluation"):
                seeds[seed] = result
            else:
                print(f"The settings of '{cell}' have changed since its run with seed {seed}: dropping its scores.")
    return scores


def save_scores(file: Path, study: dict[str, Any], scores: dict[str, dict[str, Any]]) -> None:
    """Save the scores with the texts of the study that the page shows."""
    head = {name: study[name] for name in STUDY_FIELDS if name in study} | {"cells": list(study["cells"])}
    done = {cell: dict(sorted(seeds.items())) for cell, seeds in scores.items() if seeds}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(head | {"scores": done}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="+", type=Path, help="YAML files")
    parser.add_argument("--cell", help="run this cell only, even if it has scores")
    parser.add_argument("--seed", type=int, help="run this seed only; it may be a new one")
    parser.add_argument("--save-rerun", action="store_true", help="save the scores of a cell that already has some")
    parser.add_argument("--output", type=Path, default=Path("runs/study"), help="parent of the output folders")
    parser.add_argument("--scores", type=Path, default=SCORES, help="folder of the scores and the page")
    options = parser.parse_args()
    for path in options.studies:
        study = read_study(path)
        if options.cell and options.cell not in study["cells"]:
            raise ValueError(f"{path} has no cell '{options.cell}': it has {', '.join(study['cells'])}")
        file = options.scores / f"{path.stem}.json"
        scores = load_scores(file, study, options.output)
        seeds = [options.seed] if options.seed is not None else study["seeds"]
        for seed, cell in itertools.product(seeds, [options.cell] if options.cell else study["cells"]):
            runner, model = cell_runner(study, cell, seed, options.output)
            if str(seed) not in scores[cell]:
                scores[cell][str(seed)] = evaluate(runner, model)
                save_scores(file, study, scores)
            elif options.cell:
                result, saved = evaluate(runner, model), scores[cell][str(seed)]
                print(rerun_table(result, saved, rerun_pairs(read_scores(SCORES))))
                if options.save_rerun:
                    saved.setdefault("again", []).append(result["means"])
        save_scores(file, study, scores)
        write_page(options.scores)
        print(f"\n{study['question']}\n\n{table({cell: seeds for cell, seeds in scores.items() if seeds})}")


if __name__ == "__main__":
    main()
