"""The command `unime`: what a user does beside training, which `accelerate launch recipes/...` does."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from .embed import embed
from .export import export
from .options import AsJson, Dtype, printable
from .search import index, search
from .serve import serve


app = typer.Typer(name="unime", no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)
PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True}

# What a command needs is imported when it runs: `unime --help` answers at once.


app.command()(embed)
app.command()(index)
app.command()(search)
app.command()(serve)
app.command()(export)


@app.command("eval", context_settings=PASSED_ON, add_help_option=False)
def evaluate(context: typer.Context) -> None:
    """Evaluate models on benchmarks: `unime eval --models checkpoints/unime-tiny --benchmarks openmoji`.

    Takes what `accelerate launch -m unime.eval` takes; `unime eval --help` lists it.
    """
    from ..eval.__main__ import main as run

    run(context.args)


@app.command("check-data", context_settings=PASSED_ON)
def check_data(
    context: typer.Context,
    config: Annotated[Path, typer.Argument(help="YAML of a stage-2 recipe; settings of its data may follow.")],
    workers: Annotated[int, typer.Option(help="Processes that read at the same time.")] = 2,
    shown: Annotated[int, typer.Option(help="Most problems to print; all are counted.")] = 100,
    rejected_file: Annotated[
        Path | None, typer.Option(help="File to list the bad rows in; training leaves them out by the same option.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Read every row and image that a recipe would train on, and name the bad ones; status 1 if there are any."""
    from dataclasses import replace

    from trl import TrlParser

    from ..data.rejected_rows import write_rejected
    from ..data.sources import DataArguments, open_rows
    from ..data.validation import validate

    arguments = ["--config", str(config), *context.args]
    data, _ = TrlParser(DataArguments).parse_args_and_config(arguments, return_remaining_strings=True)
    dataset = open_rows(replace(data, streaming=False, rejected_file=None))  # rows have their numbers
    found = validate(dataset, workers)
    if rejected_file is not None:
        write_rejected(rejected_file, found)
    if as_json:
        typer.echo(json.dumps({"rows": len(dataset), "bad": list(found.values())}, indent=2))
        raise typer.Exit(bool(found))
    for problem in list(found.values())[:shown]:
        typer.echo(printable(problem))
    typer.echo(
        f"{len(found)} of {len(dataset)} rows are bad" if found else f"all {len(dataset)} rows can be trained on"
    )
    raise typer.Exit(bool(found))


@app.command()
def merge(
    base: Annotated[str, typer.Argument(help="What the adapter was trained on: a backbone or a UniME checkpoint.")],
    adapter: Annotated[Path, typer.Argument(help="Folder of the adapter.")],
    output: Annotated[Path, typer.Argument(help="Where to write the checkpoint.")],
    dtype: Dtype = "float32",
) -> None:
    """Fold a LoRA adapter into the model it was trained on, check that it embeds as before, and save."""
    from ..trainers import merge_checkpoint

    typer.echo(f"merged into {merge_checkpoint(base, adapter, output, dtype=dtype)}")


@app.command()
def card(
    checkpoint: Annotated[Path, typer.Argument(help="Folder of the checkpoint; its README.md is written anew.")],
    evaluation: Annotated[
        list[Path] | None, typer.Option(help="Folder that `unime eval` wrote; may be repeated.")
    ] = None,
    title: Annotated[str | None, typer.Option(help="The model's column there; the first if not given.")] = None,
    notes: Annotated[Path | None, typer.Option(help="Markdown on the results, data, limits and licences.")] = None,
    commands: Annotated[Path | None, typer.Option(help="The shell script that made it; the card shows it.")] = None,
    base_model: Annotated[str | None, typer.Option(help="Hub id of the backbone.")] = None,
    dataset: Annotated[list[str] | None, typer.Option(help="Hub id of training data; may be repeated.")] = None,
    license: Annotated[str, typer.Option(help="Licence of the weights.")] = "apache-2.0",
) -> None:
    """Write a checkpoint's model card from what was measured, with the metadata that the Hub reads."""
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
    checkpoint: Annotated[str, typer.Argument(help="Folder or Hub id of a checkpoint.")] = "checkpoints/unime-tiny",
    as_json: AsJson = False,
) -> None:
    """Say what a checkpoint is: backbone, sizes, limits, prompts and the versions that wrote it."""
    from .info import describe

    described = describe(checkpoint)
    typer.echo(json.dumps(described, indent=2) if as_json else _table(described))


def _table(described: dict[str, Any]) -> str:
    width = max(map(len, described))
    lines = []
    for name, value in described.items():
        values = [value]
        if isinstance(value, dict):
            values = [f"{key}: {text or '(one-word prompt)'}" for key, text in value.items()]
        lines += [f"{name if number == 0 else '':<{width}}  {shown}" for number, shown in enumerate(values)]
    return "\n".join(lines)


def main() -> None:
    """Run the command; what is wrong with its input is one sentence and status 2, not a traceback."""
    try:
        app()
    except (ValueError, OSError) as error:
        typer.echo(printable(f"unime: {error}"), err=True)
        raise SystemExit(2) from None
