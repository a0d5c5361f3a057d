"""Corpora to embed: a folder, a JSONL file, Parquet, a dataset of the Hub, or OpenMoji.

    corpus = open_corpus("photos")                        # images and .txt files, recursively; id = relative path
    corpus = open_corpus("products.jsonl", text="title")  # or .parquet, a folder of Parquet files, a Hub dataset

A corpus may be larger than memory: tables are memory-mapped, and an image is read only by `Entry.item` or
`Entry.content`. An entry that cannot be read does not stop the others: these two raise an error with the reason.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, overload

import datasets
import numpy as np
import pyarrow as pa
from datasets.utils.extract import Extractor

from ..data.dataset_loading import load_table
from ..data.image_files import resolve_path
from ..data.jsonl import load_lines, parse_object
from .entry import Entry
from .folder import FolderEntries, FolderSettings, Listing, list_folder, warn_of_skipped


HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
BINARY_FEATURES = (datasets.Image, datasets.Audio, datasets.Video)  # not metadata


@dataclass(frozen=True)
class Corpus(Sequence[Entry]):
    """Sequence of entries that are made when they are accessed.

    Args:
        rows (`Sequence`): Stored rows: those of a table, lines, or file names.
        make_entry (`Callable`): Makes an entry from one of `rows` and its index.
        skipped (`dict[str, int]`): The number of files and folders of a folder that are no entries, by reason.
    """

    rows: Sequence[Any]
    make_entry: Callable[[Any, int], Entry]
    skipped: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Entry: ...
    @overload
    def __getitem__(self, index: slice) -> list[Entry]: ...
    def __getitem__(self, index: int | slice) -> Entry | list[Entry]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        position = range(len(self))[index]
        return self.make_entry(self.rows[position], position)

    def __iter__(self) -> Iterator[Entry]:
        return (self.make_entry(row, index) for index, row in enumerate(self.rows))


def open_corpus(
    source: str | Path,
    text: str = "text",
    image: str = "image",
    identifier: str = "id",
    image_root: str | Path | None = None,
    split: str = "train",
    metadata: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    captions: str | None = None,
    follow_links: bool = False,
) -> Corpus:
    """Open a corpus.

    Only one of the columns `text` and `image` needs to exist. All other columns are metadata, except for other images,
    audio, video and bytes, which are dropped.

    Args:
        source (`str` or `Path`): A folder of images and .txt files, read recursively, with an optional
            `metadata.jsonl`, `.csv` or `.parquet` as in the image folders of `datasets`; a .jsonl file; a .parquet
            file or a folder of them; the Hub id of a dataset; or `"openmoji"`, the named OpenMoji drawings. Of a
            folder, hidden files and folders of the system are skipped, such as `@eaDir` and `lost+found`.
        text (`str`, *optional*, defaults to `"text"`): Column of the text.
        image (`str`, *optional*, defaults to `"image"`): Column of the image.
        identifier (`str`, *optional*, defaults to `"id"`): Column of the id; if it is missing, the ids are row
            numbers. The ids of a folder are its relative paths.
        image_root (`str` or `Path`, *optional*, defaults to the folder of the source): Folder that relative image
            paths start from, and that no path may leave, not even through a symbolic link.
        split (`str`, *optional*, defaults to `"train"`): Split of a Hub dataset or of a folder of Parquet files.
        metadata (`Sequence[str]`, *optional*): Columns to keep as metadata. Defaults to all.
        exclude (`Sequence[str]`, *optional*): Patterns of files and folders of a folder to leave out, such as
            `"*.gif"` or `"drafts"`, see [`FolderSettings`].
        captions (`str`, *optional*): Suffix of files with the texts of the images of a folder, such as `"txt"`: the
            text of `a.png` is in `a.txt`. By default, a .txt file is an entry of its own.
        follow_links (`bool`, *optional*, defaults to `False`): Whether to read what links in a folder lead to, on
            whatever disk.

    Raises:
        FileNotFoundError: The source or `image_root` does not exist.
        ValueError: The source is empty or not a corpus, a column is missing, or two entries have the same id.
    """
    columns, settings = (
        {"text": text, "image": image, "id": identifier},
        FolderSettings(exclude, captions, follow_links),
    )
    corpus = _open_source(source, columns, image_root, split, metadata or (), settings)
    if not len(corpus):
        raise ValueError(f"{source} is empty: there is nothing to embed")
    return corpus if metadata is None else _with_metadata(corpus, metadata)


def _open_source(
    source: str | Path,
    columns: Mapping[str, str],
    image_root: str | Path | None,
    split: str,
    metadata: Sequence[str],
    settings: FolderSettings,
) -> Corpus:
    if str(source) == "openmoji":
        from ..openmoji.entries import openmoji_corpus  # needs the extra `openmoji`

        return openmoji_corpus()
    path = Path(source)
    if image_root is not None and not Path(image_root).is_dir():
        raise FileNotFoundError(f"there is no folder {image_root} for images: fix image_root")
    root = Path(image_root or (path if path.is_dir() else path.parent)).resolve()
    if path.is_dir():
        listing = list_folder(path, settings)
        if not _holds_tables(path, listing):
            return _folder_corpus(path, listing, root, columns, metadata, settings)
    if settings != FolderSettings():
        raise ValueError(f"{source} is no folder of images: leave exclude, captions and follow_links out")
    if path.is_file() and path.suffix == ".jsonl":
        return _lines_corpus(path, columns, root, metadata)
    if path.exists() and not (path.is_dir() or path.suffix == ".parquet"):
        raise ValueError(f"{source} is not a corpus: give a folder, a .jsonl file, a .parquet file or a Hub id")
    if not path.exists():
        if not HUB_ID.fullmatch(str(source)):
            raise FileNotFoundError(f"there is no folder or file {source}: fix the path")
        root = Path(image_root or datasets.config.HF_CACHE_HOME).expanduser().resolve()
    return _table_corpus(_open_table(source, split), columns, root, metadata, str(source))


def _holds_tables(folder: Path, listing: Listing) -> bool:
    if listing.images and listing.tables:
        raise ValueError(
            f"{folder} holds Parquet files, such as {listing.tables[0]}, and also images, such as "
            f"{listing.images[0]}: keep only one of the two, or exclude the others"
        )
    # Without images, a file of metadata is a table like others.
    return not listing.images and any(path.endswith(".parquet") for path in (*listing.tables, *listing.metadata_files))


def _with_metadata(corpus: Corpus, names: Sequence[str]) -> Corpus:
    def make_entry(row: Any, index: int) -> Entry:
        entry = corpus.make_entry(row, index)
        return replace(entry, metadata={name: entry.metadata[name] for name in names if name in entry.metadata})

    return replace(corpus, make_entry=make_entry)


def _folder_corpus(
    folder: Path,
    listing: Listing,
    root: Path,
    columns: Mapping[str, str],
    metadata: Sequence[str],
    settings: FolderSettings,
) -> Corpus:
    if columns["id"] != "id":
        raise ValueError(f"the ids of a folder are its relative paths: do not set the id column {columns['id']!r}")
    entries = FolderEntries(folder, listing, root, columns["text"], settings)
    _check_metadata(metadata, entries.columns, str(folder))
    warn_of_skipped(folder, listing.skipped)
    return Corpus(entries.ids, entries, {reason: len(paths) for reason, paths in listing.skipped.items()})


def _open_table(source: str | Path, split: str) -> datasets.Dataset:
    try:
        if Path(source).is_file():
            return datasets.load_dataset("parquet", data_files=str(source), split="train")
        return load_table(str(source), split=split)
    except (datasets.exceptions.DatasetGenerationError, pa.ArrowInvalid) as error:
        raise ValueError(f"{source} cannot be read as a table ({error.__cause__ or error})") from None
    except OSError as error:
        reason = str(error).split("\n")[0]
        raise FileNotFoundError(
            f"there is no folder or file {source}, and no Hub dataset of that name could be opened ({reason})"
        ) from None


def _table_corpus(
    table: datasets.Dataset, columns: Mapping[str, str], root: Path, metadata: Sequence[str], source: str
) -> Corpus:
    _check_columns(table.column_names, columns, metadata, source)
    for name, feature in table.features.items():
        binary = isinstance(feature, datasets.Value) and "binary" in feature.dtype
        if name not in columns.values() and (isinstance(feature, BINARY_FEATURES) or binary):
            table = table.remove_columns(name)
        elif isinstance(feature, datasets.Image):
            table = table.cast_column(name, datasets.Image(decode=False))
    metadata_columns = [name for name in table.column_names if name not in columns.values()]

    def make_entry(row: Mapping[str, Any], index: int) -> Entry:
        metadata = json.loads(json.dumps({name: row[name] for name in metadata_columns}, default=str))
        return entry_from_row({**row, **metadata}, index, columns, root)

    corpus = Corpus(table, make_entry)
    if columns["id"] in table.column_names:
        id_column = table.select_columns([columns["id"]])  # so that no image is loaded
        _check_unique_ids(corpus, (_id(row, index, columns) for index, row in enumerate(id_column)))
    return corpus


def _lines_corpus(path: Path, columns: Mapping[str, str], root: Path, metadata: Sequence[str]) -> Corpus:
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty: there is nothing to embed")
    if Extractor.infer_extractor_format(path):  # `datasets` would unpack it, whatever its unpacked size
        raise ValueError(f"{path} is an archive, and archives are not unpacked: unpack it and give the JSONL file")
    table = load_lines(path)
    names = dict.fromkeys(name for line in table[:100]["line"] for name in parse_object(line) or ())
    _check_columns(list(names), columns, metadata, str(path))

    def make_entry(line: Mapping[str, Any], index: int) -> Entry:
        row, number = parse_object(line["line"]), line["number"]
        if row is None:
            problem = f"line {number} of {path} is not a JSON object: fix it"
            return Entry(f"{path.name}:{number}", problem=problem)
        return entry_from_row(row, index, columns, root)

    corpus = Corpus(table, make_entry)
    rows = (parse_object(line["line"]) or {} for line in table)
    _check_unique_ids(corpus, (_id(row, index, columns) for index, row in enumerate(rows)))
    return corpus


def _check_columns(names: Sequence[str], columns: Mapping[str, str], metadata: Sequence[str], source: str) -> None:
    missing = [name for default, name in columns.items() if name not in names and name != default]
    if not missing and not {columns["text"], columns["image"]} & set(names):
        missing = [columns["text"], columns["image"]]
    if missing:
        raise ValueError(
            f"{source} has no column {' or '.join(missing)}: it has {', '.join(names) or 'none'}; "
            "name the columns of the text, the image and the id"
        )
    _check_metadata(metadata, names, source)


def _check_metadata(metadata: Sequence[str], names: Sequence[str], source: str) -> None:
    missing = [name for name in metadata if name and name not in names]  # an empty name stands for no column
    if missing:
        raise ValueError(
            f"{source} has no metadata column {', '.join(missing)}: it has {', '.join(names) or 'none'}; choose from "
            "these, or choose none"
        )


def entry_from_row(row: Mapping[str, Any], index: int, columns: Mapping[str, str], root: Path) -> Entry:
    """Make an entry from a row of a table.

    Args:
        row (`Mapping`): Values by column; the image is a path, encoded bytes, or what `datasets` stores for one.
        index (`int`): Row number, used as id if the row has none.
        columns (`Mapping`): Column names of `id`, `text` and `image`; the other columns are metadata.
        root (`Path`): Folder that image paths start from and must not leave.
    """
    text, image, problem = row.get(columns["text"]), row.get(columns["image"]), None
    if text is not None and not isinstance(text, str):
        text, problem = None, f"its text has type {type(text).__name__}: make it a string"
    if isinstance(image, Mapping):  # what `datasets` stores for an image
        image = image.get("path") if image.get("bytes") is None else image["bytes"]
    if isinstance(image, str):
        image, path_problem = resolve_path(image, root)
        problem = problem or path_problem
    elif image is not None and not isinstance(image, bytes):
        image, problem = None, f"its image has type {type(image).__name__}: give one path"
    metadata = {name: value for name, value in row.items() if name not in columns.values()}
    return Entry(_id(row, index, columns), text, image, metadata, problem)


def _id(row: Mapping[str, Any], index: int, columns: Mapping[str, str]) -> str:
    identifier = row.get(columns["id"])
    return str(index) if identifier is None else str(identifier)


def _check_unique_ids(corpus: Corpus, ids: Iterable[str]) -> None:
    # 8 bytes per id, so that many millions fit in memory; ids with equal hashes are compared themselves.
    hashes = np.fromiter(map(hash, ids), np.int64, len(corpus))
    order = np.argsort(hashes, kind="stable")
    for position in np.flatnonzero(hashes[order][1:] == hashes[order][:-1]):
        first, second = (int(index) for index in order[position : position + 2])
        if corpus[first].id == corpus[second].id:
            raise ValueError(
                f"rows {first} and {second} (counted from 0) have the same id {corpus[first].id!r}: "
                "make ids unique, or name another column"
            )
