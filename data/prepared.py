"""Prepared training sets: the rows of a recipe with their images resized and encoded once, in Arrow files.

    unime prepare recipes/qwen2-vl-2b/stage2.yaml --output runs/prepared
    accelerate launch recipes/stage2.py --config recipes/qwen2-vl-2b/stage2.yaml --dataset runs/prepared

A file holds `FILE_ROWS` consecutive rows and is written atomically, so the same command continues an interrupted run.
Row `n` is row `n` of the recipe's dataset: files of mined negatives and of rejected rows stay valid. A bad row is
stored as the reason why it is bad. `datasets.load_dataset` reads the folder, too.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, cast

import datasets
import pyarrow as pa
from datasets import Dataset, DatasetInfo, Features, List, Value, concatenate_datasets
from PIL import Image
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from tqdm.auto import tqdm
from transformers import PreTrainedConfig, ProcessorMixin
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_utils import SizeDict

from ..batching_unime import plan_micro_batches
from ..image_input_unime import to_planes
from ..image_processing_phi3_v import Phi3VImageProcessor
from ..image_size import size_as_read
from ..image_tokens_unime import count_image_tokens, square_of
from ..processing_unime import Item, normalize_item, to_rgb
from ..storage.atomic_files import atomic_write, intact_files
from ..storage.run_settings import keep_settings
from .rejected_rows import write_rejected
from .row_forms import STORED_KEYS
from .rows import change_images, columns_of_rows, read_row, rows_of_columns
from .validation import read_or_explain


SETTINGS_FILE, REJECTED_FILE, ROWS_FOLDER = "prepared.json", "rejected.jsonl", "data"
FORMAT = 1  # version of the files
FILE_ROWS = 256  # a killed process loses at most one file
BATCH_ROWS = 32  # rows of a file that are encoded and then written together
JPEG = {"format": "JPEG", "quality": 95, "subsampling": 0}  # 4:4:4, which keeps coloured lines and letters sharp
MAX_PNG_COLOURS = 256  # an image with at most as many is a drawing, which JPEG would blur


def _features(decode: bool) -> Features:
    """Return the columns; with `decode`, `datasets` reads the images as PIL images."""
    image = datasets.Image(decode=decode)
    part = {"type": Value("string"), "text": Value("string"), "image": image}
    item = {"text": Value("string"), "image": List(image), "content": List(part), "instruction": Value("string")}
    texts = dict.fromkeys(("task", "label", "where", "rejected"), Value("string"))
    rows = {"query": item, "positives": List(item), "negatives": List(item), "scores": List(Value("float64"))}
    return Features(rows | texts | {"length": Value("int64")})


@dataclass(frozen=True)
class RowPreparation:
    """Makes stored rows: images as the processor reads them, and the length of a row.

    Args:
        processor (`ProcessorMixin`): UniME's processor, with the image size of the training.
        config (`PreTrainedConfig`): Configuration of the backbone, which says what a vision patch is worth.
        max_length (`int`): Maximum number of tokens of an item.
        lossless (`bool`, *optional*, defaults to `False`): Whether to encode every image as PNG. Otherwise drawings
            are PNG, and other images are JPEG.
    """

    processor: ProcessorMixin
    config: PreTrainedConfig
    max_length: int
    lossless: bool = False

    def __call__(self, rows: Dataset, index: int) -> dict[str, Any]:
        """Return row `index` as it is stored; of a bad row, only where it stands and the reason in `rejected`."""
        row = read_or_explain(rows, index)
        if isinstance(row, str):
            return {"task": "", "where": f"row {index}", "rejected": row, "length": 0}
        where = row.get("where") or f"row {index}"
        try:
            sides: tuple[list[Item], ...] = ([row["query"]], row["positives"], row["negatives"])
            (query,), positives, negatives = ([change_images(item, self._shrink) for item in items] for items in sides)
            length = self._length([query, *positives, *negatives])
        except ValueError as error:
            return {"task": row["task"], "where": where, "rejected": f"{where}: {error}", "length": 0}
        return {
            "query": self._stored_item(query),
            "positives": [self._stored_item(item) for item in positives],
            "negatives": [self._stored_item(item) for item in negatives],
            "scores": row["scores"],
            "task": row["task"],
            "label": row["label"],
            "where": where,
            "rejected": None,
            "length": length,
        }

    def _shrink(self, image: Image.Image) -> Image.Image:
        """Resize an image by the processor's method to the size at which it is read, if that is smaller.

        The image stays as it is if the processor would resize the result again, as some do with a very long image.
        """
        image, image_processor = to_rgb(image), self.processor.image_processor
        if square_of(self.processor) is not None:  # the squares are larger than what the model reads
            return image
        tokens = count_image_tokens(self.processor, [image.size])
        width, height = size_as_read(self.processor, *image.size)
        # LLaVA's processors round the shorter side up, which may give it another row of tokens when it is read again.
        for new_size in ((width, height), (width - (width < height), height - (height < width))):
            if (
                new_size[0] <= image.width
                and new_size[1] <= image.height
                and size_as_read(self.processor, *new_size) == new_size
                and count_image_tokens(self.processor, [new_size]) == tokens
            ):
                if isinstance(image_processor, Phi3VImageProcessor):  # which resizes with Pillow
                    return image_processor.resize_image(image, new_size)
                size = SizeDict(height=new_size[1], width=new_size[0])
                resized = TorchvisionBackend.resize(image_processor, to_planes(image), size, image_processor.resample)
                return Image.fromarray(resized.permute(1, 2, 0).contiguous().numpy())
        return image

    def _length(self, items: Sequence[Item]) -> int:
        """Return what the items of a row take of a token budget without padding, see [`plan_micro_batches`]."""
        normalized = {index: normalize_item(item, index) for index, item in enumerate(items)}
        batches = plan_micro_batches(self.processor, normalized, max_length=self.max_length, config=self.config)
        return round(sum(item.length + item.vision_cost for batch in batches for item in batch.items))

    def _stored_item(self, item: Item) -> dict[str, Any]:
        columns = {"text": item} if isinstance(item, str) else cast(Mapping[str, Any], item)
        stored: dict[str, Any] = {name: columns.get(name) for name in STORED_KEYS}
        if stored["image"] is not None:
            stored["image"] = [self._encode(image) for image in stored["image"]]  # a list, see `change_images`
        if stored["content"] is not None:
            stored["content"] = [
                {"type": "text", "text": part, "image": None}
                if isinstance(part, str)
                else {"type": "image", "text": None, "image": self._encode(part)}
                for part in stored["content"]
            ]
        return stored

    def _encode(self, image: Image.Image) -> dict[str, Any]:
        is_png = self.lossless or image.getcolors(MAX_PNG_COLOURS) is not None
        file = BytesIO()
        image.save(file, **({"format": "PNG"} if is_png else JPEG))
        return {"bytes": file.getvalue(), "path": None}


class _MissingFiles(TorchDataset):
    """Writes one file of rows whenever an element is read, which is the error if that failed."""

    def __init__(self, rows: Dataset, prepare: RowPreparation, folder: Path, numbers: Sequence[int], num_files: int):
        self.rows, self.prepare, self.folder = rows, prepare, folder
        self.numbers, self.num_files = numbers, num_files

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, position: int) -> OSError | None:
        number = self.numbers[position]
        indices = range(number * FILE_ROWS, min((number + 1) * FILE_ROWS, len(self.rows)))
        schema = _features(decode=True).arrow_schema
        path = self.folder / f"{_stem(number, self.num_files)}.arrow"
        for leftover in self.folder.glob(f".{path.name}.*.part"):  # of a process that was killed
            leftover.unlink()
        try:
            with (
                atomic_write(path, sealed=True) as part,
                pa.OSFile(str(part), "wb") as sink,
                pa.ipc.new_stream(sink, schema) as writer,
            ):
                for start in indices[::BATCH_ROWS]:
                    batch = range(start, min(start + BATCH_ROWS, indices.stop))
                    stored = [dict.fromkeys(schema.names) | self.prepare(self.rows, index) for index in batch]
                    writer.write(pa.RecordBatch.from_pylist(stored, schema=schema))
        except OSError as error:  # raised by the main process, as one sentence
            return error
        return None


def _stem(number: int, num_files: int) -> str:
    return f"train-{number:05d}-of-{num_files:05d}"  # `load_dataset` takes such files as the split "train"


def prepare_rows(
    rows: Dataset,
    prepare: RowPreparation,
    folder: Path,
    settings: Mapping[str, Any],
    workers: int = 2,
    shard_index: int = 0,
    num_shards: int = 1,
) -> tuple[int, int]:
    """Write the files that a prepared training set lacks; with the last one also its list of bad rows.

    Args:
        rows (`Dataset`): Rows, as `open_rows` returns them.
        prepare ([`RowPreparation`]): Makes the stored rows.
        folder (`Path`): Folder of the training set; created if needed.
        settings (`dict`): Everything that the stored rows depend on, ready for JSON, with the keys `data` (data
            settings) and `image_size`.
        workers (`int`, *optional*, defaults to 2): Number of processes; 0 works in this one.
        shard_index (`int`, *optional*, defaults to 0): Share of the files that this run writes, from 0.
        num_shards (`int`, *optional*, defaults to 1): Number of runs that share the files.

    Returns:
        `tuple[int, int]`: Number of files that exist, and number of files of the complete set.

    Raises:
        ValueError: The folder holds rows that were prepared with other settings, or the share does not exist.
        OSError: A file cannot be written.
    """
    if not 0 <= shard_index < num_shards:
        raise ValueError(f"shard_index must be between 0 and num_shards - 1 = {num_shards - 1}, got {shard_index}")
    num_files = -(-len(rows) // FILE_ROWS)
    made_with = {"format": FORMAT, "rows": len(rows), "files": num_files, **settings}
    files_folder = folder / ROWS_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    keep_settings(folder / SETTINGS_FILE, made_with, "rows that were prepared with other settings")
    files_folder.mkdir(exist_ok=True)
    present = {file.name.split(".")[0] for file in intact_files(files_folder, "train-*.*.arrow")}
    numbers = [
        number for number in range(shard_index, num_files, num_shards) if _stem(number, num_files) not in present
    ]
    files = _MissingFiles(rows, prepare, files_folder, numbers, num_files)
    loader = DataLoader(files, batch_size=None, num_workers=workers, prefetch_factor=1 if workers else None)
    for error in tqdm(loader, desc="Preparing", unit="file"):
        if error is not None:
            raise error
    written = len(list(files_folder.glob("train-*.*.arrow")))
    if written == num_files:
        reasons = _stored_rows(folder)["rejected"]
        write_rejected(folder / REJECTED_FILE, {row: reason for row, reason in enumerate(reasons) if reason})
    return written, num_files


def is_prepared(folder: str) -> bool:
    """Return whether a folder holds a prepared training set."""
    return (Path(folder) / SETTINGS_FILE).is_file()


def _stored_rows(folder: Path) -> Dataset:
    files = sorted((folder / ROWS_FOLDER).glob("train-*.*.arrow"))
    info = DatasetInfo(features=_features(decode=False))
    return concatenate_datasets([Dataset.from_file(str(file), info=info) for file in files])


def open_prepared(folder: str | Path, expected: Mapping[str, Any]) -> Dataset:
    """Open a prepared training set; images are decoded when a row is read.

    The rows are those of the dataset that it was made of. `with_format(None)` also shows the column `length`: the
    tokens of the row's items, those of images included, and what the patches of the vision tower are worth in tokens.

    Args:
        folder (`str` or `Path`): Folder that `unime prepare` wrote.
        expected (`dict`): Settings that the rows must have been prepared with.

    Raises:
        ValueError: The set is incomplete, or was prepared with another setting. Later, when a row is read: it is bad.
    """
    folder = Path(folder)
    settings = json.loads((folder / SETTINGS_FILE).read_text())
    for name, value in expected.items():
        prepared = settings["data"].get(name)
        if value != prepared:
            raise ValueError(
                f"{folder} was prepared with {name} {json.dumps(prepared)}, not {json.dumps(value)}: set {name} to "
                f"{json.dumps(prepared)}, or prepare the rows again in another folder"
            )
    written = len(list((folder / ROWS_FOLDER).glob("train-*.*.arrow")))
    if written != settings["files"]:
        raise ValueError(
            f"{folder} is incomplete, with {written} of {settings['files']} files: run the same `unime prepare` again"
        )
    return _stored_rows(folder).with_transform(_read_batch)


def _read_batch(batch: dict[str, list]) -> dict[str, list]:
    rows = rows_of_columns(batch)
    for row in rows:
        if row["rejected"] is not None:
            raise ValueError(row["rejected"])
    return columns_of_rows([read_row(row, Path()) for row in rows])
