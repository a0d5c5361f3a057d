"""Tables that are computed once and then read from disk: Arrow files sealed with a checksum."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, Features
from filelock import FileLock
from tqdm.auto import tqdm

from .atomic_files import atomic_write, intact_files


def cached_table(path: Path, features: Features, make: Callable[[], Iterable[dict[str, list[Any]]]]) -> Dataset:
    """Read a table from the cache; compute and write it first if it is missing or damaged.

    Args:
        path (`Path`): Cache file, ending in `.arrow`. Its name must identify everything that the content depends on.
        features (`Features`): Columns of the table.
        make (`Callable`): Returns the batches of the table; each maps a column to a list of values.

    Raises:
        OSError: The file cannot be written.
    """

    def cached_file() -> Path | None:
        return next(intact_files(path.parent, f"{path.stem}.*{path.suffix}"), None)

    path.parent.mkdir(parents=True, exist_ok=True)
    schema = features.arrow_schema
    with FileLock(f"{path}.lock"):  # the other processes of a launch wait for the first one
        if cached_file() is None:
            for leftover in path.parent.glob(f".{path.name}.*.part"):  # from processes that were killed
                leftover.unlink()
            with (
                atomic_write(path, sealed=True) as part,
                pa.OSFile(str(part), "wb") as sink,
                pa.ipc.new_stream(sink, schema) as writer,
            ):
                for batch in tqdm(make(), desc=path.stem, unit="batch"):
                    writer.write(pa.RecordBatch.from_pydict(batch, schema=schema))
        return Dataset.from_file(str(cached_file()))
