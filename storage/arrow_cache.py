"""Tables that are made once and then read from disk: Arrow files that are sealed by their checksums."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, Features
from filelock import FileLock
from tqdm.auto import tqdm

from .atomic_files import atomic_write, intact_files


def cached_table(path: Path, features: Features, make: Callable[[], Iterable[dict[str, list[Any]]]]) -> Dataset:
    """Read a table, which is made if it is not there, or damaged.

    Args:
        path (`Path`): Its place and name, in `.arrow`, that stand for all that the content depends on.
        features (`Features`): Its columns.
        make (`Callable`): Gives batches: lists of values by column.

    Raises:
        OSError: It cannot be written.
    """

    def found() -> Path | None:
        return next(intact_files(path.parent, f"{path.stem}.*{path.suffix}"), None)

    path.parent.mkdir(parents=True, exist_ok=True)
    schema = features.arrow_schema
    with FileLock(f"{path}.lock"):  # the other processes of a launch wait for the first
        if found() is None:
            for part in path.parent.glob(f".{path.name}.*.part"):  # of processes that were killed here
                part.unlink()
            with (
                atomic_write(path, sealed=True) as part,
                pa.OSFile(str(part), "wb") as sink,
                pa.ipc.new_stream(sink, schema) as writer,
            ):
                for batch in tqdm(make(), desc=path.stem, unit="batch"):
                    writer.write(pa.RecordBatch.from_pydict(batch, schema=schema))
        return Dataset.from_file(str(found()))
