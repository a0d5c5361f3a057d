"""The released training data of UniME-V2 (arXiv 2510.13515): MMEB-train with judged hard negatives of each query.

`TianchengGu/UniME-V2-Training-Datasets` has a JSON list of rows for each judge. A row has one positive and ten hard
negatives with the judge's scores. Texts are the strings of MMEB-train, and images are those of MMEB-train.
"""

import json
from collections.abc import Iterator
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, Features, Value
from datasets.fingerprint import Hasher
from huggingface_hub import hf_hub_download

from ..storage.arrow_cache import cached_table
from .mmeb_train import INSTRUCTIONS, mmeb_item
from .rows import columns_of_rows, read_row


HUB_ID = "TianchengGu/UniME-V2-Training-Datasets"
JUDGES = ("Qwen25VL_7B", "InternVL3_8B", "InternVL3_14B")
COLUMNS = ("query_text", "query_image", "pos_text", "pos_image", "query_pos_scores")
NEGATIVES, SCORES = "hard_negatives", "hard_negatives_scores"
NUM_NEGATIVES = 8  # that the released code trains on: the first ones of ten
READ_CHARACTERS = 2**20  # of the file at a time, which has gigabytes
BATCH_ROWS = 1000
_BETWEEN_ROWS = frozenset(" \t\r\n,")
CACHE_FORMAT = 1  # part of the name of the cached table: raise it when that changes

_QUERY_INSTRUCTIONS = {query for query, _ in INSTRUCTIONS.values()}
_CANDIDATE_INSTRUCTIONS = {candidate for _, candidate in INSTRUCTIONS.values() if candidate is not None}


def is_unime_v2(dataset: str) -> bool:
    """Return whether a dataset is the released one, or a file or folder in its layout."""
    path = Path(dataset)
    return dataset == HUB_ID or any(path.match(name) or (path / name).is_file() for name in map(file_name, JUDGES))


def file_name(judge: str) -> str:
    """Return the name of the file with a judge's scores."""
    return f"train_data_{judge}_scores.json"


def unime_v2_train(source: str = HUB_ID, image_root: str | Path = ".", judge: str | None = None) -> Dataset:
    """Open the released training data; images are read when a row is read.

    A row's task is its subset of MMEB-train, which its instruction and the paths of its images tell. The scores are
    those of the positive and of the first eight negatives, which may repeat.

    Args:
        source (`str`, *optional*, defaults to the Hub id): The Hub id, a folder with its files, or one of the files.
        image_root (`str` or `Path`, *optional*, defaults to the working folder): Folder that the image paths start
            from, with the unpacked images of MMEB-train.
        judge (`str`, *optional*, defaults to `"Qwen25VL_7B"`): Which judge's scores: `"Qwen25VL_7B"`,
            `"InternVL3_8B"` or `"InternVL3_14B"`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The judge is unknown, or the file is not a JSON list of rows. Later, when a row is read: it is
            malformed, or an image is missing.
    """
    judge = JUDGES[0] if judge is None else judge
    if judge not in JUDGES:
        raise ValueError(f"unknown judge {judge!r} of {HUB_ID}: set config_name to one of {', '.join(JUDGES)}")
    path, name = Path(source), file_name(judge)
    if not path.is_file():
        path = path / name if path.is_dir() else Path(hf_hub_download(source, name, repo_type="dataset"))
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}: download it from {HUB_ID}")
    status = path.stat()
    key = Hasher.hash((CACHE_FORMAT, str(path.resolve()), status.st_size, status.st_mtime_ns))
    features = Features(dict.fromkeys(("row", "task", "where"), Value("string")))

    def batches() -> Iterator[dict[str, list[str]]]:
        rows = enumerate(_elements(path))
        while batch := list(islice(rows, BATCH_ROWS)):
            yield {
                "row": [json.dumps(row) for _, row in batch],
                "task": [_task(row) for _, row in batch],
                "where": [f"{path.name}, row {number}" for number, _ in batch],
            }

    file = Path(datasets.config.HF_DATASETS_CACHE) / "unime" / f"unime-v2-{key}.arrow"
    table = cached_table(file, features, batches)
    return table.with_transform(partial(_read_rows, root=Path(image_root)))


def _elements(path: Path) -> Iterator[Any]:
    """Yield the elements of a JSON list without reading the whole file into memory."""
    decoder = json.JSONDecoder()
    with path.open(encoding="utf-8") as file:
        text, position, number = file.read(READ_CHARACTERS).lstrip(), 1, 0
        if not text.startswith("["):
            raise ValueError(f"{path} is not a JSON list of rows: use the file as published")
        while True:
            while text[position : position + 1] in _BETWEEN_ROWS:
                position += 1
            if text.startswith("]", position):
                return
            try:
                element, position = decoder.raw_decode(text, position)
            except ValueError:
                more = file.read(READ_CHARACTERS)
                if not more:
                    raise ValueError(f"{path}, row {number}, is not valid JSON: use the file as published") from None
                text, position = text[position:] + more, 0
                continue
            yield element
            number += 1


def _task(row: Any) -> str:
    """Return the subset of MMEB-train of a row: the folder of its images, or else its instruction."""
    if not isinstance(row, dict):
        return "unknown"
    for column in ("query_image", "pos_image"):
        folders = Path(row.get(column) or "").parts
        subset = next((folder for folder in folders if folder in INSTRUCTIONS), None)
        if subset is not None:
            return subset
    return _instruction(str(row.get("query_text")), _QUERY_INSTRUCTIONS) or "unknown"


def _instruction(text: str, instructions: set[str]) -> str | None:
    """Return the longest instruction that a published string begins with."""
    stripped = text.replace("<|image_1|>", "").strip()
    return max((known for known in instructions if stripped.startswith(known)), key=len, default=None)


def _read_rows(batch: dict[str, list[str]], root: Path) -> dict[str, list]:
    rows = []
    for stored, task, where in zip(batch["row"], batch["task"], batch["where"], strict=True):
        row = json.loads(stored)
        try:
            query_text, query_image, pos_text, pos_image, pos_score = (row[column] for column in COLUMNS)
            negatives = [(text, image) for text, image in row[NEGATIVES]][:NUM_NEGATIVES]
            candidates = [
                mmeb_item(text, image, _instruction(text, _CANDIDATE_INSTRUCTIONS))
                for text, image in chain([(pos_text, pos_image)], negatives)
            ]
            query = mmeb_item(query_text, query_image, _instruction(query_text, _QUERY_INSTRUCTIONS))
            scores = [pos_score, *row[SCORES][:NUM_NEGATIVES]]
        except (KeyError, TypeError, ValueError, AttributeError):
            raise ValueError(
                f"{where}: it has not the columns {', '.join((*COLUMNS, NEGATIVES, SCORES))} as published: use the "
                "file as published"
            ) from None
        items = {"query": query, "positive": candidates[0], "negatives": candidates[1:]}
        rows.append(read_row(items | {"scores": scores, "task": task, "where": where}, root))
    return columns_of_rows(rows)
