"""Sources of training data: OpenMoji, MMEB-train, JSONL files, image folders and datasets of the Hub."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, cast

import datasets
from datasets import Dataset, IterableDataset

from ..image_size import parse_image_size
from . import jsonl
from .dataset_loading import load_table
from .image_files import default_image_root
from .jsonl import load_rows, load_texts
from .mining import with_mined_negatives
from .mmeb_train import mmeb_train
from .prepared import is_prepared, open_prepared
from .rejected_rows import without_rejected
from .row_conversion import as_rows
from .row_forms import STORED_KEYS
from .rows import (
    TEXT_COLUMNS,
    Rows,
    TransformedStream,
    check_text,
    column_names,
    columns_of_rows,
    read_row,
    require_columns,
    with_lazy_transform,
    with_provenance,
)
from .unime_v2_train import is_unime_v2, unime_v2_train


SIDES = ("query", "positive", "positives", "negative")
TARGETS = (*(f"{side}.{key}" for side in SIDES for key in STORED_KEYS), "scores", "label", "task", "text", "teacher")

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(?<!\.jsonl)")

# Where the rows are, and which of them are used for what.
SETTINGS_BESIDE_ROWS = frozenset(
    {
        "dataset",
        "image_root",
        "streaming",
        "mined_file",
        "rejected_file",
        "eval_dataset",
        "eval_split",
        "num_eval_rows",
    }
)


@dataclass
class DataArguments:
    """Data settings of the recipes.

    Args:
        dataset (`str`, *optional*, defaults to `"openmoji"`): `"openmoji"`, `"mmeb-train"`, a JSONL file of rows, a
            folder written by `unime prepare`, or anything that `datasets.load_dataset` takes: a Hub id, a folder of
            Parquet files, or an image folder with its `metadata.jsonl`. Columns that have not the names of
            [`standard_row`] are named in `columns`. `TianchengGu/UniME-V2-Training-Datasets`, or a JSON file of it, is
            the training data of UniME-V2.
        image_root (`str`, *optional*): Folder that relative image paths start from. Defaults to the folder of the
            dataset, and for MMEB-train and UniME-V2's training data to the working folder.
        image_size (`int` or `dict`, *optional*): The size at which the model reads images, such as 336, or arguments
            of its image processor; see [`set_image_size`]. It is saved with the model. Defaults to the model's own.
        preset (`str`, *optional*): How a published embedder is run: the name of a preset, a JSON file of one, `"none"`
            or `"keep"`; see [`load_model`]. It is saved with the model. Defaults to the preset of its id.
        columns (`dict`, *optional*): Column for each part of a row. The keys are `text`, `image` or `instruction` of
            `query`, `positive` or `negative` (such as `query.text`), `scores`, `task` and `label`; for stage 1 they
            are `text` (a column or a list of columns) and `teacher`. If a column holds a list of texts or images per
            row, `positives` (instead of `positive`) and `negative` make one item of each.
        instructions (`dict`, *optional*): With `columns`, the instruction of `query`, `positive`, `positives` or
            `negative`.
        split (`str`, *optional*, defaults to `"train"`): Split of a Hub dataset or a folder.
        config_name (`str`, *optional*): Configuration of a Hub dataset; for UniME-V2's training data the judge,
            `Qwen25VL_7B` (default), `InternVL3_8B` or `InternVL3_14B`.
        streaming (`bool`, *optional*, defaults to `False`): With `columns` or a JSONL file, read the rows during
            training, for data larger than the disk. Rows are shuffled in a buffer of 10,000.
        mmeb_source (`str`, *optional*, defaults to `"TIGER-Lab/MMEB-train"`): Hub id of MMEB-train, or a folder with
            its layout.
        subsets (`list[str]`, *optional*): Subsets of MMEB-train; all 20 by default.
        max_rows_per_subset (`int`, *optional*, defaults to 50,000): Maximum number of rows of one subset of
            MMEB-train, drawn at random; `None` takes all.
        subset_weights (`dict[str, float]`, *optional*): How often the rows of a subset of MMEB-train occur in an
            epoch; 1 by default.
        target_prompts (`bool`, *optional*, defaults to `False`): Give candidates without an instruction a target
            prompt, as in B3 (arXiv 2505.11293). For MMEB-train and OpenMoji; evaluate with the same setting.
        mined_file (`str`, *optional*): Hard negatives of these rows, the `negatives.jsonl` of `recipes/mine.py`.
        rejected_file (`str`, *optional*): Bad rows to leave out, the `rejected.jsonl` of `unime check-data`.
        num_rows (`int`, *optional*, defaults to 100,000): Number of OpenMoji rows (stage 2) or texts (stage 1).
        dataset_seed (`int`, *optional*, defaults to 0): Seed of the OpenMoji data and of `max_rows_per_subset`.
        negatives_per_row (`int`, *optional*, defaults to 1): Maximum number of hard negatives of an OpenMoji row; each
            almost equals the positive.
        tasks (`list[str]`, *optional*): Tasks of the OpenMoji rows, see `openmoji.scene_tasks.TASKS`; all by default.
            A task that is named twice has twice its share.
        styles (`list[str]`, *optional*): Styles of the OpenMoji drawings: `openmoji`, `twemoji`, `noto`, `fluent`;
            `make styles` fetches the last three. Defaults to `openmoji`.
        transparent (`bool`, *optional*, defaults to `False`): Draw single OpenMoji emoji on a transparent background,
            for `image_augmentations`.
        eval_dataset (`list[str]`, *optional*): Dataset for `eval_strategy`, opened like `dataset`; or several, each as
            `name=dataset`, whose metrics are `eval_{name}_loss` and so on.
        eval_split (`str`, *optional*): Split of `eval_dataset`, or of `dataset` if there is none.
        num_eval_rows (`int`, *optional*, defaults to 0): Rows of `dataset`, drawn at random with `dataset_seed`, that
            are held out of the training and evaluated instead.
    """

    dataset: str = field(
        default="openmoji",
        metadata={
            "help": "'openmoji', 'mmeb-train', a JSONL file of rows, a Hub id, an image folder with captions, or a "
            "folder of `unime prepare`."
        },
    )
    image_root: str | None = field(
        default=None,
        metadata={"help": "Folder that relative image paths start from. Default: the dataset's own folder."},
    )
    image_size: dict[str, Any] | str | int | None = field(
        default=None,
        metadata={"help": "Size at which the model reads images, such as 336, or JSON of image processor arguments."},
    )
    preset: str | None = field(
        default=None,
        metadata={
            "help": "How a published embedder is run: a preset, a .json file of one, 'none' or 'keep'. Default: by id."
        },
    )
    columns: dict[str, str | list[str]] | None = field(
        default=None,
        metadata={
            "help": "Column for each part of a row, such as {query.text: caption}. `text` (stage 1) may have several."
        },
    )
    instructions: dict[str, str] | None = field(
        default=None,
        metadata={"help": "With `columns`: instruction of the query, positive or negative: {query: Find it:}."},
    )
    split: str = field(default="train", metadata={"help": "Split of a Hub dataset or a folder."})
    config_name: str | None = field(
        default=None, metadata={"help": "Configuration of a Hub dataset, or the judge of UniME-V2's training data."}
    )
    streaming: bool = field(
        default=False,
        metadata={"help": "With `columns` or a JSONL file: read during training, for data larger than the disk."},
    )
    mmeb_source: str = field(
        default="TIGER-Lab/MMEB-train", metadata={"help": "Hub id of MMEB-train, or a folder with its layout."}
    )
    subsets: list[str] | None = field(default=None, metadata={"help": "Subsets of MMEB-train. Default: all 20."})
    max_rows_per_subset: int | None = field(
        default=50_000, metadata={"help": "Maximum number of rows of one subset of MMEB-train, drawn at random."}
    )
    subset_weights: dict[str, float] | None = field(
        default=None,
        metadata={"help": "How often subsets of MMEB-train occur in an epoch, such as {DocVQA: 2}. Default: once."},
    )
    target_prompts: bool = field(
        default=False,
        metadata={"help": "MMEB-train, OpenMoji: give candidates without an instruction a target prompt, as in B3."},
    )
    mined_file: str | None = field(
        default=None, metadata={"help": "Hard negatives for these rows: negatives.jsonl of recipes/mine.py."}
    )
    rejected_file: str | None = field(
        default=None, metadata={"help": "Bad rows to leave out: rejected.jsonl of `unime check-data`."}
    )
    num_rows: int = field(default=100_000, metadata={"help": "OpenMoji: number of rows (stage 2) or texts (stage 1)."})
    dataset_seed: int = field(
        default=0, metadata={"help": "Seed of the OpenMoji data, and of the rows drawn by `max_rows_per_subset`."}
    )
    negatives_per_row: int = field(
        default=1,
        metadata={"help": "OpenMoji: maximum number of hard negatives per row; each almost equals the positive."},
    )
    tasks: list[str] | None = field(
        default=None, metadata={"help": "OpenMoji: tasks of the rows; one that is named twice has twice its share."}
    )
    styles: list[str] | None = field(
        default=None, metadata={"help": "OpenMoji: styles of the drawings: openmoji, twemoji, noto, fluent."}
    )
    transparent: bool = field(
        default=False,
        metadata={"help": "OpenMoji: single emoji on a transparent background, for image_augmentations."},
    )
    eval_dataset: list[str] | None = field(
        default=None, metadata={"help": "Dataset for eval_strategy, like `dataset`; or several as name=dataset."}
    )
    eval_split: str | None = field(
        default=None, metadata={"help": "Split of `eval_dataset`, or of `dataset`, to evaluate on."}
    )
    num_eval_rows: int = field(
        default=0, metadata={"help": "Rows that are held out of `dataset`, at random, and evaluated instead."}
    )


def _check_columns_map(data: DataArguments) -> None:
    unknown = [target for target in data.columns or () if target not in TARGETS]
    if unknown:
        raise ValueError(f"unknown key {', '.join(unknown)} in `columns`; valid keys are {', '.join(TARGETS)}")
    several = [name for name, column in (data.columns or {}).items() if isinstance(column, list) and name != "text"]
    if several:
        raise ValueError(
            f"`columns` gives {several[0]} several columns: name one; only text, for stage 1, takes several"
        )


def _check_streaming(data: DataArguments) -> None:
    reasons = {
        "a dataset with mined_file": data.mined_file is not None,
        "a dataset with rejected_file": data.rejected_file is not None,
        f"the dataset '{data.dataset}'": data.columns is None and not data.dataset.endswith(".jsonl"),
    }
    reason = next((name for name, holds in reasons.items() if holds), None)
    if data.streaming and reason is not None:
        raise ValueError(f"{reason} cannot be streamed: set streaming to false, or give a JSONL file or `columns`")


def open_rows(data: DataArguments) -> Dataset | TransformedStream:
    """Open rows for stage 2, with their mined negatives and without the rejected rows if files of them are given.

    Args:
        data (`DataArguments`): Data settings.

    Returns:
        `Dataset` or [`TransformedStream`]: Rows in the format of `data/rows.py`; images are read when a row is read.

    Raises:
        ValueError: Columns are missing, or the source cannot be streamed. Later, when a row is read: an image is
            missing or unreadable.
        FileNotFoundError: A file does not exist.
    """
    dataset = _open_rows(data)
    dataset = dataset if data.mined_file is None else with_mined_negatives(dataset, data.mined_file)
    return dataset if data.rejected_file is None else without_rejected(dataset, data.rejected_file)


def open_with_eval_sets(
    data: DataArguments, open_dataset: Callable[[DataArguments], Rows]
) -> tuple[Rows, Dataset | dict[str, Dataset] | None]:
    """Open the rows to train on and those to evaluate.

    Args:
        data (`DataArguments`): Data settings.
        open_dataset (`Callable`): Opens the rows of some settings: [`open_rows`] or [`open_texts`].

    Returns:
        `tuple`: The training rows, and the evaluation rows: one dataset, several by name, or `None`.

    Raises:
        ValueError: The settings contradict each other, or there are too few rows to hold some out.
    """
    dataset = open_dataset(data)
    if data.num_eval_rows:
        if data.eval_dataset or data.eval_split:
            raise ValueError(
                "num_eval_rows holds rows out of `dataset`: give it, or eval_dataset and eval_split, not both"
            )
        if not isinstance(dataset, Dataset):
            raise ValueError("num_eval_rows cannot hold rows out of a stream: name an eval_dataset instead")
        if not 0 < data.num_eval_rows < len(dataset):
            raise ValueError(
                f"num_eval_rows must be between 1 and {len(dataset) - 1}, as the dataset has {len(dataset)} rows; got "
                f"{data.num_eval_rows}"
            )
        parts = dataset.train_test_split(data.num_eval_rows, seed=data.dataset_seed)
        return parts["train"], parts["test"]
    if not data.eval_dataset and data.eval_split is None:
        return dataset, None

    def open_eval_set(name: str) -> Dataset:
        # The files of mined negatives and rejected rows belong to the rows of `dataset`.
        split = data.eval_split or data.split
        return cast(
            Dataset,
            open_dataset(
                replace(data, dataset=name, split=split, streaming=False, mined_file=None, rejected_file=None)
            ),
        )

    names = data.eval_dataset or [data.dataset]
    named = [re.fullmatch(r"(\w+)=(.+)", name) for name in names]
    if len(names) == 1 and named[0] is None:
        return dataset, open_eval_set(names[0])
    if None in named:
        raise ValueError(f"eval_dataset has {len(names)} datasets: name each, such as pets=pets.jsonl")
    return dataset, {match[1]: open_eval_set(match[2]) for match in named if match is not None}


def settings_of_rows(data: DataArguments) -> dict[str, Any]:
    """Return the settings that the rows of a dataset depend on, ready for JSON."""
    settings = {name: value for name, value in vars(data).items() if name not in SETTINGS_BESIDE_ROWS}
    return settings | {"image_size": parse_image_size(data.image_size)}


def _open_rows(data: DataArguments) -> Dataset | TransformedStream:
    _check_columns_map(data)
    _check_streaming(data)
    if is_prepared(data.dataset):
        settings, defaults = settings_of_rows(data), settings_of_rows(DataArguments())
        named = {name: value for name, value in settings.items() if value != defaults[name]}
        return open_prepared(data.dataset, named | {"image_size": settings["image_size"]})
    if data.dataset == "openmoji":
        from ..openmoji.dataset import openmoji_rows  # needs the extra `openmoji`

        return openmoji_rows(
            "train",
            data.num_rows,
            seed=data.dataset_seed,
            tasks=data.tasks,
            negatives=data.negatives_per_row,
            target_prompts=data.target_prompts,
            styles=data.styles,
            transparent=data.transparent,
        )
    if data.dataset == "mmeb-train":
        return mmeb_train(
            data.mmeb_source,
            data.image_root or ".",
            data.subsets,
            data.max_rows_per_subset,
            data.dataset_seed,
            data.target_prompts,
            data.subset_weights,
        )
    if data.columns:
        return _mapped_rows(data)
    if is_unime_v2(data.dataset):
        return unime_v2_train(data.dataset, data.image_root or ".", data.config_name)
    if Path(data.dataset).is_dir() or HUB_ID.fullmatch(data.dataset) and not Path(data.dataset).exists():
        table = load_table(data.dataset, data.config_name, split=data.split)
        return as_rows(table, Path(data.dataset).name)
    return load_rows(data.dataset, data.image_root, data.streaming)


def open_texts(data: DataArguments) -> Dataset | IterableDataset:
    """Open texts for stage 1: the column `text`, and `teacher` if the source has it.

    If `columns` maps `text` to several columns, such as those of AllNLI's triplets, each distinct non-empty text in
    them is a row; a stream removes duplicates within a batch only.

    Args:
        data (`DataArguments`): Data settings.

    Raises:
        ValueError: The column is missing, a row has no text, or the source cannot be streamed.
        FileNotFoundError: A file does not exist.
    """
    _check_columns_map(data)
    _check_streaming(data)
    if data.dataset == "openmoji":
        from ..openmoji.dataset import openmoji_texts

        return openmoji_texts("train", data.num_rows, seed=data.dataset_seed)
    if not data.columns:
        return load_texts(data.dataset, data.streaming)
    dataset = _open_text_columns(data)
    check = partial(_check_texts, name=Path(data.dataset).name)
    if data.streaming:
        return dataset.map(check, with_indices=True, batched=True)
    for number, batch in enumerate(dataset.select_columns("text").iter(1000)):
        check(batch, range(1000 * number, 1000 * number + len(batch["text"])))
    return dataset


def text_problems(data: DataArguments) -> Iterator[str | None]:
    """Yield, for each text that a recipe of stage 1 trains on, why it cannot be used, or `None`."""
    _check_columns_map(data)
    if data.dataset == "openmoji":
        yield from (None for _ in open_texts(data))
    elif not data.columns:
        yield from jsonl.text_problems(data.dataset)
    else:
        for row, text in enumerate(_open_text_columns(replace(data, streaming=False))["text"]):
            try:
                check_text(text, f"{Path(data.dataset).name}, row {row}")
                yield None
            except ValueError as error:
                yield str(error)


def _open_text_columns(data: DataArguments) -> Dataset | IterableDataset:
    """Open the texts that `columns` names, unchecked."""
    columns = data.columns or {}
    if isinstance(columns.get("text"), list):
        dataset = _open_mapped_table(data)
        split = partial(_texts_of_rows, columns=cast(list[str], columns["text"]))
        dataset = dataset.map(split, batched=True, remove_columns=column_names(dataset))
        if not data.streaming:
            dataset = Dataset.from_dict({"text": dataset.unique("text")})
    else:
        dataset = _open_mapped_table(data).select_columns(sorted(columns.values()))
        dataset = dataset.rename_columns({column: name for name, column in columns.items() if name != column})
    require_columns(column_names(dataset), TEXT_COLUMNS, "stage 1")
    return dataset


def _check_texts(batch: dict[str, list], indices: Sequence[int], name: str) -> dict[str, list]:
    for index, text in zip(indices, batch["text"], strict=True):
        check_text(text, f"{name}, row {index}")
    return batch


def _texts_of_rows(batch: dict[str, list], columns: list[str]) -> dict[str, list]:
    texts = dict.fromkeys(text for row in zip(*(batch[column] for column in columns), strict=True) for text in row)
    return {"text": [text for text in texts if text]}


def _open_mapped_table(data: DataArguments) -> Dataset | IterableDataset:
    dataset = load_table(data.dataset, data.config_name, split=data.split, streaming=data.streaming)
    needed = [[columns] if isinstance(columns, str) else columns for columns in (data.columns or {}).values()]
    require_columns(column_names(dataset), tuple(chain(*needed)), f"the column map of {data.dataset}")
    return dataset


def _mapped_rows(data: DataArguments) -> Dataset | TransformedStream:
    mapping = data.columns or {}
    mapped = {target.split(".")[0] for target in mapping}
    for side, names_of_side in (("query", {"query"}), ("positive", {"positive", "positives"})):
        if not mapped & names_of_side:
            raise ValueError(f"`columns` has no column for the {side}: give {side}.text, {side}.image or both")
    if {"positive", "positives"} <= mapped:
        raise ValueError("`columns` has both positive and positives: map one of them")
    for side in data.instructions or ():
        if side not in SIDES:
            raise ValueError(f"unknown key '{side}' in `instructions`; valid keys are {', '.join(SIDES)}")
    # Renamed, so that they cannot clash with the columns that `with_provenance` adds.
    names = {column: f"source {column}" for column in mapping.values()}
    dataset = _open_mapped_table(data).select_columns(sorted(names)).rename_columns(names)
    for column, feature in (dataset.features or {}).items():  # a stream may not know its features
        if isinstance(feature, datasets.Image):  # decoded by `read_row`, which names a bad image
            dataset = dataset.cast_column(column, datasets.Image(decode=False))
    columns = {target: names[column] for target, column in mapping.items()}
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
        source = dict(zip(batch, values, strict=True))

        def item(side: str, source: dict[str, Any] = source) -> dict[str, Any]:
            parts = {key: source[columns[f"{side}.{key}"]] for key in STORED_KEYS if f"{side}.{key}" in columns}
            return {"instruction": instructions.get(side)} | parts

        where = source["where"]
        row = {"query": item("query"), "where": where, "task": source["task"]}
        if any(target.startswith("positives.") for target in columns):
            row["positives"] = _items_of_lists(item("positives"), "positives", where)
        else:
            row["positive"] = item("positive")
        row["negatives"] = _items_of_lists(item("negative"), "negatives", where)
        row |= {name: source[columns[name]] for name in ("scores", "label") if name in columns}
        rows.append(read_row(row, root))
    return columns_of_rows(rows)


def _items_of_lists(item: dict[str, Any], name: str, where: str) -> list[dict[str, Any]]:
    """Return the positives or negatives of a row from one item, whose text and image may be lists of equal length."""
    content = {key: value for key, value in item.items() if key != "instruction" and value is not None}
    lists = {key: value if isinstance(value, list) else [value] for key, value in content.items()}
    if len({len(values) for values in lists.values()}) > 1:
        counts = " and ".join(f"{len(values)} of {key}" for key, values in lists.items())
        raise ValueError(f"{where}: its {name} are {counts}: give equally many")
    items = [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)]
    return [{"instruction": item["instruction"]} | parts for parts in items]
