"""An index folder: entries and their embeddings in a LanceDB table, kept in sync with a corpus and searched.

    index = Index.create("index", "checkpoints/unime-tiny")
    index.sync(open_corpus("photos"), model, processor)
    index = Index.open("index")
    queries = embed_queries(model, processor, query_items(index.kinds, "a slice of pizza"))
    hits = index.search(queries, k=10, where="category = 'food'")

Each window of embedded entries is one transaction, and entries are identified by id and content hash. A run that
follows a killed one finds what was written unchanged and continues with the rest.
"""

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from filelock import FileLock, Timeout
from transformers import PreTrainedModel, ProcessorMixin

from ..checkpoint import fingerprint
from ..checkpoint_safety import read_config
from ..configuration_unime import embedding_dimensions
from ..corpus.entry import Entry
from ..storage.atomic_files import atomic_write
from .entry_embedding import Rejected, embed_entries
from .index_diff import ProgressCallback, diff_corpus
from .kinds import KINDS, SAMPLE_ENTRIES, scales
from .lance_table import EntryTable
from .schema import metadata_of


RECORD_FILE = "index.json"
REJECTED_FILE = "rejected.jsonl"
COMPACT_EVERY_WINDOWS = 200

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class IndexRecord:
    """The model and the settings that produced the embeddings of an index.

    Args:
        checkpoint (`str`): Folder or Hub id of the model.
        revision (`str`): Fingerprint of the checkpoint; see [`fingerprint`].
        dimensions (`int`): Dimension of the embeddings.
        instruction (`str`, *optional*): Instruction of every entry; `None` for the defaults of [`embed_entries`].
        image_size (`int` or `dict`, *optional*): The size at which the model reads images; see [`set_image_size`].
            `None` for the size saved with the checkpoint.
        preset (`str`, *optional*): How a published embedder is run, see [`load_model`]. `None` for the preset of its
            id, if it has one.
        draft_jpegs (`bool`, defaults to `False`): Whether large JPEGs are decoded at a fraction of their size.
    """

    checkpoint: str
    revision: str
    dimensions: int
    instruction: str | None = None
    image_size: int | dict[str, Any] | None = None
    preset: str | None = None
    draft_jpegs: bool = False


@dataclass(frozen=True)
class Hit:
    """A search result.

    Args:
        id (`str`): Identifier of the entry.
        score (`float`): Cosine of the entry with the query.
        text (`str`, *optional*): Text of the entry.
        image (`str` or `bytes`, *optional*): Path of the image, or a small encoded image.
        metadata (`dict`): Other values of the entry.
        standard_score (`float`, *optional*): What results of several kinds are ordered by: how far the cosine is above
            the median of the entries of the same kind, in units of their spread.
        rerank_score (`float`, *optional*): Score of a reranker, which results are then ordered by.
    """

    id: str
    score: float
    text: str | None
    image: str | bytes | None = field(repr=False)
    metadata: dict[str, Any]
    standard_score: float | None = None
    rerank_score: float | None = None


@dataclass(frozen=True)
class SyncResult:
    """The number of entries that [`Index.sync`] handled in each way.

    Args:
        embedded (`int`): New entries and entries with changed content.
        metadata_updated (`int`): Entries of which only the metadata or the image path changed.
        unchanged (`int`): Entries that stayed as they were.
        removed (`int`): Indexed entries that are missing from the corpus or can no longer be read.
        rejected (`int`): Entries that could not be embedded.
    """

    embedded: int
    metadata_updated: int
    unchanged: int
    removed: int
    rejected: int


class Index:
    """An existing index; use [`Index.create`] or [`Index.open`].

    Attributes:
        folder (`Path`): Folder of the index.
        record ([`IndexRecord`]): Model and settings that produced the embeddings.
        table ([`EntryTable`]): Table of the entries.
    """

    def __init__(self, folder: Path, record: IndexRecord):
        self.folder, self.record = folder, record
        self.table = EntryTable(folder, record.dimensions)

    @classmethod
    def open(cls, folder: str | Path) -> "Index":
        """Open an index.

        Raises:
            ValueError: The folder is not an index, or its files are damaged.
        """
        file = Path(folder) / RECORD_FILE
        if not file.is_file():
            raise ValueError(f"{folder} is not an index: create one with `unime index SOURCE {folder}`")
        try:
            record = IndexRecord(**json.loads(file.read_text()))
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{file} does not describe an index ({error}): create the index again in another folder"
            ) from None
        return cls(Path(folder), record)

    @classmethod
    def create(
        cls,
        folder: str | Path,
        checkpoint: str,
        instruction: str | None = None,
        image_size: int | dict[str, Any] | None = None,
        preset: str | None = None,
        draft_jpegs: bool = False,
    ) -> "Index":
        """Create an empty index for the embeddings of a model.

        Args:
            folder (`str` or `Path`): New or empty folder.
            checkpoint (`str`): Folder or Hub id of the model.
            instruction (`str`, *optional*): Instruction of every entry. Defaults to those of [`embed_entries`].
            image_size (`int` or `dict`, *optional*): The size at which the model reads images, by default the one
                saved with the checkpoint. Load the model for [`Index.sync`] with it.
            preset (`str`, *optional*): How a published embedder is run, by default as the preset of its id says. Load
                the model with it, too.
            draft_jpegs (`bool`, defaults to `False`): Whether to decode large JPEGs at a fraction of their size, see
                [`embed_entries`].

        Raises:
            ValueError: The folder is not empty.
        """
        folder = Path(folder)
        # A killed run may have left a partial record.
        if folder.is_file() or folder.is_dir() and any(path.suffix != ".part" for path in folder.iterdir()):
            raise ValueError(f"{folder} exists and is not an empty folder: choose a new folder for the index")
        dimensions = embedding_dimensions(read_config(checkpoint))
        absolute = str(Path(checkpoint).resolve()) if Path(checkpoint).is_dir() else checkpoint
        record = IndexRecord(
            absolute, fingerprint(checkpoint), dimensions, instruction, image_size, preset, draft_jpegs
        )
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(folder / RECORD_FILE) as part:
            part.write_text(json.dumps(asdict(record), indent=2) + "\n")
        return cls(folder, record)

    def __len__(self) -> int:
        return len(self.table)

    @property
    def kinds(self) -> list[str]:
        """Return the kinds of entries that the index holds, of those in `KINDS`."""
        return [kind for kind, condition in KINDS.items() if self.table.count(condition)]

    def check_model(self, checkpoint: str) -> None:
        """Check that a model is the one that produced the embeddings.

        Raises:
            ValueError: The model is missing, is another model, or has changed since.
        """
        if Path(checkpoint).is_absolute() and not Path(checkpoint).is_dir():
            raise ValueError(f"the model {checkpoint} does not exist: give its current folder (--model)")
        revision = fingerprint(checkpoint)
        if revision == "unknown":  # the author of the index chose this model, not the user who searches it
            raise ValueError(
                f"the model {checkpoint} of {self.folder} is not on this machine and is not downloaded automatically: "
                f"review it and run `hf download {checkpoint}`, or give its folder (--model)"
            )
        if revision != self.record.revision:
            raise ValueError(
                f"{self.folder} holds embeddings of {self.record.checkpoint} (revision {self.record.revision}), and "
                f"{checkpoint} is another model (revision {revision}): use the model of the index, or create a new "
                "index"
            )

    def sync(
        self,
        corpus: Sequence[Entry],
        model: PreTrainedModel,
        processor: ProcessorMixin,
        report: ProgressCallback | None = None,
    ) -> SyncResult:
        """Embed new and changed entries of a corpus, and remove indexed entries that the corpus no longer has.

        Args:
            corpus (`Sequence[Entry]`): Desired content of the index.
            model ([`UniMEModel`]): Model of the index.
            processor (`ProcessorMixin`): Processor of the model.
            report (`Callable`, *optional*): Called with the stage, the number of entries done, and the total number.

        Raises:
            ValueError: Two entries have the same id, the model has other dimensions, or another process is writing to
                the index.
        """
        return self.update(corpus, lambda: (model, processor), report)

    def update(
        self,
        corpus: Sequence[Entry],
        load: Callable[[], tuple[PreTrainedModel, ProcessorMixin]],
        report: ProgressCallback | None = None,
    ) -> SyncResult:
        """Do what [`Index.sync`] does, calling `load` for the model only if there are entries to embed."""
        report = report or (lambda stage, done, total: None)
        with self._lock(), (self.folder / REJECTED_FILE).open("w") as file:
            diff = diff_corpus(corpus, self.table.hashes(), self.table.schema, report)
            for name, count in diff.left_out.items():
                logger.warning(
                    "metadata %r: %d values are left out, because a column of an index cannot have this name, or has "
                    "values of another type; rename it, or choose columns with --metadata",
                    name, count,
                )  # fmt: skip
            self.table.add_columns(diff.schema)
            removed = self.table.delete(diff.gone)
            rejected = _write_rejected(file, diff.rejected)
            self.table.update_metadata([corpus[position] for position in diff.metadata_changed], diff.contents)
            embedded = 0
            to_embed = diff.new + diff.changed
            if to_embed:
                model, processor = load()
                self._check_dimensions(model.config.hidden_size)
                changed_ids = {corpus[position].id for position in diff.changed}
                entries = (corpus[position] for position in to_embed)
                record = self.record
                windows = embed_entries(model, processor, entries, record.instruction, draft_jpegs=record.draft_jpegs)
                for number, window in enumerate(windows, 1):
                    self.table.write(window.entries, window.vectors, diff.contents, changed_ids)
                    removed += self.table.delete([entry.id for entry in window.rejected if entry.id in changed_ids])
                    embedded += len(window.entries)
                    rejected += _write_rejected(file, window.rejected)
                    report("Embedding", embedded + rejected - len(diff.rejected), len(to_embed))
                    if number % COMPACT_EVERY_WINDOWS == 0:
                        self.table.compact()
            self.table.optimize()
        return SyncResult(embedded, len(diff.metadata_changed), diff.unchanged, removed, rejected)

    def search(self, query: np.ndarray | Mapping[str, np.ndarray], k: int = 10, where: str | None = None) -> list[Hit]:
        """Return the entries nearest to a query, best first.

        Args:
            query (`np.ndarray` of shape `(dimensions,)`, or a mapping): Query embedding, or one for each kind of
                entries to search ([`embed_queries`]): results of several kinds are ordered by their standard score.
            k (`int`, defaults to 10): Maximum number of results.
            where (`str`, *optional*): SQL condition on `id`, `text` and the metadata, such as "category = 'food'".

        Raises:
            ValueError: The vector has other dimensions, `k` is less than 1, or the condition is not valid.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        for vector in query.values() if isinstance(query, Mapping) else [query]:
            if np.ndim(vector) != 1:
                raise ValueError(f"expected one query of shape ({self.record.dimensions},), got {np.shape(vector)}")
            self._check_dimensions(len(vector))
        return self._search_kinds(query, k, where) if isinstance(query, Mapping) else self._nearest(query, k, where)

    def _search_kinds(self, queries: Mapping[str, np.ndarray], k: int, where: str | None) -> list[Hit]:
        self.table.count(where)  # reports an invalid condition
        cosines, hits = {}, {}
        for kind, query in queries.items():
            sample = self.table.sample(KINDS[kind], SAMPLE_ENTRIES)
            if len(sample):
                cosines[kind] = sample @ (query / np.linalg.norm(query))
                hits[kind] = self._nearest(
                    query, k, KINDS[kind] if where is None else f"({KINDS[kind]}) AND ({where}\n)"
                )
        if len(hits) < 2:  # nothing to compare across kinds
            return [hit for hits_of_kind in hits.values() for hit in hits_of_kind]
        scored = [(scale.score(hit.score), hit) for kind, scale in scales(cosines).items() for hit in hits[kind]]
        scored.sort(key=lambda pair: (-pair[0], pair[1].id))
        return [replace(hit, standard_score=score) for score, hit in scored[:k]]

    def _nearest(self, vector: np.ndarray, k: int, where: str | None) -> list[Hit]:
        hits = [
            Hit(row["id"], 1 - row["_distance"], row["text"], row["image"] or row["thumbnail"], metadata_of(row))
            for row in self.table.nearest(vector, k, where)
        ]
        return sorted(hits, key=lambda hit: (-hit.score, hit.id))

    def _check_dimensions(self, dimensions: int) -> None:
        if dimensions != self.record.dimensions:
            raise ValueError(
                f"{self.folder} holds embeddings of {self.record.dimensions} dimensions made by "
                f"{self.record.checkpoint}, but this model has {dimensions}: use the model of the index"
            )

    @contextmanager
    def _lock(self) -> Iterator[None]:
        # The operating system releases the lock when its holder is killed.
        try:
            with FileLock(self.folder / ".lock", timeout=0):
                yield
        except Timeout:
            raise ValueError(f"another process is writing to {self.folder}: wait until it has finished") from None


def _write_rejected(file: TextIO, rejected: Sequence[Rejected]) -> int:
    file.writelines(json.dumps(asdict(entry)) + "\n" for entry in rejected)
    file.flush()
    return len(rejected)
