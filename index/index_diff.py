"""The difference between a corpus and an index, computed from ids and hashes without a model."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pyarrow as pa

from ..corpus.entry import Entry
from .entry_embedding import READER_THREADS, WINDOW_ENTRIES, Rejected
from .metadata_columns import extend_schema
from .schema import entry_details


ProgressCallback = Callable[[str, int, int], None]  # stage, entries done, total number of entries


@dataclass
class IndexDiff:
    """The work needed to synchronize an index with a corpus. Integers are positions in the corpus.

    Args:
        schema (`pa.Schema`): Columns of the index, including the columns that the corpus adds.
        new, changed (`list[int]`): Entries to embed: not in the index, or in the index with different content.
        metadata_changed (`list[int]`): Entries with the same content, but different metadata or image path.
        gone (`list[str]`): Ids in the index that are missing from the corpus or can no longer be read.
        unchanged (`int`): Number of unchanged entries.
        contents (`dict[str, str]`): Content hash of every entry to write, by id.
        rejected (`list[Rejected]`): Entries that cannot be read.
        left_out (`Counter`): Number of metadata values that no column can hold, by key.
    """

    schema: pa.Schema
    new: list[int] = field(default_factory=list)
    changed: list[int] = field(default_factory=list)
    metadata_changed: list[int] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    unchanged: int = 0
    contents: dict[str, str] = field(default_factory=dict)
    rejected: list[Rejected] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


def diff_corpus(
    corpus: Sequence[Entry], indexed: Mapping[str, tuple[str, str]], schema: pa.Schema, report: ProgressCallback
) -> IndexDiff:
    """Compare a corpus with an index.

    Args:
        corpus (`Sequence[Entry]`): Desired content of the index; every entry is read once.
        indexed (`Mapping[str, tuple[str, str]]`): Content hash and details hash of each indexed entry, by id.
        schema (`pa.Schema`): Columns of the index.
        report (`Callable`): Progress callback.

    Raises:
        ValueError: Two entries have the same id.
    """
    diff, seen, readable = IndexDiff(schema), set(), set()
    for start, entries, contents in _read(corpus):
        valid = [entry for entry, content in zip(entries, contents, strict=True) if isinstance(content, str)]
        diff.schema, left_out = extend_schema(valid, diff.schema, schema)
        diff.left_out += left_out
        for position, (entry, content) in enumerate(zip(entries, contents, strict=True), start):
            if entry.id in seen:
                raise ValueError(f"two entries of the corpus have the id {entry.id!r}: make the ids unique")
            seen.add(entry.id)
            if isinstance(content, Rejected):
                diff.rejected.append(content)
                continue
            readable.add(entry.id)
            hashes = indexed.get(entry.id)
            if hashes == (content, entry_details(entry)):
                diff.unchanged += 1
                continue
            diff.contents[entry.id] = content
            if hashes is None:
                diff.new.append(position)
            elif hashes[0] != content:
                diff.changed.append(position)
            else:
                diff.metadata_changed.append(position)
        report("Reading", start + len(entries), len(corpus))
    diff.gone = [entry_id for entry_id in indexed if entry_id not in readable]
    return diff


def _read(corpus: Sequence[Entry]) -> Iterator[tuple[int, list[Entry], list[str | Rejected]]]:
    """Yield windows of entries: the first position, the entries, and their content hashes or rejections."""
    with ThreadPoolExecutor(READER_THREADS) as pool:
        for start in range(0, len(corpus), WINDOW_ENTRIES):
            entries = [corpus[position] for position in range(start, min(start + WINDOW_ENTRIES, len(corpus)))]
            yield start, entries, list(pool.map(_content, entries))


def _content(entry: Entry) -> str | Rejected:
    try:
        return entry.content
    except ValueError as error:
        return Rejected(entry.id, str(error))
