"""`unime embed`: a folder, a file or a dataset becomes a table of embeddings."""

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import (
    AsJson,
    Device,
    Dtype,
    Identifier,
    Image,
    ImageRoot,
    Model,
    Source,
    Split,
    Text,
    load_onto,
    printable,
)


if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..index.entry_embedding import Rejected


def embed(
    source: Source,
    output: Annotated[Path, typer.Argument(help="Folder for Parquet files, or a name in .lance for Lance.")],
    model: Model = "checkpoints/unime-tiny",
    prompt: Annotated[str | None, typer.Option(help="Named prompt of every entry, such as 'image'.")] = None,
    instruction: Annotated[str | None, typer.Option(help="Instruction of every entry, in your words.")] = None,
    text: Text = "text",
    image: Image = "image",
    identifier: Identifier = "id",
    image_root: ImageRoot = None,
    split: Split = "train",
    dtype: Dtype = "float32",
    device: Device = None,
    dimensions: Annotated[int | None, typer.Option(help="Leading dimensions to keep (Matryoshka).")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first bad entry, with status 1.")] = False,
    as_json: AsJson = False,
) -> None:
    """Embed a corpus into Parquet or Lance: columns id, text, image (path), metadata (JSON), embedding.

    A killed run goes on where it was when it is started again. Entries that cannot be embedded are listed, with the
    reason, in OUTPUT.rejected.jsonl.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from ..checkpoint import PROMPTS, fingerprint
    from ..corpus.corpus import open_corpus
    from ..index.parquet_shards import rejected_in, write_lance, write_shards

    if prompt is not None and instruction is not None:
        raise ValueError("--prompt and --instruction exclude each other: give one of them")
    if prompt is not None and prompt not in PROMPTS:
        raise ValueError(f"there is no prompt {prompt!r}: choose from {', '.join(PROMPTS)}")
    lance = output.suffix == ".lance"
    if output.exists() and (lance or not output.is_dir()):
        raise ValueError(f"{output} exists: remove it, or name another output")
    if Path(source).is_dir() and output.resolve().is_relative_to(Path(source).resolve()):
        raise ValueError(f"{output} lies in the source {source} and would become part of it: name a folder outside")
    began = time.perf_counter()
    corpus = open_corpus(source, text, image, identifier, image_root, split)
    network, processor = load_onto(model, dtype, device)
    settings = {
        "source": str(Path(source).resolve()) if Path(source).exists() else source,
        "checkpoint": model,
        "revision": fingerprint(model),
        "instruction": instruction if prompt is None else PROMPTS[prompt],
        "dimensions": network.config.hidden_size if dimensions is None else dimensions,
        "dtype": dtype,
    }
    speed = TextColumn("{task.fields[rate]}")
    columns = (TextColumn("embedding"), BarColumn(), MofNCompleteColumn(), speed, TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=len(corpus), rate="")

        def report(entries: int, rejected: "Sequence[Rejected]") -> None:
            bar.advance(task, entries)
            bar.update(task, rate=f"{bar.tasks[task].speed or 0:.1f} entries/s")
            if strict and rejected:
                typer.echo(printable(rejected[0].reason), err=True)
                raise typer.Exit(1)

        shards = output.with_name(f".{output.name}.shards") if lance else output
        kept = write_shards(corpus, shards, network, processor, settings, report)
    rejected = [one for shard in sorted(shards.glob("*.parquet")) for one in rejected_in(shard)]
    listing = output.with_name(f"{output.name}.rejected.jsonl")
    listing.unlink(missing_ok=True)
    if rejected:
        listing.write_text("".join(json.dumps(asdict(one)) + "\n" for one in rejected))
    if lance:
        write_lance(shards, output)
    done = {
        "output": str(output),
        "embedded": len(corpus) - len(rejected) - kept,
        "kept": kept,
        "rejected": len(rejected),
        "seconds": round(time.perf_counter() - began, 2),
    }
    if as_json:
        typer.echo(json.dumps(done | settings, indent=2))
        return
    typer.echo(f"{done['embedded']} entries embedded into {output}, {kept} were there, {len(rejected)} rejected")
    if rejected:
        typer.echo(f"the rejected entries and the reasons are in {listing}")
