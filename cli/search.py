"""`unime search`: find the entries of an index that are nearest to a query."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..json_output import to_json
from .options import AsJson, Device, Dtype, load_onto, note_demonstration, printable


if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..index.index import Hit


def search(
    folder: Annotated[Path, typer.Argument(help="Folder of an index that `unime index` created.")],
    text: Annotated[
        str | None, typer.Argument(help="Text to search for; with --image, how the image should differ.")
    ] = None,
    image: Annotated[Path | None, typer.Option(help="Image to search for.")] = None,
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="Number of entries to return.")] = 10,
    where: Annotated[
        str | None,
        typer.Option(
            help="SQL condition on the columns id, text and those of the metadata, such as \"category = 'food' AND "
            "price < 10\"; --where '' lists the columns."
        ),
    ] = None,
    kind: Annotated[
        Literal["text", "image", "image-text"] | None,
        typer.Option(help="Kind of entries: texts, images, or images with a text; by default all, merged by score."),
    ] = None,
    instruction: Annotated[
        str | None, typer.Option(help="Instruction of the query; by default the one used in training.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model of the index, if it has moved.")] = None,
    rerank: Annotated[
        str | None,
        typer.Option(help="Reranker that orders the best entries, such as a model trained by recipes/rerank.py."),
    ] = None,
    depth: Annotated[int, typer.Option(min=2, help="With --rerank: number of entries to rerank, at least -k.")] = 10,
    dtype: Dtype = "float32",
    device: Device = None,
    open_page: Annotated[
        bool, typer.Option("--open", help="Write FOLDER/results.html and open it in the browser.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Find the entries of an index that are nearest to a text, to an image, or to an image changed by a text."""
    from ..index.index import Index
    from ..index.queries import embed_queries, query_item, query_items, shown_instruction
    from ..index.results_page import QueryDescription, render_results_page

    store = Index.open(folder)
    store.table.count(where)  # reports an invalid condition before the model is loaded

    from ..checkpoint import named_prompts
    from ..data.image_files import read_image

    query_image = None if image is None else read_image(str(image), "the query")
    item = query_item(text, query_image)  # reports an empty query before the model is loaded
    num_entries, hits, shown = len(store), [], instruction
    kinds = store.kinds if kind is None else [kind]
    if num_entries:
        checkpoint = model or store.record.checkpoint
        store.check_model(checkpoint)
        note_demonstration(checkpoint)
        network, processor = load_onto(checkpoint, dtype, device, store.record.image_size, store.record.preset)
        items = query_items(kinds, text, query_image, instruction, named_prompts(network.config))
        vectors, shown = embed_queries(network, processor, items), shown_instruction(items)
        hits = store.search(vectors, k if rerank is None else max(k, depth), where)
        if rerank is not None and hits:
            from ..index.rerank_hits import rerank_hits
            from ..reranker import UniMEReranker

            reranker = UniMEReranker.from_pretrained(rerank, device=network.device, dtype=dtype)
            hits = rerank_hits(reranker.scores, query_item(text, query_image, instruction=""), hits, k)
    query = QueryDescription(item.get("text"), None if image is None else str(image), shown, where)
    if as_json:
        rows = [
            {"rank": rank, "id": hit.id, "score": hit.score, "standard_score": hit.standard_score}
            | ({} if rerank is None else {"rerank_score": hit.rerank_score})
            | {"text": hit.text, "image": _image_path(hit), "metadata": hit.metadata}
            for rank, hit in enumerate(hits, 1)
        ]
        result = {"index": str(folder), "entries": num_entries, "query": asdict(query), "hits": rows}
        typer.echo(to_json(result, indent=2, default=str))
    elif hits:
        _print_table(hits)
    if not as_json and len(hits) < k:
        condition = "" if kind is None else f" of the kind {kind}"
        condition += "" if where is None else " that meet the condition"
        typer.echo(
            f"these are all {len(hits)} entries{condition}" if hits else f"{folder} holds no entries{condition}"
        )
    if open_page:
        import webbrowser

        page = folder / "results.html"
        page.write_text(render_results_page(store, query, hits), encoding="utf-8")
        webbrowser.open(page.resolve().as_uri())
        typer.echo(str(page), err=as_json)


def _print_table(hits: "Sequence[Hit]") -> None:
    from textwrap import shorten

    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    merged = any(hit.standard_score is not None for hit in hits)
    caption = "in the order of (score - median) / spread among the entries of the same kind" if merged else None
    reranked = any(hit.rerank_score is not None for hit in hits)
    caption = "in the order of the reranker; the score is its probability of Yes" if reranked else caption
    columns = [Column(name, overflow="fold") for name in ("id", "content")]
    table = Table("rank", "score", *columns, caption=caption)
    for rank, hit in enumerate(hits, 1):
        metadata = " · ".join(str(value) for value in hit.metadata.values() if value is not None)
        content = hit.text or metadata or _image_path(hit) or "(image in the index)"
        cells = [Text(printable(cell)) for cell in (hit.id, shorten(content, 200))]
        table.add_row(str(rank), f"{hit.score if hit.rerank_score is None else hit.rerank_score:.3f}", *cells)
    Console().print(table)


def _image_path(hit: "Hit") -> str | None:
    return hit.image if isinstance(hit.image, str) else None
