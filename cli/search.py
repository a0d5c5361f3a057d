"""`unime index` and `unime search`: keep a corpus embedded in a folder, and find what is nearest to a query."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import AsJson, Device, Dtype, Identifier, Image, ImageRoot, Source, Split, Text, load_onto, printable


if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from ..index.index import Hit


def index(
    source: Source,
    folder: Annotated[Path, typer.Argument(help="Folder of the index; made if absent.")],
    model: Annotated[
        str | None, typer.Option(help="Folder or Hub id; checkpoints/unime-tiny, or that of the index.")
    ] = None,
    instruction: Annotated[
        str | None, typer.Option(help="Instruction of every entry, in your words; only for a new index.")
    ] = None,
    text: Text = "text",
    image: Image = "image",
    identifier: Identifier = "id",
    image_root: ImageRoot = None,
    split: Split = "train",
    dtype: Dtype = "float32",
    device: Device = None,
    strict: Annotated[bool, typer.Option("--strict", help="Status 1 if an entry was rejected.")] = False,
    as_json: AsJson = False,
) -> None:
    """Embed a corpus into an index that `unime search` searches, or bring such an index in step with it.

    What is in the index with the same content stays, what has changed is embedded anew, and what the corpus does not
    hold any more is removed. A killed run goes on where it was when it is started again. Entries that cannot be
    embedded are listed, with the reason, in FOLDER/rejected.jsonl.
    """
    from rich.console import Console
    from rich.progress import Progress

    from ..corpus.corpus import open_corpus
    from ..index.index import RECORD_FILE, REJECTED_FILE, Index

    corpus = open_corpus(source, text, image, identifier, image_root, split)
    if (folder / RECORD_FILE).is_file():
        store = Index.open(folder)
        model = model or store.record.checkpoint
        store.check_model(model)
        if instruction is not None and instruction != store.record.instruction:
            raise ValueError(
                f"{folder} was made with the instruction {store.record.instruction!r}, not {instruction!r}: "
                "leave --instruction out, or make a new index"
            )
    else:
        model = model or "checkpoints/unime-tiny"
        store = Index.create(folder, model, instruction)
    with Progress(console=Console(stderr=True)) as progress:
        tasks = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(stage)
            progress.update(tasks[stage], completed=done, total=total)

        synced = store.update(corpus, lambda: load_onto(model, dtype, device), report)
    rejected = str(folder / REJECTED_FILE)
    if as_json:
        typer.echo(json.dumps({"index": str(folder), "entries": len(store)} | asdict(synced) | {"list": rejected}))
    else:
        typer.echo(
            f"{folder} holds {len(store)} entries: {synced.embedded} embedded, {synced.described} with new metadata, "
            f"{synced.unchanged} unchanged, {synced.removed} removed, {synced.rejected} rejected"
        )
        if synced.rejected:
            typer.echo(f"the rejected entries and the reasons are in {rejected}")
    raise typer.Exit(strict and synced.rejected > 0)


def search(
    folder: Annotated[Path, typer.Argument(help="Folder that `unime index` made.")],
    text: Annotated[str | None, typer.Argument(help="What to look for; beside --image, how that is changed.")] = None,
    image: Annotated[Path | None, typer.Option(help="Image to look for.")] = None,
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="How many entries to find.")] = 10,
    where: Annotated[str | None, typer.Option(help="SQL condition on metadata: \"category = 'food'\".")] = None,
    instruction: Annotated[
        str | None, typer.Option(help="Instruction of the query; by default what the model was trained with.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="The index's model, where it is elsewhere now.")] = None,
    dtype: Dtype = "float32",
    device: Device = None,
    show: Annotated[
        bool, typer.Option("--open", help="Write FOLDER/gallery.html and open it in the browser.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Find the entries of an index that are nearest to a text, to an image, or to an image changed by a text."""
    import webbrowser

    from rich.console import Console

    from ..data.image_files import read_image
    from ..index.index import Index
    from ..index.queries import query_item
    from ..index.results_page import QueryDescription, render_results_page

    store = Index.open(folder)
    store.table.count(where)  # what is wrong with the condition is said before the model is loaded
    query_image = image and read_image(str(image), "the query")
    item = query_item(text, query_image, store.holds_images, instruction)
    entries, hits = len(store), []
    if entries:
        checkpoint = model or store.record.checkpoint
        store.check_model(checkpoint)
        network, processor = load_onto(checkpoint, dtype, device)
        hits = store.search(network.encode(item, processor), k, where)
    asked = QueryDescription(item.get("text"), image and str(image), item.get("instruction"), where)
    if as_json:
        found = [
            {"rank": rank, "id": hit.id, "score": hit.score, "text": hit.text, "image": _path(hit)}
            | {"metadata": hit.metadata}
            for rank, hit in enumerate(hits, 1)
        ]
        said = {"index": str(folder), "entries": entries, "query": asdict(asked), "hits": found}
        typer.echo(json.dumps(said, indent=2, default=str))
    elif hits:
        Console().print(_table(hits))
    if not as_json and len(hits) < k:
        passing = "" if where is None else " that pass the condition"
        typer.echo(f"these are all {len(hits)} entries{passing}" if hits else f"{folder} holds no entries{passing}")
    if show:
        page = folder / "gallery.html"
        page.write_text(render_results_page(store, asked, hits), encoding="utf-8")
        webbrowser.open(page.resolve().as_uri())
        typer.echo(str(page), err=as_json)


def _table(hits: "Sequence[Hit]") -> "Table":
    from textwrap import shorten

    from rich.table import Column, Table
    from rich.text import Text

    table = Table("rank", "score", Column("id", overflow="fold"), Column("what it is", overflow="fold"))
    for rank, hit in enumerate(hits, 1):
        known = " · ".join(str(value) for value in hit.metadata.values() if value is not None)
        content = hit.text or known or _path(hit) or "(image in the index)"
        cells = [Text(printable(cell)) for cell in (hit.id, shorten(content, 200))]
        table.add_row(str(rank), f"{hit.score:.3f}", *cells)
    return table


def _path(hit: "Hit") -> str | None:
    return hit.image if isinstance(hit.image, str) else None
