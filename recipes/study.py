"""Ask questions of the method with a grid of small runs over several seeds; answer them with tables and plots.

    make study
    python recipes/study.py recipes/study/filter.yaml
    python recipes/study.py recipes/study/filter.yaml --cell "beta 0" --seed 2

A study is a YAML file: `steps` are commands of this project (or a file of them, which studies share), `model` is what
the last of them leaves to be evaluated, and each of the `cells` says what it changes, of the steps or of the
`evaluation` that follows them. "{stage1}" stands for the folder that the step of this name writes, "{seed}" for the
seed. A step is made when another one asks for it, and once: its folder is named by a hash of its settings, so that
cells share what they have in common and a study that was cut off goes on.

Scores go to `studies/NAME.json`, from which `study_page.py` writes tables and plots. Cells that have their
scores are not made again, unless `--cell` names one: then what was found now stands beside what was found before, and
how far the two may be apart; `--keep` adds it to what says so.
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
from study_page import CURVES, again, made_again, read_scores, table, write_page


SCORES = ROOT / "studies"
GROUPS = ("meta_tasks", "compositional_groups")
KEPT = ("question", "claims", "answer", "size", "seeds")  # of the study, beside its scores


class Maker:
    """Makes the steps of one cell with one seed.

    Args:
        steps (`dict`): Name of each step -> its settings: `script`, and the script's own.
        seed (`int`): What "{seed}" stands for.
        folder (`Path`): Where the steps' folders are, relative to the root.
    """

    def __init__(self, steps: dict[str, dict[str, Any]], seed: int, folder: Path):
        self.steps, self.seed, self.folder = steps, seed, folder

    def filled(self, value: Any, make: bool = False) -> str:
        """The value as an argument, its placeholders replaced by the steps' folders, which are made if asked for."""

        def named(found: re.Match) -> str:
            if found[1] == "seed":
                return str(self.seed)
            return str(self.make(found[1]) if make else self.folder / self.name(found[1]))

        return re.sub(r"\{(\w+)\}", named, str(value))

    def name(self, step: str) -> str:
        """The name of a step's folder: a hash of its settings, and so of all that it asks for."""
        if step not in self.steps:
            raise ValueError(f"there is no step '{step}': the study has {', '.join(self.steps)}")
        settings = {key: self.filled(value) for key, value in self.steps[step].items()}
        config = yaml.safe_load((ROOT / settings["config"]).read_text()) if "config" in settings else {}
        text = json.dumps([settings, config]).replace(f"{self.folder}/", "")
        return f"{step}-{hashlib.blake2b(text.encode(), digest_size=6).hexdigest()}"

    def make(self, step: str) -> Path:
        """The folder of a step, relative to the root; runs its command unless that was done before."""
        output = self.folder / self.name(step)
        done = ROOT / output / "done.json"
        done.parent.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{done.parent}.lock"):  # another study, started beside this one, may ask for the same step
            if not done.exists():
                settings = {key: self.filled(value, make=True) for key, value in self.steps[step].items()}
                script = settings.pop("script").split()
                arguments = [word for key, value in settings.items() for word in (f"--{key}", value)]
                start = time.monotonic()
                launch(*script, *arguments, "--output_dir", str(output))
                seconds = round(time.monotonic() - start)
                done.write_text(json.dumps({"command": [*script, *arguments], "seconds": seconds}))
        return output


def read(path: Path) -> dict[str, Any]:
    """A study's settings; where `steps` names a file beside it, several studies share the steps in that file."""
    study = yaml.safe_load(path.read_text())
    if isinstance(study["steps"], str):
        study["steps"] = yaml.safe_load((path.parent / study["steps"]).read_text())
    for cell, changes in study["cells"].items():
        unknown = changes.keys() - {"model", "evaluation", *study["steps"]}
        if unknown:
            raise ValueError(f"the cell '{cell}' changes {', '.join(sorted(unknown))}, which is no step of the study")
    return study


def maker(study: dict[str, Any], cell: str, seed: int, folder: Path) -> tuple[Maker, str]:
    """What makes one cell with one seed, evaluation included, and the model that is evaluated."""
    changes = dict(study["cells"][cell])
    model = changes.pop("model", study["model"])
    steps = {name: settings | changes.get(name, {}) for name, settings in study["steps"].items()}
    evaluation = {"script": "-m unime.eval", "models": f"model={model}", "size": study["size"]}
    steps["evaluation"] = evaluation | changes.get("evaluation", {})
    return Maker(steps, seed, folder), model


def run(made: Maker, model: str) -> dict[str, Any]:
    """Make and evaluate one cell with one seed.

    Returns:
        `dict`: Hit@1 of every task, accuracy of every kind of probe, and their means, as fractions of 1; `curves` of
        the training; `made`, the name of what made it.
    """
    output = made.make("evaluation")
    found = json.loads((ROOT / output / "results.json").read_text())["model"]
    tasks = {name: task[task["metric"]] for name, task in found["tasks"].items()} | found["compositional"]
    means = {name: score for group in GROUPS for name, score in found[group].items()}
    scores = {"made": output.name, "tasks": tasks, "means": means | {"all tasks": found["overall"]}}
    return scores | {"curves": curves(ROOT / made.filled(model) / "trainer_state.json")}


def curves(record: Path) -> dict[str, list[float]]:
    """What a training logged, by name, and the `step` of each; nothing for a model that was not trained here."""
    logged = json.loads(record.read_text())["log_history"] if record.exists() else []
    logged = [entry for entry in logged if "loss" in entry]
    return {name: [round(entry[name], 4) for entry in logged] for name in CURVES if logged and name in logged[0]}


def known(kept: Path, study: dict[str, Any], folder: Path) -> dict[str, dict[str, Any]]:
    """The scores that were kept of each cell, but for those whose settings have changed since: they are made again."""
    before = json.loads(kept.read_text())["scores"] if kept.exists() else {}
    scores: dict[str, dict[str, Any]] = {cell: {} for cell in study["cells"]}
    for cell, own in scores.items():
        for seed, found in before.get(cell, {}).items():
            if found["made"] == maker(study, cell, int(seed), folder)[0].name("evaluation"):
                own[seed] = found
            else:
                print(f"The settings of '{cell}' have changed since seed {seed} was made: its scores are dropped.")
    return scores


def write(kept: Path, study: dict[str, Any], scores: dict[str, dict[str, Any]]) -> None:
    """Keep the scores that there are, with all that the page says of the study."""
    head = {name: study[name] for name in KEPT if name in study} | {"cells": list(study["cells"])}
    done = {cell: dict(sorted(seeds.items())) for cell, seeds in scores.items() if seeds}
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(head | {"scores": done}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="+", type=Path, help="YAML files")
    parser.add_argument("--cell", help="this cell only, even if it has its scores")
    parser.add_argument("--seed", type=int, help="this seed only; may be a new one")
    parser.add_argument("--keep", action="store_true", help="keep what a cell gives that is made again elsewhere")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/study"), help="where the steps' folders go")
    parser.add_argument("--scores", type=Path, default=SCORES, help="where the scores go")
    options = parser.parse_args()
    for path in options.studies:
        study = read(path)
        if options.cell and options.cell not in study["cells"]:
            raise ValueError(f"{path} has no cell '{options.cell}': it has {', '.join(study['cells'])}")
        kept = options.scores / f"{path.stem}.json"
        scores = known(kept, study, options.output_dir)
        seeds = [options.seed] if options.seed is not None else study["seeds"]
        for seed, cell in itertools.product(seeds, [options.cell] if options.cell else study["cells"]):
            made, model = maker(study, cell, seed, options.output_dir)
            if str(seed) not in scores[cell]:
                scores[cell][str(seed)] = run(made, model)
                write(kept, study, scores)
            elif options.cell:
                found, before = run(made, model), scores[cell][str(seed)]
                print(again(found, before, made_again(read_scores(SCORES))))
                if options.keep:
                    before.setdefault("again", []).append(found["means"])
        write(kept, study, scores)
        write_page(options.scores)
        print(f"\n{study['question']}\n\n{table({cell: seeds for cell, seeds in scores.items() if seeds})}")


if __name__ == "__main__":
    main()
