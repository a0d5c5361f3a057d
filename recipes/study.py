"""Ask one question of the method with a grid of small runs over several seeds, and answer it with a table.

    python recipes/study.py recipes/study/mined.yaml
    python recipes/study.py recipes/study/*.yaml --cell "Mined negatives" --seed 2

A study is a YAML file: `steps` are commands of this project, `model` is what the last of them leaves to be evaluated,
and each of the `cells` says what it changes. "{stage1}" stands for the folder that the step of this name writes,
"{seed}" for the seed. A step is made when another one asks for it, and once: its folder is named by a hash of
its settings, so that cells share what they have in common and a study that was cut off goes on.

Raw scores go to `model_cards/study/NAME.json`; from all that are there, `model_cards/study.md` is written.
"""

import argparse
import hashlib
import itertools
import json
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from launch import ROOT, launch


SCORES = ROOT / "model_cards" / "study"
GROUPS = ("meta_tasks", "compositional_groups")


class Maker:
    """Makes the steps of one cell with one seed.

    Args:
        steps (`dict`): Name of each step -> its settings: `script`, perhaps `processes`, and the script's own.
        seed (`int`): What "{seed}" stands for.
        folder (`Path`): Where the steps' folders are, relative to the root.
    """

    def __init__(self, steps: dict[str, dict[str, Any]], seed: int, folder: Path):
        self.steps, self.seed, self.folder = steps, seed, folder

    def filled(self, value: Any) -> str:
        """The value as an argument, its placeholders replaced by the folders of the steps, which are made."""
        return re.sub(
            r"\{(\w+)\}", lambda name: str(self.seed if name[1] == "seed" else self.make(name[1])), str(value)
        )

    def make(self, name: str) -> Path:
        """The folder of a step, relative to the root; runs its command unless that was done before."""
        if name not in self.steps:
            raise ValueError(f"there is no step '{name}': the study has {', '.join(self.steps)}")
        settings = dict(self.steps[name])
        script, processes = settings.pop("script"), settings.pop("processes", 1)
        arguments = list(itertools.chain(*((f"--{key}", self.filled(value)) for key, value in settings.items())))
        config = (ROOT / settings["config"]).read_text() if "config" in settings else ""
        digest = hashlib.blake2b(
            json.dumps([script, processes, arguments, config]).encode(), digest_size=6
        ).hexdigest()
        output = self.folder / f"{name}-{digest}"
        done = ROOT / output / "done.json"
        if not done.exists():
            start = time.monotonic()
            launch(*script.split(), *arguments, "--output_dir", str(output), processes=processes)
            done.write_text(json.dumps({"command": [script, *arguments], "seconds": round(time.monotonic() - start)}))
        return output


def run(study: dict[str, Any], cell: str, seed: int, folder: Path) -> dict[str, Any]:
    """Make and evaluate one cell with one seed.

    Returns:
        `dict`: Hit@1 of every task, accuracy of every kind of probe, and their means, as fractions of 1.
    """
    changes = dict(study["cells"][cell])
    model = changes.pop("model", study["model"])
    unknown = changes.keys() - study["steps"].keys()
    if unknown:
        raise ValueError(f"the cell '{cell}' changes {', '.join(sorted(unknown))}, which is no step of the study")
    steps = {name: settings | changes.get(name, {}) for name, settings in study["steps"].items()}
    evaluation = {"script": "-m unime.eval", "models": f"model={model}", "size": study["size"]}
    output = Maker(steps | {"evaluation": evaluation}, seed, folder).make("evaluation")
    found = json.loads((ROOT / output / "results.json").read_text())["model"]
    tasks = {name: task[task["metric"]] for name, task in found["tasks"].items()} | found["compositional"]
    means = {name: score for group in GROUPS for name, score in found[group].items()}
    return {"tasks": tasks, "means": means | {"all tasks": found["overall"]}}


def interval(differences: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of the means of all resamples with replacement of paired differences, each counted once."""
    means = [np.mean(sample) for sample in itertools.product(differences, repeat=len(differences))]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def table(scores: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Mean and standard deviation over the seeds, in per cent; below each cell how it differs from the first."""
    first, *_ = scores
    names = list(next(iter(scores[first].values()))["means"])
    rows = [["", "seeds", *names], ["---", "---:", *["---:"] * len(names)]]
    for cell, seeds in scores.items():
        values = {name: 100 * np.array([seeds[seed]["means"][name] for seed in seeds]) for name in names}
        spread = [f"{x.mean():.1f}" + (f" ± {x.std(ddof=1):.1f}" if len(x) > 1 else "") for x in values.values()]
        rows.append([f"**{cell}**", str(len(seeds)), *spread])
        shared = [seed for seed in seeds if seed in scores[first]]
        if cell != first and len(shared) > 1:
            row = [f"less {first}", str(len(shared))]
            for name in names:
                pairs = [(seeds[seed]["means"][name], scores[first][seed]["means"][name]) for seed in shared]
                differences = 100 * np.array([ours - theirs for ours, theirs in pairs])
                low, high = interval(differences)
                row.append(f"{differences.mean():+.1f} ({low:+.1f} … {high:+.1f})")
            rows.append(row)
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def page(folder: Path) -> str:
    """All studies whose scores are in a folder, as Markdown."""
    parts = [
        "# Studies\n\nWritten by `recipes/study.py` from the scores in `study/`: hit@1 in per cent on the test split "
        "of the OpenMoji world, mean ± standard deviation over seeds; below, the mean of the paired differences and "
        "the middle 95 % of its bootstrap over the seeds.\n"
    ]
    for file in sorted(folder.glob("*.json")):
        study = json.loads(file.read_text())
        text = f"## {study['question']}\n\n{table(study['scores'])}\n\n{study['answer'].strip()}\n\n"
        parts.append(text + f"`python recipes/study.py recipes/study/{file.stem}.yaml`\n")
    return "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="+", type=Path, help="YAML files")
    parser.add_argument("--cell", help="this cell only")
    parser.add_argument("--seed", type=int, help="this seed only; may be a new one")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/study"), help="where the steps' folders go")
    parser.add_argument("--scores", type=Path, default=SCORES, help="where the scores go")
    options = parser.parse_args()
    for path in options.studies:
        study = yaml.safe_load(path.read_text())
        if options.cell and options.cell not in study["cells"]:
            raise ValueError(f"{path} has no cell '{options.cell}': it has {', '.join(study['cells'])}")
        kept = options.scores / f"{path.stem}.json"
        scores = json.loads(kept.read_text())["scores"] if kept.exists() else {}
        scores = {cell: scores.get(cell, {}) for cell in study["cells"]}
        seeds = [options.seed] if options.seed is not None else study["seeds"]
        for seed, cell in itertools.product(seeds, [options.cell] if options.cell else study["cells"]):
            scores[cell][str(seed)] = run(study, cell, seed, options.output_dir)
            kept.parent.mkdir(parents=True, exist_ok=True)
            done = {cell: seeds for cell, seeds in scores.items() if seeds}
            head = {name: study[name] for name in ("question", "answer", "size")}
            kept.write_text(json.dumps(head | {"scores": done}, indent=1) + "\n")
            options.scores.with_suffix(".md").write_text(page(options.scores))
        print(f"\n{study['question']}\n\n{table(done)}")


if __name__ == "__main__":
    main()
