"""What is different between a corpus and what an index holds of it, found by ids and hashes; no model is needed."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pyarrow as pa

from ..corpus.entry import Entry
from .entry_embedding import READER_THREADS, WINDOW_ENTRIES, Rejected
from .schema import entry_details, metadata_schema


Report = Callable[[str, int, int], None]  # what is done, how many entries are done, how many there are


@dataclass
class IndexDiff:
    """What is to be done. Entries of the corpus are given by their positions.

    Args:
        schema (`pa.Schema`): Columns of the index, with those that the corpus adds.
        new, changed (`list[int]`): To be embedded: not in the index, or there with another content.
        described (`list[int]`): Of the same content, with other metadata or at another place.
        gone (`list[str]`): Ids in the index that are not in the corpus, or not readable any more.
        unchanged (`int`): How many are as they were.
        contents (`dict[str, str]`): Hash of the content of every entry to be written, by its id.
        rejected (`list[Rejected]`): Entries that cannot be read.
    """

    schema: pa.Schema
    new: list[int] = field(default_factory=list)
    changed: list[int] = field(default_factory=list)
    described: list[int] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    unchanged: int = 0
    contents: dict[str, str] = field(default_factory=dict)
    rejected: list[Rejected] = field(default_factory=list)


def diff_corpus(
    corpus: Sequence[Entry], known: Mapping[str, tuple[str, str]], schema: pa.Schema, report: Report
) -> IndexDiff:
    """Compare a corpus with an index.

    Args:
        corpus (`Sequence[Entry]`): What the index shall hold; every entry is read once.
        known (`Mapping[str, tuple[str, str]]`): Hashes of content and details of the entries in the index, by id.
        schema (`pa.Schema`): Columns of the index.
        report (`Callable`): Told of the progress.

    Raises:
        ValueError: Two entries have one id, or metadata do not fit in columns.
    """
    changes, seen, readable = IndexDiff(schema), set(), set()
    for start, entries, contents in _read(corpus):
        fitting = [entry for entry, content in zip(entries, contents, strict=True) if isinstance(content, str)]
        changes.schema = metadata_schema(fitting, changes.schema)
        for position, (entry, content) in enumerate(zip(entries, contents, strict=True), start):
            if entry.id in seen:
                raise ValueError(f"two entries of the corpus have the id {entry.id!r}: an index needs distinct ids")
            seen.add(entry.id)
            if isinstance(content, Rejected):
                changes.rejected.append(content)
                continue
            readable.add(entry.id)
            then = known.get(entry.id)
            if then == (content, entry_details(entry)):
                changes.unchanged += 1
                continue
            changes.contents[entry.id] = content
            if then is None:
                changes.new.append(position)
            elif then[0] != content:
                changes.changed.append(position)
            else:
                changes.described.append(position)
        report("Reading", start + len(entries), len(corpus))
    changes.gone = [name for name in known if name not in readable]
    return changes


def _read(corpus: Sequence[Entry]) -> Iterator[tuple[int, list[Entry], list[str | Rejected]]]:
    """Windows of entries with the hash of each one's content, or the reason why it has none."""
    with ThreadPoolExecutor(READER_THREADS) as pool:
        for start in range(0, len(corpus), WINDOW_ENTRIES):
            entries = [corpus[position] for position in range(start, min(start + WINDOW_ENTRIES, len(corpus)))]
            yield start, entries, list(pool.map(_content, entries))


def _content(entry: Entry) -> str | Rejected:
    try:
        return entry.content
    except ValueError as error:
        return Rejected(entry.id, str(error))
