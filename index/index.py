"""An index in a folder: entries with their embeddings in a LanceDB table, kept in step with a corpus, and searched.

    store = Store.create("index", "checkpoints/unime-tiny")
    store.sync(open_corpus("photos"), model, processor)
    hits = Store.open("index").search(model.encode("a slice of pizza", processor), k=10, where="category = 'food'")

Every window of embedded entries is one transaction of the table, and an entry is known by its id and by the hash of
its content: what a killed run has written is found unchanged by the next one, which goes on with the rest.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from filelock import FileLock, Timeout
from transformers import PreTrainedModel, ProcessorMixin

from ..checkpoint import fingerprint
from ..checkpoint_safety import read_config
from ..corpus.entry import Entry
from ..storage.atomic_files import atomic_write
from .entry_embedding import Rejected, embed_entries
from .index_diff import Report, diff_corpus
from .lance_table import EntryTable
from .schema import metadata_of


RECORD_FILE = "index.json"
REJECTED_FILE = "rejected.jsonl"
MERGED_AFTER = 200  # windows


@dataclass(frozen=True)
class IndexRecord:
    """What made the vectors of an index.

    Args:
        checkpoint (`str`): Folder or Hub id of the model.
        revision (`str`): Which state of it, see [`fingerprint`].
        dimensions (`int`): Of an embedding.
        instruction (`str`, *optional*): Given with every entry; None for the defaults of [`embed_entries`].
    """

    checkpoint: str
    revision: str
    dimensions: int
    instruction: str | None = None


@dataclass(frozen=True)
class Hit:
    """An entry that was found: `score` is the cosine with the query, `image` a path or a small encoded image."""

    id: str
    score: float
    text: str | None
    image: str | bytes | None = field(repr=False)
    metadata: dict[str, Any]


@dataclass(frozen=True)
class SyncResult:
    """What [`Store.sync`] has done: numbers of entries.

    `embedded` are the new ones and those with another content, `described` those of which only the metadata or the
    image's place are new, `removed` those that were in the index and are not in the corpus or not readable any more.
    """

    embedded: int
    described: int
    unchanged: int
    removed: int
    rejected: int


class Index:
    """An index that exists; see [`Store.create`] and [`Store.open`].

    Attributes:
        folder (`Path`): Where it lies.
        record ([`IndexRecord`]): The model that made its vectors.
    """

    def __init__(self, folder: Path, record: IndexRecord):
        self.folder, self.record = folder, record
        self.table = EntryTable(folder, record.dimensions)

    @classmethod
    def open(cls, folder: str | Path) -> "Index":
        """Open an index.

        Raises:
            ValueError: The folder holds no index, or a damaged one.
        """
        file = Path(folder) / RECORD_FILE
        if not file.is_file():
            raise ValueError(f"{folder} is no index: make one with `unime index SOURCE {folder}`")
        try:
            record = IndexRecord(**json.loads(file.read_text()))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{file} describes no index ({error}): make the index anew in another folder") from None
        return cls(Path(folder), record)

    @classmethod
    def create(cls, folder: str | Path, checkpoint: str, instruction: str | None = None) -> "Index":
        """Make an empty index for the vectors of a model.

        Args:
            folder (`str` or `Path`): Where; made if absent.
            checkpoint (`str`): Folder or Hub id of the model.
            instruction (`str`, *optional*): What to give with every entry in place of the default.

        Raises:
            ValueError: The folder holds something already.
        """
        folder = Path(folder)
        # A killed run may have left a part of the record.
        if folder.is_file() or folder.is_dir() and any(path.suffix != ".part" for path in folder.iterdir()):
            raise ValueError(f"{folder} holds something already: give a new folder for the index")
        dimensions = read_config(checkpoint).get_text_config().hidden_size
        place = str(Path(checkpoint).resolve()) if Path(checkpoint).is_dir() else checkpoint
        record = IndexRecord(place, fingerprint(checkpoint), dimensions, instruction)
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(folder / RECORD_FILE) as part:
            part.write_text(json.dumps(asdict(record), indent=2) + "\n")
        return cls(folder, record)

    def __len__(self) -> int:
        return len(self.table)

    @property
    def holds_images(self) -> bool:
        """Whether any entry has an image."""
        return self.table.count("image IS NOT NULL OR thumbnail IS NOT NULL") > 0

    def check_model(self, checkpoint: str) -> None:
        """Refuse a model other than the one that made the vectors.

        Raises:
            ValueError: It is another model, or another state of it.
        """
        if Path(checkpoint).is_absolute() and not Path(checkpoint).is_dir():
            raise ValueError(f"there is no model {checkpoint}: give the folder where it is now (--model)")
        found = fingerprint(checkpoint)
        if found == "unknown":  # whoever made the index has named it, not who searches it
            raise ValueError(
                f"the model {checkpoint} of {self.folder} is not on this machine, and nothing is downloaded unasked: "
                f"look at it and run `hf download {checkpoint}`, or give the folder where it is (--model)"
            )
        if found != self.record.revision:
            raise ValueError(
                f"{self.folder} holds vectors of {self.record.checkpoint} (revision {self.record.revision}), and "
                f"{checkpoint} is another model (revision {found}): give the model of the index, or make a new index"
            )

    def sync(
        self, corpus: Sequence[Entry], model: PreTrainedModel, processor: ProcessorMixin, report: Report | None = None
    ) -> SyncResult:
        """Bring the index in step with a corpus: embed what is new or changed, and remove what is gone.

        Args:
            corpus (`Sequence[Entry]`): Everything that the index shall hold.
            model ([`UniMEModel`]), processor (`ProcessorMixin`): The model of the index.
            report (`Callable`, *optional*): Told what is done, how many entries are done and how many there are.

        Raises:
            ValueError: Two entries have one id, metadata do not fit, the model has other dimensions, or another
                process is writing to the index.
        """
        return self.update(corpus, lambda: (model, processor), report)

    def update(
        self,
        corpus: Sequence[Entry],
        load: Callable[[], tuple[PreTrainedModel, ProcessorMixin]],
        report: Report | None = None,
    ) -> SyncResult:
        """Do as [`sync`] does, with a model that is loaded only if there is something to embed."""
        report = report or (lambda stage, done, total: None)
        with self._lock(), (self.folder / REJECTED_FILE).open("w") as file:
            changes = diff_corpus(corpus, self.table.hashes(), self.table.schema, report)
            self.table.widen(changes.schema)
            removed = self.table.delete(changes.gone)
            refused = _note(file, changes.rejected)
            self.table.describe([corpus[position] for position in changes.described], changes.contents)
            embedded = 0
            todo = changes.new + changes.changed
            if todo:
                model, processor = load()
                self._check_dimensions(model.config.get_text_config().hidden_size)
                renewed = {corpus[position].id for position in changes.changed}
                entries = (corpus[position] for position in todo)
                windows = embed_entries(model, processor, entries, self.record.instruction)
                for number, window in enumerate(windows, 1):
                    self.table.write(window.entries, window.vectors, changes.contents, renewed)
                    removed += self.table.delete([entry.id for entry in window.rejected if entry.id in renewed])
                    embedded += len(window.entries)
                    refused += _note(file, window.rejected)
                    report("Embedding", embedded + refused - len(changes.rejected), len(todo))
                    if number % MERGED_AFTER == 0:
                        self.table.merge()
            self.table.tidy()
        return SyncResult(embedded, len(changes.described), changes.unchanged, removed, refused)

    def search(self, vector: np.ndarray, k: int = 10, where: str | None = None) -> list[Hit]:
        """Find the entries nearest to a query.

        Args:
            vector (`np.ndarray` of shape `(dimensions,)`): Embedding of the query.
            k (`int`): How many to find; there are fewer where the index, or what passes the filter, has fewer.
            where (`str`, *optional*): A condition in SQL on `id`, `text` and the metadata: "category = 'food'".

        Returns:
            `list[Hit]`: The nearest first.

        Raises:
            ValueError: The vector has other dimensions, `k` is less than 1, or the condition cannot be understood.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        if np.ndim(vector) != 1:
            raise ValueError(f"expected one query of shape ({self.record.dimensions},), got {np.shape(vector)}")
        self._check_dimensions(len(vector))
        hits = [
            Hit(row["id"], 1 - row["_distance"], row["text"], row["image"] or row["thumbnail"], metadata_of(row))
            for row in self.table.nearest(vector, k, where)
        ]
        return sorted(hits, key=lambda hit: (-hit.score, hit.id))

    def _check_dimensions(self, found: int) -> None:
        if found != self.record.dimensions:
            raise ValueError(
                f"{self.folder} holds vectors of {self.record.dimensions} dimensions, made by "
                f"{self.record.checkpoint}; this model makes {found}: give the model of the index"
            )

    @contextmanager
    def _lock(self) -> Iterator[None]:
        # The operating system lets go of it when its holder is killed.
        try:
            with FileLock(self.folder / ".lock", timeout=0):
                yield
        except Timeout:
            raise ValueError(f"another process is writing to {self.folder}: wait until it is done") from None


def _note(file: TextIO, rejected: Sequence[Rejected]) -> int:
    file.writelines(json.dumps(asdict(entry)) + "\n" for entry in rejected)
    file.flush()
    return len(rejected)
