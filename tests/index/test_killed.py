"""An index whose making is killed."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from unime import load_model
from unime.index.index import Index


ROOT = Path(__file__).resolve().parents[2]
TINY = str(ROOT / "checkpoints" / "unime-tiny")

RUN = """
import sys
from unime import load_model
from unime.corpus.corpus import Entry
from unime.index import store as module

folder, checkpoint, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
corpus = [Entry(f"{n}", f"number {n} of many", metadata={"n": n}) for n in range(size)]
loaded = load_model(checkpoint, dtype="float32")
print("create", flush=True)
store = module.Store.open(folder) if module.Path(folder, module.RECORD).is_file() else module.Store.create(
    folder, checkpoint)
print("sync", flush=True)
done = store.sync(corpus, *loaded, report=lambda stage, done, total: print(stage, done, flush=True))
print("done", done.embedded, flush=True)
"""


def rows(store: Index) -> dict[str, dict]:
    read = store.table.table.to_arrow().to_pylist()
    by_id = {row["id"]: row for row in read}
    assert len(by_id) == len(read), "an id is there twice"
    return by_id


@pytest.mark.slow
def test_a_run_that_is_killed_at_any_moment_loses_and_doubles_nothing(
    tmp_path: Path, record_property: Callable[[str, object], None]
):
    model, processor = load_model(TINY, dtype="float32")
    size, folder, ends = 4000, tmp_path / "index", []
    arguments = [sys.executable, "-c", RUN, str(folder), TINY, str(size)]

    def run(until: str | None, wait: float = 0) -> str:
        """Start a run, and kill it some seconds after it has said `until`; returns its last words."""
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
        said = ""
        for line in process.stdout:
            said = line.strip()
            if until is not None and said.startswith(until):
                try:
                    process.wait(wait)
                except subprocess.TimeoutExpired:
                    process.send_signal(signal.SIGKILL)
        process.stdout.close()
        ends.append(process.wait())
        return said

    counts = []
    for until, wait in [("create", 0.005), ("sync", 0.05), ("Reading", 0.2), ("Embedding", 0), ("Embedding", 0.3)]:
        run(until, wait)
        if (folder / "index.json").is_file():
            store = Index.open(folder)
            found = rows(store)
            counts.append(len(found))
            assert all(
                row["text"] == f"number {name} of many" and row["n"] == int(name) for name, row in found.items()
            )
    assert counts == sorted(counts) and 0 < counts[-1] < size  # each run has gone on where the last one was killed
    record_property("kills", ends.count(-signal.SIGKILL))
    last = run(None)
    assert last == f"done {size - counts[-1]}"
    found = rows(Index.open(folder))
    assert found.keys() == {str(number) for number in range(size)}
    some = list(range(0, size, 500))
    expected = model.encode([f"number {number} of many" for number in some], processor)
    np.testing.assert_allclose([found[str(number)]["vector"] for number in some], expected, atol=1e-5)
