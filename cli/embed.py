"""`unime embed` and `unime index`: embed a corpus into files, or into an index that stays in sync with it."""

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..json_output import to_json
from .options import (
    MODEL_HELP,
    AsJson,
    Captions,
    Device,
    DraftJpegs,
    Dtype,
    Exclude,
    FollowLinks,
    IdColumn,
    ImageColumn,
    ImageRoot,
    ImageSize,
    Metadata,
    Model,
    Preset,
    Source,
    Split,
    TextColumn,
    load_onto,
    model_or_default,
    note_demonstration,
    printable,
)
from .progress import interruptible, job


if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..index.entry_embedding import Rejected


@interruptible
def embed(
    source: Source,
    output: Annotated[Path, typer.Argument(help="Folder for Parquet files, or a name ending in .lance for Lance.")],
    model: Model = None,
    prompt: Annotated[str | None, typer.Option(help="Named prompt for every entry, such as 'image'.")] = None,
    instruction: Annotated[str | None, typer.Option(help="Instruction for every entry, as free text.")] = None,
    text: TextColumn = "text",
    image: ImageColumn = "image",
    identifier: IdColumn = "id",
    image_root: ImageRoot = None,
    split: Split = "train",
    metadata: Metadata = None,
    exclude: Exclude = None,
    captions: Captions = None,
    follow_links: FollowLinks = False,
    image_size: ImageSize = None,
    preset: Preset = None,
    draft_jpegs: DraftJpegs = False,
    dtype: Dtype = "float32",
    device: Device = None,
    truncate_dim: Annotated[int | None, typer.Option(help="Number of leading dimensions to keep.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first bad entry, with status 1.")] = False,
    as_json: AsJson = False,
) -> None:
    """Embed a corpus into Parquet or Lance: columns id, text, image (path), metadata (JSON), embedding.

    A run that was killed continues where it stopped when it is started again. Entries that cannot be embedded are
    listed, with the reason, in OUTPUT.rejected.jsonl.
    """
    model = model_or_default(model)

    from ..checkpoint import PROMPTS, fingerprint
    from ..corpus.corpus import open_corpus
    from ..image_size import parse_image_size
    from ..index.parquet_shards import rejected_in, write_lance, write_shards

    if prompt is not None and instruction is not None:
        raise ValueError("--prompt and --instruction exclude each other: give one of them")
    if prompt is not None and prompt not in PROMPTS:
        raise ValueError(f"there is no prompt {prompt!r}: choose from {', '.join(PROMPTS)}")
    is_lance = output.suffix == ".lance"
    if output.exists() and (is_lance or not output.is_dir()):
        raise ValueError(f"{output} exists: remove it, or choose another output")
    if Path(source).is_dir() and output.resolve().is_relative_to(Path(source).resolve()):
        raise ValueError(f"{output} is inside the source {source} and would become part of it: choose another folder")
    started = time.perf_counter()
    corpus = open_corpus(
        source, text, image, identifier, image_root, split, metadata, exclude or (), captions, follow_links
    )
    note_demonstration(model, source)
    network, processor = load_onto(model, dtype, device, image_size, preset)
    settings = {
        "source": str(Path(source).resolve()) if Path(source).exists() else source,
        "checkpoint": model,
        "revision": fingerprint(model),
        "instruction": instruction if prompt is None else PROMPTS[prompt],
        "dimensions": network.config.hidden_size if truncate_dim is None else truncate_dim,
        "dtype": dtype,
        "image_size": parse_image_size(image_size),
        "preset": preset,
        "draft_jpegs": draft_jpegs,
    }
    shards = output.with_name(f".{output.name}.shards") if is_lance else output
    num_done = 0

    def kept() -> str:
        files = list(shards.glob("*.parquet"))
        return f"{shards} holds {len(files)} finished files; start the same command again for the rest"

    with job(kept) as show:

        def report(entries: int, rejected: "Sequence[Rejected]") -> None:
            nonlocal num_done
            num_done += entries
            show("Embedding", num_done, len(corpus))
            if strict and rejected:
                typer.echo(printable(rejected[0].reason), err=True)
                raise typer.Exit(1)

        num_kept = write_shards(corpus, shards, network, processor, settings, report)
    rejected = [entry for shard in sorted(shards.glob("*.parquet")) for entry in rejected_in(shard)]
    rejected_file = output.with_name(f"{output.name}.rejected.jsonl")
    rejected_file.unlink(missing_ok=True)
    if rejected:
        rejected_file.write_text("".join(json.dumps(asdict(entry)) + "\n" for entry in rejected))
    if is_lance:
        write_lance(shards, output)
    result = {
        "output": str(output),
        "embedded": len(corpus) - len(rejected) - num_kept,
        "kept": num_kept,
        "rejected": len(rejected),
        "skipped": dict(corpus.skipped),
        "list": str(rejected_file) if rejected else None,
        "seconds": round(time.perf_counter() - started, 2),
    }
    _print_result(
        f"{result['embedded']} entries embedded into {output}, {num_kept} kept from an earlier run, "
        f"{len(rejected)} rejected",
        result | settings if as_json else None,
        rejected_file if rejected else None,
    )


@interruptible
def index(
    source: Source,
    folder: Annotated[Path, typer.Argument(help="Folder of the index; created if it does not exist.")],
    model: Annotated[str | None, typer.Option(help=f"{MODEL_HELP} An existing index keeps its model.")] = None,
    instruction: Annotated[
        str | None, typer.Option(help="Instruction for every entry, as free text; only for a new index.")
    ] = None,
    text: TextColumn = "text",
    image: ImageColumn = "image",
    identifier: IdColumn = "id",
    image_root: ImageRoot = None,
    split: Split = "train",
    metadata: Metadata = None,
    exclude: Exclude = None,
    captions: Captions = None,
    follow_links: FollowLinks = False,
    image_size: ImageSize = None,
    preset: Preset = None,
    draft_jpegs: DraftJpegs = False,
    dtype: Dtype = "float32",
    device: Device = None,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with status 1 if an entry was rejected.")] = False,
    as_json: AsJson = False,
) -> None:
    """Embed a corpus into an index for `unime search`, or update an existing index.

    An update embeds new and changed entries, keeps the others, and removes entries that the corpus no longer has. A
    run that was killed continues where it stopped when it is started again. Entries that cannot be embedded are
    listed, with the reason, in FOLDER/rejected.jsonl.
    """
    is_new = not (folder / "index.json").is_file()
    if is_new:
        model = model_or_default(model)

    from ..corpus.corpus import open_corpus
    from ..image_size import parse_image_size
    from ..index.index import REJECTED_FILE, Index

    corpus = open_corpus(
        source, text, image, identifier, image_root, split, metadata, exclude or (), captions, follow_links
    )
    if is_new:
        store = Index.create(folder, str(model), instruction, parse_image_size(image_size), preset, draft_jpegs)
    else:
        store = Index.open(folder)
        model = model or store.record.checkpoint
        store.check_model(model)
        if instruction is not None and instruction != store.record.instruction:
            raise ValueError(
                f"{folder} was created with the instruction {store.record.instruction!r}, not {instruction!r}: "
                "leave --instruction out, or create a new index"
            )
        if image_size is not None and parse_image_size(image_size) != store.record.image_size:
            size = store.record.image_size or "saved with its model"
            raise ValueError(
                f"{folder} was created with the image size {size}, not {image_size}: leave --image-size out, or "
                "create a new index"
            )
        if preset is not None and preset != store.record.preset:
            created = f"the preset {store.record.preset}" if store.record.preset else "the preset of its model"
            raise ValueError(
                f"{folder} was created with {created}, not {preset}: leave --preset out, or create a new index"
            )
        if draft_jpegs and not store.record.draft_jpegs:
            raise ValueError(
                f"{folder} was created without --draft-jpegs: leave the option out, or create a new index"
            )
    note_demonstration(str(model), source)
    num_written = 0

    def kept() -> str:
        return f"at least {num_written} entries of this run are in {folder}; start the same command again for the rest"

    with job(kept) as show:

        def report(stage: str, done: int, total: int) -> None:
            nonlocal num_written
            num_written = done if stage == "Embedding" else 0
            show(stage, done, total)

        stored = store.record.image_size, store.record.preset
        synced = store.update(corpus, lambda: load_onto(str(model), dtype, device, *stored), report)
    rejected_file = folder / REJECTED_FILE
    result = {"index": str(folder), "entries": len(store)} | asdict(synced)
    result |= {"skipped": dict(corpus.skipped), "list": str(rejected_file)}
    _print_result(
        f"{folder} holds {len(store)} entries: {synced.embedded} embedded, {synced.metadata_updated} with new "
        f"metadata, {synced.unchanged} unchanged, {synced.removed} removed, {synced.rejected} rejected",
        result if as_json else None,
        rejected_file if synced.rejected else None,
    )
    raise typer.Exit(strict and synced.rejected > 0)


def _print_result(sentence: str, result: dict | None, rejected_file: Path | None) -> None:
    """Print `result` as JSON, or without it a sentence and where the rejected entries are listed."""
    if result is not None:
        typer.echo(to_json(result, indent=2))
        return
    typer.echo(sentence)
    if rejected_file is not None:
        typer.echo(f"the rejected entries and the reasons are in {rejected_file}")
