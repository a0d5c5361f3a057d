"""What is to be embedded: entries of a folder, a JSONL file, Parquet, a dataset of the Hub, or the OpenMoji world.

    corpus = open_corpus("photos")                        # images and .txt files, recursively; id = relative path
    corpus = open_corpus("products.jsonl", text="title")  # or .parquet, a folder of Parquet files, a Hub dataset

A corpus may be larger than memory: tables are memory-mapped, and an image is read when its entry's `item` is asked
for. An entry that cannot be read does not stop the others: its `item` and its `content` say why, in one sentence.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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
from .folder import IMAGE_SUFFIXES, read_folder


__all__ = ["Corpus", "Entry", "open_corpus"]
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
BINARY_FEATURES = (datasets.Image, datasets.Audio, datasets.Video)  # columns of these types are no metadata


@dataclass(frozen=True)
class Corpus(Sequence[Entry]):
    """Entries that are made as they are read.

    Args:
        rows (`Sequence`): What is stored: the rows of a table, the lines or the names of files.
        entry (`Callable`): Makes an entry of one of `rows` and its number.
    """

    rows: Sequence[Any]
    entry: Callable[[Any, int], Entry]

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Entry: ...
    @overload
    def __getitem__(self, index: slice) -> list[Entry]: ...
    def __getitem__(self, index: int | slice) -> Entry | list[Entry]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        return self.entry(self.rows[number], number)

    def __iter__(self) -> Iterator[Entry]:
        return (self.entry(row, number) for number, row in enumerate(self.rows))


def open_corpus(
    source: str | Path,
    text: str = "text",
    image: str = "image",
    identifier: str = "id",
    image_root: str | Path | None = None,
    split: str = "train",
) -> Corpus:
    """Open what is to be embedded.

    Args:
        source (`str` or `Path`): A folder of images and .txt files, read recursively, with `metadata.jsonl` as
            Hugging Face's image folders have it; a .jsonl file; a .parquet file or a folder of them; the Hub id of a
            dataset; or "openmoji", the named images of the embedded world.
        text (`str`), image (`str`), identifier (`str`): Columns of a table. One of the first two may be missing, and
            without a column `id` the ids are row numbers. Other columns are metadata; those of other images, of
            sounds and of bytes are left out.
        image_root (`str` or `Path`, *optional*, defaults to the source's folder): Where relative image paths start.
            A path that leads out of it, even by a link, is refused.
        split (`str`): Split of a dataset of the Hub or of a folder of Parquet files.

    Raises:
        FileNotFoundError: There is no such source, or no such `image_root`.
        ValueError: The source holds nothing to embed, a column is missing, or two entries have the same id.
    """
    if str(source) == "openmoji":
        from ..openmoji.entries import openmoji_corpus  # needs the extra `openmoji`

        return openmoji_corpus()
    path = Path(source)
    if image_root is not None and not Path(image_root).is_dir():
        raise FileNotFoundError(f"there is no folder {image_root} for images: mend image_root")
    root = Path(image_root or (path if path.is_dir() else path.parent)).resolve()
    columns = {"text": text, "image": image, "id": identifier}
    if path.is_dir() and not _holds_tables(path):
        if identifier != "id":
            raise ValueError(f"the ids of a folder are its relative paths: leave the column {identifier!r} out")
        return _check_not_empty(Corpus(*read_folder(path, root, text)), source)
    if path.is_file() and path.suffix == ".jsonl":
        return _check_not_empty(_lines(path, columns, root), source)
    if path.exists() and not (path.is_dir() or path.suffix == ".parquet"):
        raise ValueError(f"{source} is no corpus: give a folder, a .jsonl file, a .parquet file or a Hub id")
    if not path.exists():
        if not HUB_ID.fullmatch(str(source)):
            raise FileNotFoundError(f"there is no folder or file {source}: mend the path")
        root = Path(image_root or datasets.config.HF_CACHE_HOME).expanduser().resolve()
    return _check_not_empty(_table(_open_table(source, split), columns, root, str(source)), source)


def _holds_tables(folder: Path) -> bool:
    if next(folder.rglob("*.parquet"), None) is None:
        return False
    image = next((path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES), None)
    if image is not None:
        raise ValueError(f"{folder} holds Parquet files and also images, such as {image}: give one kind only")
    return True


def _check_not_empty(corpus: Corpus, source: str | Path) -> Corpus:
    if not len(corpus):
        raise ValueError(f"{source} is empty: there is nothing to embed")
    return corpus


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
            f"there is no folder or file {source}, and no dataset of the Hub by that name could be opened ({reason})"
        ) from None


def _table(table: datasets.Dataset, columns: Mapping[str, str], root: Path, source: str) -> Corpus:
    _check_columns(table.column_names, columns, source)
    for name, feature in table.features.items():
        binary = isinstance(feature, datasets.Value) and "binary" in feature.dtype
        if name not in columns.values() and (isinstance(feature, BINARY_FEATURES) or binary):
            table = table.remove_columns(name)
        elif isinstance(feature, datasets.Image):
            table = table.cast_column(name, datasets.Image(decode=False))
    plain = [name for name in table.column_names if name not in columns.values()]

    def entry(row: Mapping[str, Any], number: int) -> Entry:
        metadata = json.loads(json.dumps({name: row[name] for name in plain}, default=str))
        return entry_of({**row, **metadata}, number, columns, root)

    corpus = Corpus(table, entry)
    if columns["id"] in table.column_names:
        own = table.select_columns([columns["id"]])  # without its images
        _check_unique_ids(corpus, (_id(row, number, columns) for number, row in enumerate(own)))
    return corpus


def _lines(path: Path, columns: Mapping[str, str], root: Path) -> Corpus:
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty: there is nothing to embed")
    if Extractor.infer_extractor_format(path):  # `datasets` would unpack it, however large it becomes
        raise ValueError(f"{path} is an archive, and none is unpacked here: unpack it, and give the file of lines")
    table = load_lines(path)
    found = dict.fromkeys(name for line in table[:100]["line"] for name in parse_object(line) or ())
    _check_columns(list(found), columns, str(path))

    def entry(line: Mapping[str, str], number: int) -> Entry:
        row = parse_object(line["line"])
        if row is None:
            return Entry(
                f"{path.name}:{number + 1}", problem=f"line {number + 1} of {path} is no JSON object: mend it"
            )
        return entry_of(row, number, columns, root)

    corpus = Corpus(table, entry)
    rows = (parse_object(line["line"]) or {} for line in table)
    _check_unique_ids(corpus, (_id(row, number, columns) for number, row in enumerate(rows)))
    return corpus


def _check_columns(found: Sequence[str], columns: Mapping[str, str], source: str) -> None:
    missing = [name for default, name in columns.items() if name not in found and name != default]
    if not missing and not {columns["text"], columns["image"]} & set(found):
        missing = [columns["text"], columns["image"]]
    if missing:
        raise ValueError(
            f"{source} has no column {' or '.join(missing)}: it has {', '.join(found) or 'none'}; "
            "name those of the text, the image and the id"
        )


def entry_of(row: Mapping[str, Any], number: int, columns: Mapping[str, str], root: Path) -> Entry:
    """A row of a table as an entry.

    Args:
        row (`Mapping`): Values by column; the image is a path, encoded bytes, or what `datasets` stores for one.
        number (`int`): Its place, which is its id where it has no other.
        columns (`Mapping`): The columns of `id`, `text` and `image`; the others are metadata.
        root (`Path`): Folder that paths start from and may not leave.
    """
    text, image, problem = row.get(columns["text"]), row.get(columns["image"]), None
    if text is not None and not isinstance(text, str):
        text, problem = None, f"its text is of type {type(text).__name__}: make it a string"
    if isinstance(image, Mapping):  # what `datasets` stores for an image
        image = image.get("path") if image.get("bytes") is None else image["bytes"]
    if isinstance(image, str):
        image, found = resolve_path(image, root)
        problem = problem or found
    elif image is not None and not isinstance(image, bytes):
        image, problem = None, f"its image is of type {type(image).__name__}: make it one path"
    metadata = {name: value for name, value in row.items() if name not in columns.values()}
    return Entry(_id(row, number, columns), text, image, metadata, problem)


def _id(row: Mapping[str, Any], number: int, columns: Mapping[str, str]) -> str:
    own = row.get(columns["id"])
    return str(number) if own is None else str(own)


def _check_unique_ids(corpus: Corpus, ids: Iterable[str]) -> None:
    # 8 bytes an id, so that those of many millions of rows fit in memory; ids of equal hashes are looked at again.
    hashes = np.fromiter(map(hash, ids), np.int64, len(corpus))
    order = np.argsort(hashes, kind="stable")
    for place in np.flatnonzero(hashes[order][1:] == hashes[order][:-1]):
        first, second = (int(number) for number in order[place : place + 2])
        if corpus[first].id == corpus[second].id:
            raise ValueError(
                f"rows {first} and {second} (counted from 0) have the same id {corpus[first].id!r}: "
                "make ids unique, or name another column"
            )
