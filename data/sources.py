"""Where training data comes from: the OpenMoji world, MMEB-train, JSONL, image folders, any dataset of the Hub."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, IterableDataset

from .dataset_loading import load_table
from .image_files import default_image_root
from .jsonl import load_rows, load_texts
from .mining import with_mined_negatives
from .mmeb_train import mmeb_train
from .rejected_rows import without_rejected
from .rows import (
    ROW_COLUMNS,
    TEXT_COLUMNS,
    check_text,
    column_names,
    read_row,
    require_columns,
    with_lazy_transform,
    with_provenance,
)


SIDES = ("query", "positive", "negative")
ITEM_KEYS = ("text", "image", "instruction")
TARGETS = (*(f"{side}.{key}" for side in SIDES for key in ITEM_KEYS), "label", "task", "text", "teacher")


@dataclass
class DataArguments:
    """What to train on; the recipes' data settings.

    `dataset` is `openmoji`, `mmeb-train`, a JSONL file in the row contract, or whatever `datasets.load_dataset` takes,
    with `columns`: a Hub id, a folder of parquet files, an image folder with its `metadata.jsonl`.
    """

    dataset: str = field(
        default="openmoji",
        metadata={"help": "'openmoji', 'mmeb-train', a JSONL file of rows, or a Hub id or folder with `columns`."},
    )
    image_root: str | None = field(default=None, metadata={"help": "Folder that image paths start from."})
    columns: dict[str, str | list[str]] | None = field(
        default=None,
        metadata={"help": "Column of each part of a row, such as {query.text: caption}; of `text` perhaps several."},
    )
    instructions: dict[str, str] | None = field(
        default=None,
        metadata={"help": "With `columns`: the instruction of a side, such as {query: Find it:}."},
    )
    split: str = field(default="train", metadata={"help": "With `columns`: split of the dataset."})
    config_name: str | None = field(default=None, metadata={"help": "With `columns`: which of its configurations."})
    streaming: bool = field(
        default=False,
        metadata={"help": "With `columns` or a JSONL file: read as training goes, for data that fits no disk."},
    )
    mmeb_source: str = field(
        default="TIGER-Lab/MMEB-train", metadata={"help": "MMEB-train's Hub id, or a folder with its layout."}
    )
    subsets: list[str] | None = field(default=None, metadata={"help": "Sets of MMEB-train; all 20 if not given."})
    max_rows_per_subset: int | None = field(default=50_000, metadata={"help": "Most rows of one set of MMEB-train."})
    subset_weights: dict[str, float] | None = field(
        default=None,
        metadata={"help": "How often MMEB-train's sets come in an epoch, such as {DocVQA: 2}; else once."},
    )
    target_prompts: bool = field(
        default=False, metadata={"help": "Instructions for candidates that have none, as in B3: MMEB-train, OpenMoji."}
    )
    mined_file: str | None = field(
        default=None, metadata={"help": "Negatives that recipes/mine.py found for these rows."}
    )
    rejected_file: str | None = field(
        default=None, metadata={"help": "Bad rows to leave out, as check-data listed them."}
    )
    num_rows: int = field(default=100_000, metadata={"help": "Rows or texts to take from the OpenMoji world."})
    dataset_seed: int = field(default=0, metadata={"help": "Seed of the OpenMoji world, and of the cap's choice."})
    negatives_per_row: int = field(
        default=1, metadata={"help": "Negatives that a row of the OpenMoji world brings: almost its positive."}
    )


def _check_map(data: DataArguments) -> None:
    unknown = [part for part in data.columns or () if part not in TARGETS]
    if unknown:
        raise ValueError(f"columns names {', '.join(unknown)}: the parts of a row are {', '.join(TARGETS)}")
    several = [part for part, column in (data.columns or {}).items() if isinstance(column, list) and part != "text"]
    if several:
        raise ValueError(f"columns gives {several[0]} several columns: name one; only text, of stage 1, takes several")


def _check_streaming(data: DataArguments) -> None:
    reasons = {
        "mined negatives": data.mined_file is not None,
        "what leaves out rejected rows": data.rejected_file is not None,
        f"the dataset '{data.dataset}'": data.columns is None and not data.dataset.endswith(".jsonl"),
    }
    what = next((name for name, holds in reasons.items() if holds), None)
    if data.streaming and what is not None:
        raise ValueError(f"{what} cannot be streamed: set streaming to false, or give a JSONL file or `columns`")


def open_rows(data: DataArguments) -> Dataset | IterableDataset:
    """Open rows for stage 2, with their mined negatives and without the rejected rows where there are any.

    Raises:
        ValueError: Columns are missing, or the source cannot be streamed. When a row is read, an image is missing or
            unreadable.
        FileNotFoundError: There is no such file.
    """
    dataset = _open_rows(data)
    dataset = dataset if data.mined_file is None else with_mined_negatives(dataset, data.mined_file)
    return dataset if data.rejected_file is None else without_rejected(dataset, data.rejected_file)


def _open_rows(data: DataArguments) -> Dataset | IterableDataset:
    _check_map(data)
    _check_streaming(data)
    if data.dataset == "openmoji":
        from ..openmoji.dataset import openmoji_rows  # its images come with the package's extra `openmoji`

        return openmoji_rows(
            "train",
            data.num_rows,
            seed=data.dataset_seed,
            negatives=data.negatives_per_row,
            target_prompts=data.target_prompts,
        )
    if data.dataset == "mmeb-train":
        root, seed = data.image_root or ".", data.dataset_seed
        return mmeb_train(
            data.mmeb_source,
            root,
            data.subsets,
            data.max_rows_per_subset,
            seed,
            data.target_prompts,
            data.subset_weights,
        )
    if data.columns:
        return _mapped_rows(data)
    return load_rows(data.dataset, data.image_root, data.streaming)


def open_texts(data: DataArguments) -> Dataset | IterableDataset:
    """Open texts for stage 1: the column `text`, perhaps `teacher`.

    Where `columns` gives `text` several columns, as those of AllNLI's triplets, each of their texts that is not empty
    is a row; once, in a stream once among its neighbours.

    Raises:
        ValueError: The column is missing, a row has no text, or the source cannot be streamed.
        FileNotFoundError: There is no such file.
    """
    _check_map(data)
    _check_streaming(data)
    if data.dataset == "openmoji":
        from ..openmoji.dataset import openmoji_texts

        return openmoji_texts("train", data.num_rows, seed=data.dataset_seed)
    if not data.columns:
        return load_texts(data.dataset, data.streaming)
    if isinstance(data.columns.get("text"), list):
        dataset = _open_mapped_table(data)
        split = partial(_texts_of_rows, columns=data.columns["text"])
        dataset = dataset.map(split, batched=True, remove_columns=column_names(dataset))
        if not data.streaming:
            dataset = Dataset.from_dict({"text": dataset.unique("text")})
    else:
        dataset = _open_mapped_table(data).select_columns(sorted(data.columns.values()))
        dataset = dataset.rename_columns({column: part for part, column in data.columns.items() if part != column})
    require_columns(dataset, TEXT_COLUMNS, "stage 1")
    check = partial(_require_texts, name=Path(data.dataset).name)
    if data.streaming:
        return dataset.map(check, with_indices=True, batched=True)
    for number, batch in enumerate(dataset.select_columns("text").iter(1000)):
        check(batch, range(1000 * number, 1000 * number + len(batch["text"])))
    return dataset


def _require_texts(batch: dict[str, list], numbers: Sequence[int], name: str) -> dict[str, list]:
    for number, text in zip(numbers, batch["text"], strict=True):
        check_text(text, f"{name}, row {number}")
    return batch


def _texts_of_rows(batch: dict[str, list], columns: list[str]) -> dict[str, list]:
    texts = dict.fromkeys(text for row in zip(*(batch[column] for column in columns), strict=True) for text in row)
    return {"text": [text for text in texts if text]}


def _open_mapped_table(data: DataArguments) -> Dataset | IterableDataset:
    dataset = load_table(data.dataset, data.config_name, split=data.split, streaming=data.streaming)
    wanted = [[columns] if isinstance(columns, str) else columns for columns in data.columns.values()]
    require_columns(dataset, tuple(chain(*wanted)), f"the column map of {data.dataset}")
    return dataset


def _mapped_rows(data: DataArguments) -> Dataset | IterableDataset:
    for side in ("query", "positive"):
        if not any(part.startswith(f"{side}.") for part in data.columns):
            raise ValueError(f"columns says nothing of the {side}: give {side}.text, {side}.image or both")
    for side in data.instructions or ():
        if side not in SIDES:
            raise ValueError(f"instructions names '{side}': the sides of a row are {', '.join(SIDES)}")
    names = {column: f"own {column}" for column in data.columns.values()}  # apart from what `located` adds
    dataset = _open_mapped_table(data).select_columns(sorted(names)).rename_columns(names)
    for column, feature in (dataset.features or {}).items():  # a stream may not know them
        if isinstance(feature, datasets.Image):  # read here, so that a bad image is named
            dataset = dataset.cast_column(column, datasets.Image(decode=False))
    columns = {part: names[column] for part, column in data.columns.items()}
    dataset = with_provenance(dataset, Path(data.dataset).name, columns.get("task"))
    root = Path(data.image_root or default_image_root(data.dataset))
    return with_lazy_transform(
        dataset, partial(_read_mapped, columns=columns, instructions=data.instructions or {}, root=root)
    )


def _read_mapped(
    batch: dict[str, list], columns: Mapping[str, str], instructions: Mapping[str, str], root: Path
) -> dict[str, list]:
    rows = []
    for values in zip(*batch.values(), strict=True):
        found = dict(zip(batch, values, strict=True))

        def item(side: str, found: dict[str, Any] = found) -> dict[str, Any]:
            own = {key: found[columns[f"{side}.{key}"]] for key in ITEM_KEYS if f"{side}.{key}" in columns}
            return {"instruction": instructions.get(side)} | own

        row = {"query": item("query"), "positive": item("positive"), "where": found["where"], "task": found["task"]}
        row["negatives"] = _negative_items(item("negative"), found["where"])
        rows.append(read_row(row | {"label": found[columns["label"]] if "label" in columns else None}, root))
    return {name: [row[name] for row in rows] for name in ROW_COLUMNS}


def _negative_items(item: dict[str, Any], where: str) -> list[dict[str, Any]]:
    """The negatives of a row: one item, or lists of texts and images side by side."""
    content = {key: value for key, value in item.items() if key != "instruction" and value is not None}
    lists = {key: value if isinstance(value, list) else [value] for key, value in content.items()}
    if len({len(values) for values in lists.values()}) > 1:
        counts = " and ".join(f"{len(values)} of {key}" for key, values in lists.items())
        raise ValueError(f"{where}: its negatives are {counts}: give equally many")
    together = [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]
    return [{"instruction": item["instruction"]} | one for one in together]
