"""Evaluate models side by side on the benchmarks of the paper, and write tables and pages.

    python -m unime.eval --models "UniME=checkpoints/unime-tiny" --benchmarks openmoji --output_dir runs/evaluation
    accelerate launch -m unime.eval --models org/UniME openai/clip-vit-large-patch14 --benchmarks mmeb sugarcrepe

A model is a folder or Hub id, perhaps after a TITLE=: a UniME checkpoint, a native backbone, a CLIP, a
SigLIP or a SentenceTransformer. Embeddings are kept in `embeddings`, so that a run that was cut off goes on and a
second one only reads; several processes share the work. With several benchmarks each has a folder of its own.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import PartialState
from transformers import HfArgumentParser

from ..checkpoint import fingerprint
from ..storage.atomic_files import atomic_write
from .benchmarks import BENCHMARKS, BenchmarkArguments, open_benchmark
from .embedding_cache import EmbeddingCache
from .encoders.loading import load_encoder
from .report.gallery import build_galleries
from .report.html_report import table, write_report
from .report.line_chart import curve
from .run_metadata import run_metadata
from .tasks import evaluate


@dataclass
class EvaluationArguments:
    """What to evaluate, and how."""

    models: list[str] = field(
        metadata={"help": "TITLE=FOLDER of each model, in the order of the columns.", "aliases": ["--model"]}
    )
    benchmarks: list[str] = field(
        default_factory=lambda: ["openmoji"],
        metadata={"help": f"Some of {', '.join(BENCHMARKS)}.", "aliases": ["--benchmark"]},
    )
    output_dir: str = field(
        default="runs/evaluation",
        metadata={"help": "Where results.json and report.html go.", "aliases": ["--output"]},
    )
    embeddings: str | None = field(default=None, metadata={"help": "Where embeddings are kept; in output_dir if not."})
    highlight: str | None = field(
        default=None, metadata={"help": "Title of the model whose images are shown; the last."}
    )
    dtype: str = field(default="float32", metadata={"help": "Type of the weights."})
    max_length: int | None = field(default=None, metadata={"help": "UniME: most tokens of one item."})
    micro_batch_tokens: int | None = field(default=None, metadata={"help": "UniME: token budget of a micro-batch."})


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


@torch.inference_mode()
def main(command: Sequence[str]) -> None:
    """Evaluate as the words of a command line say."""
    parser = HfArgumentParser((EvaluationArguments, BenchmarkArguments))
    args, where = parser.parse_args_into_dataclasses(list(command))
    state = PartialState()
    paths = dict(model.split("=", 1) if "=" in model else (Path(model).name, model) for model in args.models)
    highlight = args.highlight or list(paths)[-1]
    if highlight not in paths:
        raise ValueError(f"the highlight '{highlight}' is none of the models: {', '.join(paths)}")
    opened = {name: open_benchmark(name, where) for name in args.benchmarks}
    results, rankings = {name: {} for name in opened}, {}
    settings = {"dtype": args.dtype, "max_length": args.max_length, "micro_batch_tokens": args.micro_batch_tokens}
    for title, path in paths.items():
        embedder = load_encoder(path, args.dtype, state.device, args.max_length, args.micro_batch_tokens)
        kept = Path(args.embeddings or Path(args.output_dir) / "embeddings")
        key = "-".join(map(str, (Path(path).name, fingerprint(path), args.dtype, args.max_length)))
        store = EmbeddingCache(embedder.encode, kept / key)
        for name, tasks in opened.items():
            found, ranked = evaluate(store, *tasks, model=title, benchmark=name, progress=state.is_main_process)
            results[name][title] = found | {
                "run": run_metadata(path, embedder.processor, command=command, seed=where.seed, **settings)
            }
            if title == highlight:
                rankings[name] = ranked
        del embedder, store
    if not state.is_main_process:
        return
    for name, tasks in opened.items():
        output = Path(args.output_dir) / (name if len(opened) > 1 else "")
        output.mkdir(parents=True, exist_ok=True)
        with atomic_write(output / "results.json") as part:
            part.write_text(json.dumps(results[name], indent=2) + "\n")
        with atomic_write(output / "report.html") as part:
            write_report(
                results[name],
                build_galleries(rankings[name], *tasks),
                learning_curves(paths),
                part,
                highlight=highlight,
                credits=BENCHMARKS[name].credits,
            )
        text = table(results[name])
        with atomic_write(output / "table.md") as part:
            part.write_text(text + "\n")
        print(f"\n{text}\n")
        for title, found in results[name].items():
            own, embedded = found["seconds"], found["embedded"]
            rate = embedded["items"] / max(embedded["seconds"], 1e-9)
            print(
                f"{title}: {own:.0f} s, of which {embedded['seconds']:.0f} s embedding {embedded['items']:,} items"
                + (f", {rate:.0f} a second" if embedded["items"] else ", all of them known from before")
            )
        print(f"{output / 'report.html'} shows the images.")


if __name__ == "__main__":
    main(sys.argv[1:])
