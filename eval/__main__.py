"""Evaluate models side by side on benchmarks, and write tables and HTML reports.

    unime eval --models "UniME=checkpoints/unime-tiny" --benchmarks openmoji --output runs/evaluation
    unime eval --models checkpoints/unime-tiny --suite mmeb-v2 --miniature
    accelerate launch -m unime.eval --models org/UniME openai/clip-vit-large-patch14 --benchmarks mmeb sugarcrepe

A model is a folder or Hub id, optionally as TITLE=MODEL: a UniME checkpoint, a native backbone, a CLIP, a SigLIP or a
SentenceTransformer. Embeddings are cached, so that an interrupted run continues where it stopped, and several
processes share the work. With several benchmarks, or a suite, each gets its own subfolder of the output.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from transformers import HfArgumentParser

from .benchmarks import BENCHMARKS, BenchmarkArguments, open_benchmarks, write_miniatures
from .suites import SUITES, find_suite, leaderboard_entry, suite_results


if TYPE_CHECKING:
    from .report.gallery import Gallery


CURVES = {"Loss": "loss", "In-batch accuracy": "accuracy"}  # title of a chart -> key in the log of a training


@dataclass
class EvaluationArguments:
    """Models and benchmarks to evaluate, and the output."""

    models: list[str] = field(
        metadata={"help": "Models as MODEL or TITLE=MODEL, in the order of the columns.", "aliases": ["--model"]}
    )
    benchmarks: list[str] | None = field(
        default=None,
        metadata={
            "help": f"Benchmarks: {', '.join(BENCHMARKS)}; openmoji by default if there is no suite.",
            "aliases": ["--benchmark"],
        },
    )
    suites: list[str] = field(
        default_factory=list,
        metadata={
            "help": f"Benchmarks to evaluate together, with their means in one table: {', '.join(SUITES)}.",
            "aliases": ["--suite"],
        },
    )
    output: str = field(
        default="runs/evaluation",
        metadata={
            "help": "Folder for results.json, table.md and report.html.",
            "aliases": ["--output_dir", "--output-dir"],
        },
    )
    miniature: bool = field(
        default=False,
        metadata={
            "help": "Try the run: write miniature files of the benchmarks in their published layouts to "
            "OUTPUT/miniature, and evaluate those."
        },
    )
    embedding_cache: str | None = field(
        default=None, metadata={"help": "Folder for the embeddings; OUTPUT/embeddings by default."}
    )
    highlight: str | None = field(
        default=None,
        metadata={"help": "Title of the model that the report emphasizes and shows examples of; the last by default."},
    )
    dtype: str = field(default="float32", metadata={"help": "Data type of the weights."})
    max_length: int | None = field(
        default=None, metadata={"help": "Maximum number of tokens per item; only for UniME and native backbones."}
    )
    micro_batch_tokens: int | None = field(
        default=None, metadata={"help": "Token budget of a micro-batch; only for UniME and native backbones."}
    )
    image_size: str | None = field(
        default=None,
        metadata={
            "help": "Size at which models read images, such as 336, or JSON of image processor arguments; only for "
            "UniME and native backbones."
        },
    )
    preset: str | None = field(
        default=None,
        metadata={
            "help": "How published embedders are run: a preset, a .json file of one, 'none' or 'keep'; by default by "
            "their ids."
        },
    )
    prompts: str | None = field(
        default=None,
        metadata={
            "help": "Prompts of images and texts without an instruction, as in a published evaluation: unime, "
            "unime-v2, vlm2vec, e5-v or a .json file; the model's own by default. Only for UniME and native backbones."
        },
    )
    videos: str = field(
        default="auto",
        metadata={
            "help": "How models read videos: auto (by their video processor if they have one, else the frames as "
            "separate images), video (an error without a video processor) or frames (separate images)."
        },
    )
    fusion: str = field(
        default="normalized",
        metadata={
            "help": "How a CLIP or a SigLIP joins the features of text and image: normalized (their normalized sum), "
            "or as in MMEB's rows, mmeb-sum (without normalizing first) or mmeb-sides (one side in the sets that "
            "VLM2Vec's code lists)."
        },
    )
    rerank: str | None = field(
        default=None,
        metadata={
            "help": "Reranker: an image-text model that reranks the best candidates of each query, such as one of "
            "recipes/rerank.py."
        },
    )
    rerank_method: Literal["pointwise", "listwise"] = field(
        default="pointwise",
        metadata={"help": "How it ranks: pointwise (the probability of Yes) or listwise (the best position)."},
    )
    depth: int = field(default=10, metadata={"help": "Candidates of each query that are reranked."})


def main(command: Sequence[str], prog: str = "python -m unime.eval") -> None:
    """Run an evaluation.

    Args:
        command (`Sequence[str]`): Command-line arguments.
        prog (`str`, *optional*, defaults to `"python -m unime.eval"`): Name of the program in the help text.

    Raises:
        ValueError: An argument or a benchmark is unknown, or `highlight` is not the title of a model.
    """
    parser = HfArgumentParser((EvaluationArguments, BenchmarkArguments), prog=prog, description=__doc__.split("\n")[0])
    args, benchmark_args, unknown = parser.parse_args_into_dataclasses(list(command), return_remaining_strings=True)
    if unknown:
        raise ValueError(f"unrecognized arguments: {' '.join(unknown)}; `{prog} --help` lists the options")
    models = dict(model.split("=", 1) if "=" in model else (Path(model).name, model) for model in args.models)
    highlight = args.highlight or list(models)[-1]
    if highlight not in models:
        raise ValueError(f"highlight '{highlight}' is not the title of a model; choose from {', '.join(models)}")
    evaluate_models(models, highlight, args, benchmark_args, command)


def evaluate_models(
    models: dict[str, str],
    highlight: str,
    args: EvaluationArguments,
    benchmark_args: BenchmarkArguments,
    command: Sequence[str],
) -> None:
    """Evaluate models one after the other, and write the output on the main process.

    Args:
        models (`dict[str, str]`): Title of each model -> its folder or Hub id.
        highlight (`str`): Title of the model to show examples of.
        args ([`EvaluationArguments`]): The other options.
        benchmark_args ([`BenchmarkArguments`]): The options of the benchmarks.
        command (`Sequence[str]`): Command-line arguments, for the metadata of the results.
    """
    import torch  # imported here, so that help and usage errors are fast
    from accelerate import PartialState
    from tqdm.auto import tqdm

    from ..checkpoint import fingerprint, redact_home
    from ..extras import require_extra
    from ..image_size import parse_image_size
    from ..reranker import UniMEReranker
    from .embedding_cache import EmbeddingCache
    from .encoders.clip import with_mmeb_sides
    from .encoders.loading import load_encoder
    from .prompts import find_prompts
    from .report.gallery import build_galleries
    from .reranking import Reranking
    from .run_metadata import protocol, run_metadata
    from .tasks import evaluate, num_items

    state = PartialState()
    prompts = None if args.prompts is None else find_prompts(args.prompts)
    names = args.benchmarks or ([] if args.suites else ["openmoji"])
    names = [*names, *(name for suite in args.suites for name in find_suite(suite).benchmarks)]
    if args.miniature:
        with state.main_process_first():
            miniatures: dict[str, Any] = write_miniatures(names, Path(args.output) / "miniature")
        benchmark_args = replace(benchmark_args, **miniatures)
    tasks = open_benchmarks(names, benchmark_args)
    results: dict[str, dict[str, Any]] = {name: {} for name in tasks}
    mteb_names = {suite: mteb for suite in args.suites if (mteb := SUITES[suite].mteb)}
    if mteb_names and prompts is not None:
        raise ValueError("`prompts` does not apply to mteb's tasks, which have instructions; evaluate them without it")
    if mteb_names and args.rerank is not None:
        raise ValueError("`rerank` does not apply to mteb's tasks: evaluate these suites without it")
    if mteb_names:
        require_extra("mteb", "mteb")

        from .mteb_suites import evaluate_benchmark, open_mteb_benchmark
    mteb_benchmarks = {suite: open_mteb_benchmark(name, args.miniature) for suite, name in mteb_names.items()}
    mteb_results: dict[str, dict[str, Any]] = {suite: {} for suite in mteb_names}
    rankings = {}
    image_size = parse_image_size(args.image_size)
    settings = {
        "dtype": args.dtype,
        "max_length": args.max_length,
        "micro_batch_tokens": args.micro_batch_tokens,
        "image_size": image_size,
        "preset": args.preset,
        "fusion": args.fusion,
    }
    reranking, reranker_record = None, {}
    if args.rerank is not None:
        described = {"model": redact_home(args.rerank), "revision": fingerprint(args.rerank)}
        reranker_record = {"reranker": described | {"method": args.rerank_method, "depth": args.depth}}
        if state.is_main_process:  # which writes the scores; the others help to embed
            reranker = UniMEReranker.from_pretrained(
                args.rerank, args.rerank_method, device=state.device, dtype=args.dtype
            )
            reranking = Reranking(reranker.scores, args.depth)
    folder = Path(args.embedding_cache or Path(args.output) / "embeddings")
    for title, path in models.items():
        encoder = load_encoder(
            path,
            args.dtype,
            state.device,
            args.max_length,
            args.micro_batch_tokens,
            args.image_size,
            args.preset,
            args.fusion,
        )
        reads_videos = encoder.takes_videos
        encoder = encoder.with_videos(args.videos)
        key = "-".join(map(str, (Path(path).name, fingerprint(path), args.dtype, args.max_length)))
        if image_size is not None:
            key += "-" + re.sub(r"\W+", "_", json.dumps(image_size))
        if args.preset is not None:
            key += "-" + re.sub(r"\W+", "_", args.preset)
        if prompts is not None:
            key += f"-{prompts.fingerprint}"
        if encoder.two_towers and args.fusion != "normalized":
            key += "-unnormalized"
        if encoder.takes_videos != reads_videos:
            key += "-frames"
        cache = EmbeddingCache(encoder.encode, folder / key)
        total = num_items(task for opened in tasks.values() for kind in opened for task in kind)
        bar = tqdm(total=total, desc=title, unit="item", disable=not (total and state.is_main_process))
        settings["protocol"] = protocol(path, encoder.processor, prompts, image_size, args.preset) | reranker_record
        for name in tasks:
            retrieval, compositional = tasks[name]
            if prompts is not None:
                retrieval = prompts.for_model(path, args.preset, encoder.processor, retrieval)
                compositional = prompts.for_model(path, args.preset, encoder.processor, compositional)
            if encoder.two_towers and args.fusion == "mmeb-sides" and name == "mmeb":
                retrieval = with_mmeb_sides(retrieval)
            with torch.inference_mode():
                scores, ranked = evaluate(
                    cache,
                    retrieval,
                    compositional,
                    model=title,
                    benchmark=name,
                    progress=bar,
                    reranking=reranking,
                )
            run = run_metadata(path, encoder.processor, command=command, seed=benchmark_args.seed, **settings)
            if name == "mmeb-v2-video":
                read_as = "video processor" if encoder.takes_videos else "frames as separate images"
                videos = {"videos": read_as, "frames": benchmark_args.frames}
                run["protocol"] = {**run["protocol"], **videos}
            results[name][title] = scores | {"run": run}
            if title == highlight:
                rankings[name] = ranked
        bar.close()
        for suite, benchmark in mteb_benchmarks.items():
            with torch.inference_mode():
                scores = evaluate_benchmark(benchmark, encoder.encode, title, key, Path(args.output) / "mteb")
            run = run_metadata(path, encoder.processor, command=command, seed=benchmark_args.seed, **settings)
            mteb_results[suite][title] = scores | {"benchmark": suite, "runs": {benchmark.name: run}}
        del encoder, cache
    if state.is_main_process:
        for name in tasks:
            output = Path(args.output) / (name if len(tasks) > 1 or args.suites else "")
            write_output(name, results[name], build_galleries(rankings[name], *tasks[name]), models, highlight, output)
        if args.suites:
            write_suites(args.suites, results, mteb_results, list(models), Path(args.output))


def write_output(
    benchmark: str,
    results: dict[str, Any],
    galleries: list[Gallery],
    models: dict[str, str],
    highlight: str,
    output: Path,
) -> None:
    """Write the results of a benchmark as JSON, Markdown and HTML, and print them.

    Args:
        benchmark (`str`): Name of the benchmark.
        results (`dict[str, Any]`): Title of each model -> results of `tasks.evaluate`.
        galleries (`list[Gallery]`): Galleries of the highlighted model.
        models (`dict[str, str]`): Title of each model -> its folder or Hub id.
        highlight (`str`): Title of the highlighted model.
        output (`Path`): The folder to write.
    """
    from ..json_output import to_json
    from ..storage.atomic_files import atomic_write
    from .report.html_report import table, write_report

    output.mkdir(parents=True, exist_ok=True)
    with atomic_write(output / "results.json") as part:
        part.write_text(to_json(results, indent=2) + "\n")
    credits = BENCHMARKS[benchmark].credits
    with atomic_write(output / "report.html") as part:
        write_report(results, galleries, learning_curves(models), part, highlight=highlight, credits=credits)
    text = table(results)
    with atomic_write(output / "table.md") as part:
        part.write_text(text + "\n")
    print(f"\n{text}\n")
    for title, scores in results.items():
        print(f"{title}: {throughput([scores])}")
    print(f"Report: {output / 'report.html'}")


def throughput(results: Sequence[dict[str, Any]]) -> str:
    """Describe the time of a model's results, and the items that this process embedded for them."""
    items, embedding_seconds = (sum(scores["embedded"][key] for scores in results) for key in ("items", "seconds"))
    seconds = f"{sum(scores['seconds'] for scores in results):.0f} s; "
    if not items:
        return seconds + "all embeddings were cached"
    rate = items / max(embedding_seconds, 1e-9)
    return seconds + f"{items:,} items embedded in {embedding_seconds:.0f} s, {rate:.0f} items/s"


def write_suites(
    suites: Sequence[str],
    results: dict[str, dict[str, Any]],
    mteb_results: dict[str, dict[str, Any]],
    models: Sequence[str],
    output: Path,
) -> None:
    """Write the means of suites as JSON and as one Markdown file, print them, and write files for leaderboards.

    Args:
        suites (`Sequence[str]`): Keys of `SUITES`.
        results (`dict[str, dict[str, Any]]`): Benchmark -> title of each model -> results of `tasks.evaluate`.
        mteb_results (`dict[str, dict[str, Any]]`): Suite -> title of each model -> results of
            `mteb_suites.evaluate_benchmark`.
        models (`Sequence[str]`): Titles of the models.
        output (`Path`): The folder to write.
    """
    from ..json_output import to_json
    from ..storage.atomic_files import atomic_write
    from .report.suite_table import suite_table

    combined, tables = {}, []
    for suite in suites:
        names = [name for name in SUITES[suite].benchmarks if name in results]
        by_model = {title: {name: results[name][title] for name in names} for title in models}
        combined[suite] = mteb_results.get(suite) or {
            title: suite_results(suite, title, by_model[title]) for title in models
        }
        times = [f"{title}: {throughput(list(by_model[title].values()))}" for title in models if names]
        tables.append(suite_table(combined[suite]))
        print("\n\n".join(["", tables[-1], *times]))
        for title in models if SUITES[suite].has_leaderboard else ():
            path = output / "leaderboard" / suite / (re.sub(r"[^\w.-]+", "_", title) + ".json")
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as part:
                part.write_text(to_json(leaderboard_entry(suite, title, by_model[title]), indent=4) + "\n")
    with atomic_write(output / "results.json") as part:
        part.write_text(to_json(combined, indent=2) + "\n")
    with atomic_write(output / "table.md") as part:
        part.write_text("\n\n".join(tables) + "\n")
    print(f"Suites: {output / 'table.md'}")


def learning_curves(models: dict[str, str]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Read the learning curves from the `trainer_state.json` of models that have one.

    Args:
        models (`dict[str, str]`): Title of each model -> its folder or Hub id.

    Returns:
        `dict`: Title of each chart -> title of each model -> `(step, value)` points.
    """
    from .report.charts import curve

    charts: dict[str, dict[str, list[tuple[float, float]]]] = {chart: {} for chart in CURVES}
    for title, path in models.items():
        state = Path(path) / "trainer_state.json"
        if state.exists():
            history = json.loads(state.read_text())["log_history"]
            for chart, key in CURVES.items():
                charts[chart][title] = curve(history, key)
    return charts


if __name__ == "__main__":
    main(sys.argv[1:])
