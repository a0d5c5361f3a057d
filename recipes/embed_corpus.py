"""Embed millions of rows with Ray Data, on the cores of one machine or on all machines of a cluster.

    python recipes/embed_corpus.py --source products.parquet --output_dir runs/products --workers 2
    python recipes/embed_corpus.py --source s3://shop/photos --output_dir s3://shop/vectors \
        --address auto --workers 16 --num_gpus_per_worker 1 --dtype bfloat16

The source is a Parquet file, a folder of Parquet files, or a folder of images, which is listed once in
`OUTPUT/images.parquet`. Source and output may be on any file system that pyarrow supports; every node must have access
to them and to the checkpoint.

`OUTPUT/vectors` has one row per source row: `id`, `text`, `image` (its path), `embedding`, `rejected` (the reason if
there is no embedding, otherwise null) and `row_hash`, which tells Ray Data which rows are done. A worker that dies is
replaced, and after an interrupted run the same command embeds the remaining rows: every row is written exactly once.
The output is Parquet and not Lance because Ray Data can discard an incomplete file but not rows of a Lance table;
LanceDB reads the Parquet files.
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
from unime.image_formats import IMAGE_SUFFIXES
from unime.index.entry_embedding import READER_THREADS, embed_entries


SETTINGS_FILE = "settings.json"
IO_CPUS = 2  # for reading and writing, besides those of the workers


@dataclass
class ScriptArguments:
    """The source, the model, and the output."""

    source: str = field(metadata={"help": "Parquet file, folder of them, or folder of images; a path or URI."})
    output_dir: str = field(metadata={"help": "Folder for vectors, checkpoints and rejected.jsonl; a path or URI."})
    model: str = field(default="checkpoints/unime-tiny", metadata={"help": "Folder or Hub id of a checkpoint."})
    text: str = field(default="text", metadata={"help": "Column of the text."})
    image: str = field(default="image", metadata={"help": "Column of the image: a path or the encoded image."})
    identifier: str = field(default="id", metadata={"help": "Column of the id."})
    image_root: str | None = field(
        default=None, metadata={"help": "Folder that image paths start from. Default: the source's folder."}
    )
    instruction: str | None = field(default=None, metadata={"help": "Instruction for every row; see `embed_entries`."})
    image_size: str | None = field(
        default=None,
        metadata={"help": "Size at which the model reads images, such as 336, or JSON of image processor arguments."},
    )
    preset: str | None = field(
        default=None,
        metadata={
            "help": "How a published embedder is run: a preset, a .json file of one, 'none' or 'keep'. Default: by id."
        },
    )
    truncate_dim: int | None = field(
        default=None, metadata={"help": "Leading dimensions to keep (Matryoshka). Default: all."}
    )
    dtype: str = field(default="float32", metadata={"help": "Dtype of the weights."})
    workers: int = field(default=2, metadata={"help": "Number of models that embed in parallel."})
    num_gpus_per_worker: float = field(
        default=0, metadata={"help": "GPUs per worker, such as 1 or 0.5. 0: one CPU per worker."}
    )
    rows_per_file: int = field(
        default=1024, metadata={"help": "Rows of an output file; an interruption loses at most one file per worker."}
    )
    address: str | None = field(
        default=None, metadata={"help": "Address of a Ray cluster, or 'auto'. Default: this machine only."}
    )


@dataclass(frozen=True)
class Location:
    """A file or folder on one of pyarrow's file systems.

    Args:
        filesystem (`FileSystem`): The file system.
        path (`str`): The path on it.
    """

    filesystem: FileSystem
    path: str

    @classmethod
    def parse(cls, name: str) -> "Location":
        """Return the location of a path or a URI."""
        filesystem, path = FileSystem.from_uri(name) if "://" in name else (LocalFileSystem(), name)
        # Absolute, as workers have other working directories.
        return cls(filesystem, str(Path(path).resolve()) if isinstance(filesystem, LocalFileSystem) else path)

    def __truediv__(self, name: str) -> "Location":
        return Location(self.filesystem, f"{self.path}/{name}")

    def exists(self) -> bool:
        """Return whether there is a file or folder."""
        return self.filesystem.get_file_info(self.path).type != FileType.NotFound

    def files(self) -> list[str]:
        """Return the paths of all files in a folder except hidden ones, or the path of a file itself."""
        if self.filesystem.get_file_info(self.path).type == FileType.File:
            return [self.path]
        infos = self.filesystem.get_file_info(FileSelector(self.path, recursive=True))
        paths = [info.path for info in infos if info.type == FileType.File]
        return sorted(path for path in paths if "/." not in path.removeprefix(self.path))

    def read(self) -> bytes:
        """Return the content of a file."""
        with self.filesystem.open_input_file(self.path) as file:
            return file.read()

    def write(self, content: bytes) -> None:
        """Write a file atomically."""
        with self.filesystem.open_output_stream(self.path + ".part") as file:
            file.write(content)
        self.filesystem.move(self.path + ".part", self.path)


class Embedder:
    """One model of the pool: maps rows to embeddings, or to the reason why a row cannot be embedded.

    Args:
        script (`ScriptArguments`): The model and the columns.
        root (`Location`): The folder that image paths start from.
    """

    def __init__(self, script: ScriptArguments, root: Location):
        self.script, self.root = script, root
        model, self.processor = load_model(script.model, script.image_size, script.preset, dtype=script.dtype)
        self.model = model.to("cuda" if script.num_gpus_per_worker else "cpu")
        self.dimensions = script.truncate_dim or model.config.hidden_size

    def __call__(self, batch: pa.Table) -> pa.Table:
        with ThreadPoolExecutor(READER_THREADS) as readers:
            entries = list(readers.map(self.entry, batch.to_pylist()))
        vectors, reasons = {}, {}  # by the identity of the entry, and by its id
        script = self.script
        for window in embed_entries(self.model, self.processor, entries, script.instruction, script.truncate_dim):
            vectors |= {id(entry): vector for entry, vector in zip(window.entries, window.vectors, strict=True)}
            reasons |= {rejected.id: rejected.reason for rejected in window.rejected}
        embeddings = [vectors.get(id(entry)) for entry in entries]
        rejected = [None if id(entry) in vectors else reasons[entry.id] for entry in entries]
        columns = {
            "id": pa.array([entry.id for entry in entries], pa.string()),
            "text": pa.array([entry.text for entry in entries], pa.string()),
            "image": pa.array([entry.metadata["image"] for entry in entries], pa.string()),
            "embedding": pa.array(embeddings, pa.list_(pa.float32(), self.dimensions)),
            "rejected": pa.array(rejected, pa.string()),
        }
        return pa.table(columns | {"row_hash": batch["row_hash"]})

    def entry(self, row: Mapping[str, Any]) -> Entry:
        """Return a row as an entry; an image that is not on a local disk is read here."""
        columns = {"id": self.script.identifier, "text": self.script.text, "image": self.script.image}
        identifier, image = row.get(columns["id"]), row.get(columns["image"])
        stored = image if isinstance(image, Mapping) else {"path": image}
        path = stored.get("path") if isinstance(stored.get("path"), str) else None
        problem = "it has no id: give it one" if identifier is None else None
        if path and not stored.get("bytes") and not isinstance(self.root.filesystem, LocalFileSystem):
            try:
                row = {**row, columns["image"]: (self.root / path).read()}
            except OSError as error:
                row = {**row, columns["image"]: None}
                problem = f"its image {path} cannot be read ({error}): fix the path"
        entry = entry_from_row(row, 0, columns, Path(self.root.path))
        return replace(entry, id=str(identifier), metadata={"image": path}, problem=entry.problem or problem)


def list_tables(source: Location, output: Location, script: ScriptArguments) -> tuple[Location, list[str]]:
    """Return the location of the rows and the paths of their Parquet files; lists a folder of images in one first.

    Args:
        source (`Location`): The source.
        output (`Location`): Where a list of images is written.
        script (`ScriptArguments`): The name of the source, and the columns of such a list.

    Raises:
        FileNotFoundError: The source does not exist.
        ValueError: The source has no Parquet files and no images, or both.
    """
    if not source.exists():
        raise FileNotFoundError(f"there is no {script.source}: fix --source")
    files = source.files()
    parquet = [path for path in files if path.endswith(".parquet")]
    images = [path.removeprefix(source.path + "/") for path in files if path.lower().endswith(tuple(IMAGE_SUFFIXES))]
    if bool(parquet) == bool(images):
        contents = "both Parquet files and images" if parquet else "neither Parquet files nor images"
        raise ValueError(f"{script.source} has {contents}: give a source with one of the two")
    if parquet:
        return source, parquet
    listing = output / "images.parquet"
    if not listing.exists():
        other_files = [path for path in files if not path.lower().endswith(tuple(IMAGE_SUFFIXES))]
        if other_files:
            print(f"skipping {len(other_files)} files that are not images: {', '.join(other_files[:5])}", flush=True)
        sink = pa.BufferOutputStream()
        pa.parquet.write_table(pa.table({script.identifier: images, script.image: images}), sink)
        listing.write(sink.getvalue().to_pybytes())
    return listing, [listing.path]


def check_columns(table: Location, file: str, script: ScriptArguments) -> list[str]:
    """Return the columns to read.

    Args:
        table (`Location`): The location of the rows.
        file (`str`): Path of one of its files.
        script (`ScriptArguments`): The names of the columns.

    Raises:
        ValueError: The column of the ids is missing, or those of both texts and images are.
    """
    names = pa.parquet.read_schema(file, filesystem=table.filesystem).names
    content = [name for name in (script.text, script.image) if name in names]
    if script.identifier not in names or not content:
        missing = f"{script.text} or {script.image}" if script.identifier in names else script.identifier
        raise ValueError(
            f"{file} has no column {missing}: it has {', '.join(names)}; name your columns with --identifier, --text "
            "and --image"
        )
    return [script.identifier, *content, "row_hash"]


def check_settings(output: Location, script: ScriptArguments) -> bytes:
    """Return the content of the settings file: everything that the embeddings depend on.

    Args:
        output (`Location`): The output folder.
        script (`ScriptArguments`): The arguments of this run.

    Raises:
        ValueError: The output has embeddings made with other settings.
    """
    irrelevant = {"workers", "num_gpus_per_worker", "rows_per_file", "address", "output_dir"}
    settings = {name: value for name, value in asdict(script).items() if name not in irrelevant}
    content = json.dumps(settings | {"revision": fingerprint(script.model)}, indent=2).encode()
    if (output / SETTINGS_FILE).exists() and (output / SETTINGS_FILE).read() != content:
        raise ValueError(f"{script.output_dir} has embeddings made with other settings: choose another output_dir")
    return content


def start_ray(script: ScriptArguments) -> None:
    """Join the cluster, or start one on this machine.

    Args:
        script (`ScriptArguments`): The address and the workers.

    Raises:
        ValueError: The cluster has too few CPUs or GPUs.
    """
    cpus = IO_CPUS + (0 if script.num_gpus_per_worker else script.workers)
    if script.address is None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init("local", num_cpus=cpus, include_dashboard=False)  # "local": ignores a cluster that runs here already
        return
    ray.init(script.address)
    available = ray.cluster_resources()
    for resource, needed in (("CPU", cpus), ("GPU", script.workers * script.num_gpus_per_worker)):
        if available.get(resource, 0) < needed:
            raise ValueError(
                f"{script.workers} workers need {needed:g} {resource}s (CPUs: {IO_CPUS} are for reading and writing), "
                f"but the cluster has {available.get(resource, 0):g}: use fewer --workers"
            )


def report(output: Location, num_rows: int) -> dict[str, int]:
    """Count what was written, and list the rejected rows in `rejected.jsonl`.

    Args:
        output (`Location`): The output folder.
        num_rows (`int`): Rows of the source.

    Raises:
        ValueError: The output does not have as many rows as the source.
    """
    vectors = output / "vectors"
    written = pa.dataset.dataset(vectors.path, filesystem=vectors.filesystem, format="parquet")
    rejected = written.to_table(["id", "rejected"], filter=~pa.dataset.field("rejected").is_null())
    lines = [{"id": row["id"], "reason": row["rejected"]} for row in rejected.to_pylist()]
    (output / "rejected.jsonl").write("".join(json.dumps(line) + "\n" for line in lines).encode())
    if written.count_rows() != num_rows:
        raise ValueError(
            f"the source has {num_rows} rows, but {written.count_rows()} were written, so the source has changed: "
            "choose another output_dir"
        )
    return {"rows": num_rows, "embedded": num_rows - len(lines), "rejected": len(lines)}


def main(script: ScriptArguments) -> None:
    if Path(script.model).exists():
        script.model = str(Path(script.model).resolve())
    source, output = Location.parse(script.source), Location.parse(script.output_dir)
    output.filesystem.create_dir(output.path, recursive=True)
    settings = check_settings(output, script)
    table, files = list_tables(source, output, script)
    columns = check_columns(table, files[0], script)
    (output / SETTINGS_FILE).write(settings)
    folder = source.path.rpartition("/")[0] if files == [source.path] else source.path
    root = Location(source.filesystem, folder) if script.image_root is None else Location.parse(script.image_root)

    start_ray(script)
    context = DataContext.get_current()
    context.checkpoint_config = CheckpointConfig(
        "row_hash",
        (output / "checkpoints").path,
        override_filesystem=output.filesystem,
        delete_checkpoint_on_success=False,  # so that repeating a finished command does nothing
    )
    context.use_datasource_v2 = False  # it starts 32 actors to read footers, however few files there are
    rows = ray.data.read_parquet(files, filesystem=table.filesystem, include_row_hash=True).select_columns(columns)
    embedded = rows.repartition(target_num_rows_per_block=script.rows_per_file).map_batches(
        Embedder,
        fn_constructor_args=(script, root),
        batch_size=None,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=script.workers),
        num_cpus=0 if script.num_gpus_per_worker else 1,
        num_gpus=script.num_gpus_per_worker,
    )
    embedded.write_parquet((output / "vectors").path, filesystem=output.filesystem)
    num_rows = sum(pa.parquet.read_metadata(file, filesystem=table.filesystem).num_rows for file in files)
    print(json.dumps(report(output, num_rows), indent=2))


if __name__ == "__main__":
    main(*TrlParser((ScriptArguments,)).parse_args_and_config())
