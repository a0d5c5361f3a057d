"""Evaluate checkpoints on the OpenMoji world's test split, side by side, and write a table and a report.

    python recipes/evaluate.py --models "UniME=checkpoints/unime-tiny" --output_dir runs/evaluation

Each model is TITLE=FOLDER: a UniME checkpoint, a native backbone, a CLIP or a SentenceTransformer. The report shows
the pictures of the subject, the last UniME in the list unless another title is given.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

from transformers import HfArgumentParser

from unime.eval.chart import curve
from unime.eval.embedders import load_encode
from unime.eval.gallery import galleries
from unime.eval.openmoji import tasks
from unime.eval.report import table, write_report
from unime.eval.tasks import evaluate


CREDITS = "Pictures: OpenMoji (openmoji.org), CC BY-SA 4.0."


@dataclass
class ScriptArguments:
    """What to evaluate, and how much of it."""

    models: list[str] = field(metadata={"help": "TITLE=FOLDER of each model, in the order of the columns."})
    output_dir: str = field(default="runs/evaluation", metadata={"help": "Where results.json and report.html go."})
    size: int = field(default=1000, metadata={"help": "Candidates of the scene tasks; the other tasks follow."})
    split: str = field(default="test", metadata={"help": "validation or test."})
    seed: int = field(default=0, metadata={"help": "Seed of the benchmark's questions."})
    subject: str | None = field(default=None, metadata={"help": "Title of the model whose pictures are shown."})


def learning_curves(folders: dict[str, str]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Read the curves that training left beside the checkpoints."""
    charts: dict[str, dict[str, list[tuple[float, float]]]] = {"Loss": {}, "Accuracy in the batch": {}}
    for title, folder in folders.items():
        state = Path(folder) / "trainer_state.json"
        if state.exists():
            history = json.loads(state.read_text())["log_history"]
            for chart, name in (("Loss", "loss"), ("Accuracy in the batch", "accuracy")):
                charts[chart][title] = curve(history, name)
    return charts


def main(script: ScriptArguments) -> None:
    folders = dict(model.split("=", 1) for model in script.models)
    retrieval, compositional = tasks(script.split, script.size, script.seed)
    results, rankings = {}, {}
    for title, folder in folders.items():
        results[title], rankings[title] = evaluate(load_encode(folder), retrieval, compositional, model=title)
    subject = script.subject or [title for title in folders if title != "CLIP"][-1]
    output = Path(script.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    (output / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    shown = galleries(rankings[subject], retrieval, compositional)
    write_report(results, shown, learning_curves(folders), output / "report.html", subject=subject, credits=CREDITS)
    text = table(results)
    (output / "table.md").write_text(text + "\n")
    print(text)
    print(f"\n{output / 'report.html'} shows the pictures.")


if __name__ == "__main__":
    main(*HfArgumentParser(ScriptArguments).parse_args_into_dataclasses())
