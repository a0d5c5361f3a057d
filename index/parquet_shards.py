"""Embeddings of a corpus as a folder of Parquet files, which an interrupted job resumes.

A shard holds the embeddings of `WINDOW_ENTRIES` consecutive entries. Its name contains its number and a hash of those
entries, so the next run knows which shards it can skip. Shards are written atomically and their pages have checksums,
so damaged shards are detected and rebuilt. pandas, Polars, DuckDB and `datasets` read the folder as one table.
"""

import hashlib
import json
import logging
import re
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
from transformers import PreTrainedModel, ProcessorMixin

from ..corpus.entry import Entry
from ..json_output import to_json
from ..storage.atomic_files import atomic_write
from .entry_embedding import READER_THREADS, WINDOW_ENTRIES, Rejected, embed_entries


SHARD_NAME = re.compile(r"\d{6}-[0-9a-f]{32}\.parquet")
SETTINGS_KEY, REJECTED_KEY = b"unime", b"unime.rejected"  # in the metadata of a shard

Settings = Mapping[str, Any]  # ready for JSON
logger = logging.getLogger(__name__)


def _shards(corpus: Sequence[Entry]) -> Iterator[tuple[str, list[Entry]]]:
    """Split a corpus into shards: file names, which hash what the model sees and the file stores, and entries."""
    entries = iter(corpus)
    with ThreadPoolExecutor(READER_THREADS) as readers:
        for number in range(0, -(-len(corpus) // WINDOW_ENTRIES)):
            window = list(islice(entries, WINDOW_ENTRIES))
            digest = hashlib.blake2b(digest_size=16)
            for identity in readers.map(_identity, window):
                digest.update(identity.encode())
            yield f"{number:06d}-{digest.hexdigest()}.parquet", window


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
    """Embed the shards of a corpus that a folder lacks, then delete the shards that are not part of the corpus.

    Args:
        corpus (`Sequence[Entry]`): Entries to embed.
        folder (`Path`): Output folder, created if it does not exist.
        model ([`UniMEModel`]): Model.
        processor (`ProcessorMixin`): Processor of the model.
        settings (`dict`): What the embeddings depend on, stored in every shard: `source`, `checkpoint`, `revision`,
            `instruction` (`None` for the defaults of [`embed_entries`]), `dimensions`, `dtype`, `image_size` and
            `preset` (`None` for those of the checkpoint), and `draft_jpegs`.
        report (`Callable`): Called with the number of further entries done and those of them that were rejected.

    Returns:
        `int`: Number of entries whose embeddings were already in the folder.

    Raises:
        ValueError: The folder holds other files, or shards with other settings.
    """
    _check_folder(folder, settings)
    folder.mkdir(parents=True, exist_ok=True)
    names, pending, num_kept = set(), deque(), 0

    def missing_entries() -> Iterator[Entry]:
        nonlocal num_kept
        for name, entries in _shards(corpus):
            names.add(name)
            if (folder / name).exists():
                rejected = rejected_in(folder / name)
                num_kept += len(entries) - len(rejected)
                report(len(entries), rejected)
            else:
                pending.append((name, entries))
                yield from entries

    results = {}  # vectors and rejections of incomplete shards, by id
    windows = embed_entries(
        model,
        processor,
        missing_entries(),
        settings["instruction"],
        settings["dimensions"],
        WINDOW_ENTRIES,  # the size of a shard, so that its vectors do not depend on which other shards are missing
        settings["draft_jpegs"],
    )
    for window in windows:
        results |= zip((entry.id for entry in window.entries), window.vectors, strict=True)
        results |= {rejected.id: rejected for rejected in window.rejected}
        report(len(window.entries) + len(window.rejected), window.rejected)
        while pending and pending[0][1][-1].id in results:
            name, entries = pending.popleft()
            _write(folder / name, entries, [results.pop(entry.id) for entry in entries], settings)
    for path in folder.iterdir():
        if path.name not in names:
            path.unlink()
    return num_kept


def _check_folder(folder: Path, settings: Settings) -> None:
    """Check that a folder holds only shards that were made with these settings, and delete damaged ones."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name.endswith(".part"):
            continue
        if not SHARD_NAME.fullmatch(path.name):
            raise ValueError(f"{folder} holds {path.name}, which is not a file of embeddings: choose a new folder")
        if not _is_intact(path):
            logger.warning("%s is damaged and will be written again", path)
            path.unlink()
            continue
        recorded = json.loads(pq.read_schema(path).metadata[SETTINGS_KEY])
        for name, value in settings.items():
            if recorded.get(name) != value:
                raise ValueError(
                    f"{folder} holds embeddings with the {name} {recorded.get(name)!r}, not {value!r}: choose a new "
                    "folder"
                )


def _is_intact(shard: Path) -> bool:
    try:
        pq.read_table(shard, page_checksum_verification=True)
    except pa.ArrowInvalid:
        return False
    except OSError as error:
        if error.errno is not None:  # a file that cannot be opened need not be damaged
            raise
        return False
    return True


def _write(path: Path, entries: Sequence[Entry], results: Sequence[np.ndarray | Rejected], settings: Settings) -> None:
    rejected = [result for result in results if isinstance(result, Rejected)]
    embedded = [pair for pair in zip(entries, results, strict=True) if not isinstance(pair[1], Rejected)]
    entries = [entry for entry, _ in embedded]
    vectors = np.concatenate([vector for _, vector in embedded]) if embedded else np.zeros(0, np.float32)
    columns = {
        "id": pa.array([entry.id for entry in entries], pa.string()),
        "text": pa.array([entry.text for entry in entries], pa.string()),
        "image": pa.array([entry.image if isinstance(entry.image, str) else None for entry in entries], pa.string()),
        "metadata": pa.array([to_json(entry.metadata) for entry in entries], pa.string()),
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors), settings["dimensions"]),
    }
    metadata = {
        SETTINGS_KEY: json.dumps(dict(settings)),
        REJECTED_KEY: json.dumps([asdict(entry) for entry in rejected]),
    }
    with atomic_write(path) as part:
        pq.write_table(pa.table(columns).replace_schema_metadata(metadata), part, write_page_checksum=True)


def rejected_in(shard: Path) -> list[Rejected]:
    """Return the entries of a shard that could not be embedded."""
    return [Rejected(**entry) for entry in json.loads(pq.read_schema(shard).metadata[REJECTED_KEY])]


def write_lance(folder: Path, output: Path) -> None:
    """Convert a folder of shards into a Lance dataset, written atomically, and delete the folder."""
    import lancedb

    part = output.with_name(f".{output.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # left by a killed job
    shards = pa.dataset.dataset([str(path) for path in sorted(folder.glob("*.parquet"))])
    metadata = {SETTINGS_KEY: shards.schema.metadata[SETTINGS_KEY]}
    rows = shards.replace_schema(shards.schema.with_metadata(metadata)).scanner().to_reader()
    lancedb.connect(part).create_table(output.stem, rows)
    (part / output.name).replace(output)
    shutil.rmtree(part)
    shutil.rmtree(folder)
