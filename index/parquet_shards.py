"""Embeddings of a corpus as a folder of Parquet files, which a killed job continues.

A shard holds the embeddings of `WINDOW` entries that follow each other. Its name has its number and a hash of what
those entries are, so that the next run knows which shards it need not make; it is there whole or not at all, and its
pages have checksums, so that a damaged one is found and made again. pandas, Polars, DuckDB and `datasets` read the
folder as one table.
"""

import hashlib
import json
import logging
import re
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
from transformers import PreTrainedModel, ProcessorMixin

from ..corpus.corpus import Entry
from ..storage.atomic_files import atomic_write
from .entry_embedding import READER_THREADS, WINDOW_ENTRIES, Rejected, embed_entries


NAME = re.compile(r"\d{6}-[0-9a-f]{32}\.parquet")
SETTINGS, REJECTED = b"unime", b"unime.rejected"  # keys of a shard's metadata

Settings = Mapping[str, str | int | None]
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shard:
    """The entries of one file."""

    name: str
    entries: list[Entry]


def shards(corpus: Sequence[Entry]) -> Iterator[Shard]:
    """Cut a corpus into shards and name them by what the model will see and what the file will hold."""
    entries = iter(corpus)
    with ThreadPoolExecutor(READER_THREADS) as readers:
        for number in range(0, -(-len(corpus) // WINDOW_ENTRIES)):
            some = list(islice(entries, WINDOW_ENTRIES))
            digest = hashlib.blake2b(digest_size=16)
            for identity in readers.map(_identity, some):
                digest.update(identity.encode())
            yield Shard(f"{number:06d}-{digest.hexdigest()}.parquet", some)


def _identity(entry: Entry) -> str:
    try:
        content = entry.content
    except ValueError as error:
        content = str(error)
    path = entry.image if isinstance(entry.image, str) else None
    return json.dumps([entry.id, content, entry.text, path, entry.metadata])


def write_shards(
    corpus: Sequence[Entry],
    folder: Path,
    model: PreTrainedModel,
    processor: ProcessorMixin,
    settings: Settings,
    report: Callable[[int, Sequence[Rejected]], None],
) -> int:
    """Embed what a folder does not hold yet; at the end, shards of what is no longer in the corpus are removed.

    Args:
        corpus (`Sequence[Entry]`): What to embed.
        folder (`Path`): Where to; made if absent.
        model ([`UniMEModel`]): The model.
        processor (`ProcessorMixin`): Its processor.
        settings (`dict`): What the vectors depend on, kept in every shard: `source`, `checkpoint`, `revision`,
            `instruction` (None for the defaults of [`embed_entries`]), `dimensions` and `dtype`.
        report (`Callable`): Told, as the job goes, how many entries more are done and which of them are rejected.

    Returns:
        `int`: Entries whose vectors were there already.

    Raises:
        ValueError: The folder holds something else.
    """
    _require_own(folder, settings)
    folder.mkdir(parents=True, exist_ok=True)
    names, started, kept = set(), deque(), 0

    def missing() -> Iterator[Entry]:
        nonlocal kept
        for shard in shards(corpus):
            names.add(shard.name)
            if (folder / shard.name).exists():
                rejected = rejected_in(folder / shard.name)
                kept += len(shard.entries) - len(rejected)
                report(len(shard.entries), rejected)
            else:
                started.append(shard)
                yield from shard.entries

    found = {}  # by id: the vectors and reasons of shards that are not yet complete
    instruction, dimensions = settings["instruction"], settings["dimensions"]
    # Windows of a shard's size: its vectors are the same to the bit, whichever others are missing beside it.
    for window in embed_entries(model, processor, missing(), instruction, dimensions, WINDOW_ENTRIES):
        found |= zip((entry.id for entry in window.entries), window.vectors, strict=True)
        found |= {rejected.id: rejected for rejected in window.rejected}
        report(len(window.entries) + len(window.rejected), window.rejected)
        while started and started[0].entries[-1].id in found:
            shard = started.popleft()
            _write(folder / shard.name, shard.entries, [found.pop(entry.id) for entry in shard.entries], settings)
    for path in folder.iterdir():
        if path.name not in names:
            path.unlink()
    return kept


def _require_own(folder: Path, settings: Settings) -> None:
    """Refuse a folder that holds anything but shards that were made with these settings; remove damaged ones."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name.endswith(".part"):
            continue
        if not NAME.fullmatch(path.name):
            raise ValueError(f"{folder} holds {path.name}, which is no embeddings: name a new folder")
        if not _is_intact(path):
            logger.warning("%s is damaged: it is removed and made again", path)
            path.unlink()
            continue
        recorded = json.loads(pq.read_schema(path).metadata[SETTINGS])
        for name, value in settings.items():
            if recorded[name] != value:
                raise ValueError(
                    f"{folder} holds embeddings with the {name} {recorded[name]!r}, not {value!r}: name a new folder"
                )


def _is_intact(shard: Path) -> bool:
    try:
        pq.read_table(shard, page_checksum_verification=True)
    except pa.ArrowInvalid:
        return False
    except OSError as error:
        if error.errno is not None:  # the file cannot be opened, which says nothing of its content
            raise
        return False
    return True


def _write(path: Path, entries: Sequence[Entry], found: Sequence[np.ndarray | Rejected], settings: Settings) -> None:
    rejected = [one for one in found if isinstance(one, Rejected)]
    good = [(entry, one) for entry, one in zip(entries, found, strict=True) if not isinstance(one, Rejected)]
    vectors = np.concatenate([vector for _, vector in good]) if good else np.zeros(0, np.float32)
    columns = {
        "id": pa.array([entry.id for entry, _ in good], pa.string()),
        "text": pa.array([entry.text for entry, _ in good], pa.string()),
        "image": pa.array([entry.image if isinstance(entry.image, str) else None for entry, _ in good], pa.string()),
        "metadata": pa.array([json.dumps(entry.metadata) for entry, _ in good], pa.string()),
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors), settings["dimensions"]),
    }
    metadata = {SETTINGS: json.dumps(dict(settings)), REJECTED: json.dumps([asdict(one) for one in rejected])}
    with atomic_write(path) as part:
        pq.write_table(pa.table(columns).replace_schema_metadata(metadata), part, write_page_checksum=True)


def rejected_in(shard: Path) -> list[Rejected]:
    """The entries of a shard that could not be embedded."""
    return [Rejected(**one) for one in json.loads(pq.read_schema(shard).metadata[REJECTED])]


def write_lance(folder: Path, output: Path) -> None:
    """Turn a folder of shards into a Lance dataset, which is there whole or not at all, and remove the folder."""
    import lancedb

    part = output.with_name(f".{output.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # of a job that was killed here
    shards = pa.dataset.dataset([str(path) for path in sorted(folder.glob("*.parquet"))])
    metadata = {SETTINGS: shards.schema.metadata[SETTINGS]}
    rows = shards.replace_schema(shards.schema.with_metadata(metadata)).scanner().to_reader()
    lancedb.connect(part).create_table(output.stem, rows)
    (part / output.name).replace(output)
    shutil.rmtree(part)
    shutil.rmtree(folder)
