"""The commands of `unime`: everything but training, which starts with `accelerate launch recipes/...`.

A command imports what it needs when it runs, so that help and usage errors are printed at once.
"""

import sys
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from .. import __version__
from ..extras import MissingExtraError, require_extra
from ..json_output import to_json
from .embed import embed, index
from .export import export
from .options import MODEL_HELP, AsJson, Dtype, model_or_default, printable
from .prepare import prepare
from .search import search
from .serve import serve


# Underscores in the names of options and commands are accepted as hyphens.
SETTINGS = {"help_option_names": ["-h", "--help"], "token_normalize_func": lambda token: token.replace("_", "-")}
PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True}

# Rich help pages alone would take most of the CPU time of `unime --help`.
app = typer.Typer(
    name="unime",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings=SETTINGS,
)
app.command()(embed)
app.command()(index)
app.command()(search)
app.command()(serve)
app.command()(export)
app.command(context_settings=PASSED_ON)(prepare)


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"unime {__version__}")
        raise typer.Exit()


@app.callback()
def unime(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Universal multimodal embeddings: embed, index, search, serve, evaluate and export."""


@app.command("eval", context_settings=PASSED_ON, add_help_option=False)
def evaluate(context: typer.Context) -> None:
    """Evaluate models on benchmarks, with the options of `accelerate launch -m unime.eval`."""
    from ..eval.__main__ import main

    main(context.args, prog="unime eval")


# Rows that are not bad: training and mining leave these answers out of the negatives.
SHARED_QUERIES = {
    "several_positives": "have a query that other rows give other positives",
    "query_as_positive": "have a query that is the positive of another row",
    "right_negatives": "have a negative that is a positive of the query, or the query itself; it is not used",
}


@app.command("check-data", context_settings=PASSED_ON)
def check_data(
    context: typer.Context,
    config: Annotated[Path, typer.Argument(help="YAML of a recipe; options may override its data settings.")],
    stage: Annotated[
        int | None,
        typer.Option(min=1, max=2, help="Stage of the recipe. Default: 1 if its name starts with stage1."),
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes that read in parallel.")] = 2,
    max_shown: Annotated[int, typer.Option(help="Maximum number of problems to print; all are counted.")] = 100,
    rejected_file: Annotated[
        Path | None, typer.Option(help="File for the list of bad rows; training with the same option skips them.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Read every row and image, or text, that a recipe trains on, and list the bad ones; status 1 if there are any."""
    require_extra("train", "trl")

    from dataclasses import replace

    from datasets import Dataset
    from trl import TrlParser

    from ..data.rejected_rows import write_rejected
    from ..data.sources import DataArguments, open_rows, text_problems
    from ..data.validation import validate

    arguments = ["--config", str(config), *context.args]
    data, _ = TrlParser(DataArguments).parse_args_and_config(arguments, return_remaining_strings=True)
    if (stage or (1 if config.stem.startswith("stage1") else 2)) == 1:
        if rejected_file is not None:
            raise ValueError("--rejected-file is for rows of stage 2: fix or remove bad texts in their file")
        reasons = list(text_problems(data))
        num_rows, counts = len(reasons), {}
        problems = {row: reason for row, reason in enumerate(reasons) if reason is not None}
    else:
        # Streamed rows have no numbers.
        dataset = cast(Dataset, open_rows(replace(data, streaming=False, rejected_file=None)))
        num_rows = len(dataset)
        problems, counts = validate(dataset, workers)
        if rejected_file is not None:
            write_rejected(rejected_file, problems)
    if as_json:
        typer.echo(to_json({"rows": num_rows, "bad": list(problems.values()), **counts}, indent=2))
        raise typer.Exit(bool(problems))
    for problem in list(problems.values())[:max_shown]:
        typer.echo(printable(problem))
    typer.echo(f"{len(problems)} of {num_rows} rows are bad" if problems else f"all {num_rows} rows are valid")
    for name, count in counts.items():
        if count:
            typer.echo(f"{count} of {num_rows} rows {SHARED_QUERIES[name]}")
    raise typer.Exit(bool(problems))


@app.command(context_settings=PASSED_ON)
def plan(
    context: typer.Context,
    recipe: Annotated[
        Path | None, typer.Argument(help="YAML of a recipe; other options override its settings.")
    ] = None,
    suite: Annotated[
        list[str] | None, typer.Option(help="Suite of `unime eval` to plan in place of a recipe; can be repeated.")
    ] = None,
    benchmark: Annotated[
        list[str] | None, typer.Option(help="Benchmark of `unime eval` to plan; can be repeated.")
    ] = None,
    gpus: Annotated[int, typer.Option(help="Number of GPUs.")] = 8,
    memory: Annotated[
        list[int] | None, typer.Option(help="Memory of a GPU in GB: 24, 40, 80 or 141; can be repeated. All of them.")
    ] = None,
    gpu: Annotated[list[str] | None, typer.Option(help="Name of a GPU, such as A100-80GB; can be repeated.")] = None,
    config_file: Annotated[Path | None, typer.Option(help="Configuration of accelerate. Data parallel.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Folder or Hub id of the backbone, if not the recipe's; needed for a suite.")
    ] = None,
    image_size: Annotated[str | None, typer.Option(help="Height and width of images; 336 for a suite.")] = None,
    frames: Annotated[int, typer.Option(help="Frames of a video in a suite.")] = 8,
    rows: Annotated[int | None, typer.Option(help="Rows of training data that is not at hand, for epochs.")] = None,
    utilization: Annotated[
        float, typer.Option(help="Share of the peak rate that training reaches; 0.25 is the paper's.")
    ] = 0.25,
    as_json: AsJson = False,
) -> None:
    """Estimate memory, operations and hours of a recipe or an evaluation on GPUs, from its configuration alone."""
    require_extra("train", "trl")

    from .plan import DEFAULT_IMAGE_SIZE, chosen_gpus, plan_recipe, print_plan

    kinds = chosen_gpus(memory or [], gpu or [])
    planned: dict[str, Any]
    if suite or benchmark:
        from .plan_evaluation import benchmarks_of, plan_evaluation, print_evaluation_plan

        names = benchmarks_of(suite or [], benchmark or [])
        if recipe is not None or context.args or model is None:
            raise ValueError("an evaluation is planned from its suites, --model and the options of this command alone")
        if not str(image_size or DEFAULT_IMAGE_SIZE).isdecimal():
            raise ValueError(f"image_size is {image_size}, but a plan needs a number of pixels, such as 336")
        pixels = int(image_size or DEFAULT_IMAGE_SIZE)
        planned = plan_evaluation(names, model, gpus, kinds, pixels, frames, utilization)
        printed = print_evaluation_plan
    elif recipe is not None:
        overrides = [*context.args, *(["--image_size", image_size] if image_size is not None else [])]
        planned = plan_recipe(recipe, gpus, kinds, config_file, model, rows, utilization, overrides)
        printed = print_plan
    else:
        raise ValueError("give a recipe, or --suite and --model to plan an evaluation")
    if as_json:
        typer.echo(to_json(planned, indent=2))
    else:
        printed(planned)


@app.command()
def merge(
    base: Annotated[str, typer.Argument(help="Model that the adapter was trained on: a backbone or a checkpoint.")],
    adapter: Annotated[Path, typer.Argument(help="Folder of the adapter.")],
    output: Annotated[Path, typer.Argument(help="Folder for the merged checkpoint.")],
    dtype: Dtype = "float32",
) -> None:
    """Merge a LoRA adapter into its base model, check that the embeddings stay the same, and save."""
    from ..trainers import merge_checkpoint

    typer.echo(f"merged into {merge_checkpoint(base, adapter, output, dtype=dtype)}")


@app.command()
def average(
    checkpoints: Annotated[list[str], typer.Argument(help="At least two checkpoints of one backbone.")],
    output: Annotated[Path, typer.Option("--output", "--output_dir", help="Folder for the averaged checkpoint.")],
    weight: Annotated[
        list[float] | None, typer.Option(help="Weight of a checkpoint; repeated, in their order. Equal by default.")
    ] = None,
    dtype: Dtype = "float32",
) -> None:
    """Average the weights of checkpoints, such as of runs with different seeds."""
    from ..checkpoint_average import average_checkpoints

    typer.echo(f"averaged into {average_checkpoints(checkpoints, output, weight, dtype=dtype)}")


@app.command()
def card(
    checkpoint: Annotated[Path, typer.Argument(help="Folder of the checkpoint; its README.md is overwritten.")],
    evaluation: Annotated[
        list[Path] | None, typer.Option(help="Output folder of `unime eval`; can be repeated.")
    ] = None,
    title: Annotated[
        str | None, typer.Option(help="Column of the model in the results, by default the first.")
    ] = None,
    notes: Annotated[Path | None, typer.Option(help="Markdown on the results, data, limits and licences.")] = None,
    commands: Annotated[Path | None, typer.Option(help="Shell script that produced the checkpoint, to show.")] = None,
    base_model: Annotated[str | None, typer.Option(help="Hub id of the backbone.")] = None,
    dataset: Annotated[list[str] | None, typer.Option(help="Hub id of training data; can be repeated.")] = None,
    license: Annotated[str, typer.Option(help="Licence of the weights.")] = "apache-2.0",
) -> None:
    """Write the model card of a checkpoint from evaluation results, with the metadata that the Hub reads."""
    from ..checkpoint import load_model
    from ..eval.report.model_card import evaluated_card, write_files

    model, _ = load_model(str(checkpoint))
    metadata = {"license": license, "base_model": base_model, "datasets": dataset or None}
    name = checkpoint.resolve().name
    files = evaluated_card(model, name, evaluation or (), title, notes, commands, **metadata)
    write_files(checkpoint, files)
    typer.echo("\n".join(str(checkpoint / name) for name in files))


@app.command()
def info(
    checkpoint: Annotated[str | None, typer.Argument(help=MODEL_HELP)] = None,
    as_json: AsJson = False,
) -> None:
    """Describe a checkpoint: backbone, sizes, limits, prompts and the version that wrote it."""
    checkpoint = model_or_default(checkpoint)

    from .info import describe

    description = describe(checkpoint)
    typer.echo(to_json(description, indent=2) if as_json else _format_table(description))


def _format_table(description: dict[str, Any]) -> str:
    width = max(map(len, description))
    lines = []
    for name, value in description.items():
        values = [value]
        if isinstance(value, dict):
            values = [f"{key}: {text or '(one-word prompt)'}" for key, text in value.items()]
        lines += [f"{name if row == 0 else '':<{width}}  {cell}" for row, cell in enumerate(values)]
    return "\n".join(lines)


def main() -> None:
    """Run the command; invalid input and missing extras give one sentence and status 2, not a traceback."""
    try:
        app(prog_name="unime")
    except (MissingExtraError, ValueError, OSError) as error:
        print(printable(f"unime: {error}"), file=sys.stderr)
        raise SystemExit(2) from None
