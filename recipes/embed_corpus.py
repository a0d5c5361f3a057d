"""Embed millions of rows with Ray Data, on the cores of one machine or on all machines of a cluster.

    python recipes/embed_corpus.py --source products.parquet --output_dir runs/products --workers 2
    python recipes/embed_corpus.py --source s3://shop/photos --output_dir s3://shop/vectors \
        --address auto --workers 16 --num_gpus_per_worker 1 --dtype bfloat16

The source is a Parquet file, a folder of them, or a folder of images (listed once, in `OUTPUT/images.parquet`). It
and the output may be wherever pyarrow's filesystems reach; every node must see them, and the checkpoint.
`OUTPUT/vectors` gets one row per row: `id`, `text`, `image` (its path), `embedding`, `rejected` (why there is no
embedding, else null) and `row_hash`, by which Ray Data knows which rows are done: a worker that dies is replaced, and
of a run that was killed the same command does the rest. No row is lost and none written twice. There is no Lance
output here: Ray Data can take back a half-written file, but not rows of a Lance table; LanceDB reads the Parquet.
"""

import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet
import ray
from pyarrow.fs import FileSelector, FileSystem, FileType, LocalFileSystem
from ray.data import ActorPoolStrategy, DataContext
from ray.data.checkpoint import CheckpointConfig
from trl import TrlParser

from unime import load_model
from unime.checkpoint import fingerprint
from unime.corpus.corpus import entry_from_row
from unime.corpus.entry import Entry
from unime.data.image_files import IMAGE_SUFFIXES
from unime.index.entry_embedding import READER_THREADS, embed_entries


SETTINGS = "settings.json"


@dataclass
class ScriptArguments:
    """What to embed, with what, and where to write it."""

    source: str = field(metadata={"help": "Parquet file, folder of them, or folder of images; path or address."})
    output_dir: str = field(metadata={"help": "Where vectors, checkpoints and rejected.jsonl go; path or address."})
    model: str = field(default="checkpoints/unime-tiny", metadata={"help": "Folder or Hub id of a checkpoint."})
    text: str = field(default="text", metadata={"help": "Column of the text."})
    image: str = field(default="image", metadata={"help": "Column of the image: a path or the encoded image."})
    identifier: str = field(default="id", metadata={"help": "Column of the id."})
    image_root: str | None = field(default=None, metadata={"help": "Where image paths start; else the source."})
    instruction: str | None = field(default=None, metadata={"help": "Given with every row; see `embed_entries`."})
    dimensions: int | None = field(default=None, metadata={"help": "Leading dimensions to keep (Matryoshka)."})
    dtype: str = field(default="float32", metadata={"help": "Type of the weights."})
    workers: int = field(default=2, metadata={"help": "Models that embed at the same time."})
    num_gpus_per_worker: float = field(default=0, metadata={"help": "GPUs of each, such as 1 or 0.5; 0: one CPU."})
    rows_per_file: int = field(default=1024, metadata={"help": "Rows of an output file, and most that a kill undoes."})
    address: str | None = field(default=None, metadata={"help": "Ray cluster, or 'auto'; else this machine alone."})


@dataclass(frozen=True)
class Place:
    """A file or folder on one of pyarrow's filesystems."""

    files: FileSystem
    path: str

    @classmethod
    def of(cls, name: str) -> "Place":
        files, path = FileSystem.from_uri(name) if "://" in name else (LocalFileSystem(), name)
        # Workers have working folders of their own.
        return cls(files, str(Path(path).resolve()) if isinstance(files, LocalFileSystem) else path)

    def __truediv__(self, name: str) -> "Place":
        return Place(self.files, f"{self.path}/{name}")

    def exists(self) -> bool:
        return self.files.get_file_info(self.path).type != FileType.NotFound

    def inside(self) -> list[str]:
        """Paths of all files of a folder, hidden ones left out; of a file, its own."""
        if self.files.get_file_info(self.path).type == FileType.File:
            return [self.path]
        found = self.files.get_file_info(FileSelector(self.path, recursive=True))
        visible = [file.path for file in found if file.type == FileType.File]
        return sorted(path for path in visible if "/." not in path.removeprefix(self.path))

    def read(self) -> bytes:
        with self.files.open_input_file(self.path) as file:
            return file.read()

    def write(self, content: bytes) -> None:
        """Write a file that is whole or not there."""
        with self.files.open_output_stream(self.path + ".part") as file:
            file.write(content)
        self.files.move(self.path + ".part", self.path)


class Embedder:
    """One model of the pool: from rows to vectors, or to the reason why there is none."""

    def __init__(self, script: ScriptArguments, root: Place):
        self.script, self.root = script, root
        model, self.processor = load_model(script.model, dtype=script.dtype)
        self.model = model.to("cuda" if script.num_gpus_per_worker else "cpu")
        self.dimensions = script.dimensions or model.config.hidden_size

    def __call__(self, batch: pa.Table) -> pa.Table:
        with ThreadPoolExecutor(READER_THREADS) as readers:
            entries = list(readers.map(self.entry, batch.to_pylist()))
        found, reasons = {}, {}
        script = self.script
        for window in embed_entries(self.model, self.processor, entries, script.instruction, script.dimensions):
            found |= {id(entry): vector for entry, vector in zip(window.entries, window.vectors, strict=True)}
            reasons |= {rejected.id: rejected.reason for rejected in window.rejected}
        vectors = [found.get(id(entry)) for entry in entries]
        rejected = [None if id(entry) in found else reasons[entry.id] for entry in entries]
        columns = {
            "id": pa.array([entry.id for entry in entries], pa.string()),
            "text": pa.array([entry.text for entry in entries], pa.string()),
            "image": pa.array([entry.metadata["image"] for entry in entries], pa.string()),
            "embedding": pa.array(vectors, pa.list_(pa.float32(), self.dimensions)),
            "rejected": pa.array(rejected, pa.string()),
        }
        return pa.table(columns | {"row_hash": batch["row_hash"]})

    def entry(self, row: Mapping[str, Any]) -> Entry:
        """A row as an entry; an image that is not on this machine's disk is read here."""
        columns = {"id": self.script.identifier, "text": self.script.text, "image": self.script.image}
        own, picture = row.get(columns["id"]), row.get(columns["image"])
        stored = picture if isinstance(picture, Mapping) else {"path": picture}
        path = stored.get("path") if isinstance(stored.get("path"), str) else None
        problem = "it has no id: give it one" if own is None else None
        if path and not stored.get("bytes") and not isinstance(self.root.files, LocalFileSystem):
            try:
                row = {**row, columns["image"]: (self.root / path).read()}
            except OSError as error:
                row = {**row, columns["image"]: None}
                problem = f"its image {path} cannot be read ({error}): mend the path"
        entry = entry_from_row(row, 0, columns, Path(self.root.path))
        return replace(entry, id=str(own), metadata={"image": path}, problem=entry.problem or problem)


def tables(source: Place, output: Place, script: ScriptArguments) -> tuple[Place, list[str]]:
    """The Parquet files of the rows, and where they are; a folder of images is listed in one first."""
    if not source.exists():
        raise FileNotFoundError(f"there is no {script.source}: mend the source")
    found = source.inside()
    parquet = [path for path in found if path.endswith(".parquet")]
    images = [path.removeprefix(source.path + "/") for path in found if path.lower().endswith(IMAGE_SUFFIXES)]
    if bool(parquet) == bool(images):
        held = "both Parquet files and images" if parquet else "neither Parquet files nor images"
        raise ValueError(f"{script.source} holds {held}: give one kind only")
    if parquet:
        return source, parquet
    listing = output / "images.parquet"
    if not listing.exists():
        others = [path for path in found if not path.lower().endswith(IMAGE_SUFFIXES)]
        if others:
            print(f"{len(others)} files are no images and are left out: {', '.join(others[:5])}", flush=True)
        sink = pa.BufferOutputStream()
        pa.parquet.write_table(pa.table({script.identifier: images, script.image: images}), sink)
        listing.write(sink.getvalue().to_pybytes())
    return listing, [listing.path]


def checked_columns(table: Place, file: str, script: ScriptArguments) -> list[str]:
    """The columns to read.

    Raises:
        ValueError: There are no ids, or neither texts nor images.
    """
    present = pa.parquet.read_schema(file, filesystem=table.files).names
    content = [name for name in (script.text, script.image) if name in present]
    if script.identifier not in present or not content:
        missing = f"{script.text} or {script.image}" if script.identifier in present else script.identifier
        raise ValueError(
            f"{file} has no column {missing}: it has {', '.join(present)}; name yours by --identifier, --text, --image"
        )
    return [script.identifier, *content, "row_hash"]


def checked_settings(output: Place, script: ScriptArguments) -> bytes:
    """What the vectors are of, to be noted beside them.

    Raises:
        ValueError: The output holds vectors of something else.
    """
    how = {"workers", "num_gpus_per_worker", "rows_per_file", "address", "output_dir"}
    settings = {name: value for name, value in asdict(script).items() if name not in how}
    noted = json.dumps(settings | {"revision": fingerprint(script.model)}, indent=2).encode()
    if (output / SETTINGS).exists() and (output / SETTINGS).read() != noted:
        raise ValueError(f"{script.output_dir} holds vectors of other settings: choose another output_dir")
    return noted


def start_ray(script: ScriptArguments) -> None:
    """Join the cluster, or start one of this machine with two CPUs beside the workers', for reading and writing."""
    needed = 2 + (0 if script.num_gpus_per_worker else script.workers)
    if script.address is None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init("local", num_cpus=needed, include_dashboard=False)  # not a cluster that happens to run here
        return
    ray.init(script.address)
    present = ray.cluster_resources()
    for kind, least in (("CPU", needed), ("GPU", script.workers * script.num_gpus_per_worker)):
        if present.get(kind, 0) < least:
            raise ValueError(
                f"{script.workers} workers need {least:g} {kind}s, of which two CPUs are to read and write; "
                f"the cluster has {present.get(kind, 0):g}: give fewer --workers"
            )


def report(output: Place, rows: int) -> dict[str, int]:
    """Count what was written, and list the rejected rows in `rejected.jsonl`."""
    vectors = output / "vectors"
    written = pa.dataset.dataset(vectors.path, filesystem=vectors.files, format="parquet")
    rejected = written.to_table(["id", "rejected"], filter=~pa.dataset.field("rejected").is_null())
    lines = [{"id": row["id"], "reason": row["rejected"]} for row in rejected.to_pylist()]
    (output / "rejected.jsonl").write("".join(json.dumps(line) + "\n" for line in lines).encode())
    if written.count_rows() != rows:
        raise ValueError(f"the source has {rows} rows, of which {written.count_rows()} are written: it was changed")
    return {"rows": rows, "embedded": rows - len(lines), "rejected": len(lines)}


def main(script: ScriptArguments) -> None:
    if Path(script.model).exists():
        script.model = str(Path(script.model).resolve())
    source, output = Place.of(script.source), Place.of(script.output_dir)
    output.files.create_dir(output.path, recursive=True)
    settings = checked_settings(output, script)
    table, files = tables(source, output, script)
    columns = checked_columns(table, files[0], script)
    (output / SETTINGS).write(settings)
    folder = source.path.rpartition("/")[0] if files == [source.path] else source.path
    root = Place(source.files, folder) if script.image_root is None else Place.of(script.image_root)

    start_ray(script)
    context = DataContext.get_current()
    context.checkpoint_config = CheckpointConfig(
        "row_hash",
        (output / "checkpoints").path,
        override_filesystem=output.files,
        delete_checkpoint_on_success=False,  # the same command once more has nothing to do
    )
    context.use_datasource_v2 = False  # it starts 32 actors to read footers, however few files there are
    rows = ray.data.read_parquet(files, filesystem=table.files, include_row_hash=True).select_columns(columns)
    embedded = rows.repartition(target_num_rows_per_block=script.rows_per_file).map_batches(
        Embedder,
        fn_constructor_args=(script, root),
        batch_size=None,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=script.workers),
        num_cpus=0 if script.num_gpus_per_worker else 1,
        num_gpus=script.num_gpus_per_worker,
    )
    embedded.write_parquet((output / "vectors").path, filesystem=output.files)
    total = sum(pa.parquet.read_metadata(file, filesystem=table.files).num_rows for file in files)
    print(json.dumps(report(output, total), indent=2))


if __name__ == "__main__":
    main(*TrlParser((ScriptArguments,)).parse_args_and_config())
