"""Killed indexing runs."""

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from small_index import TINY, rows

from unime import load_model
from unime.index.index import Index


RUN = """
import sys
from pathlib import Path
from unime import load_model
from unime.corpus.entry import Entry
from unime.index.index import RECORD_FILE, Index

folder, checkpoint, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
corpus = [Entry(f"{n}", f"number {n} of many", metadata={"n": n}) for n in range(size)]
loaded = load_model(checkpoint, dtype="float32")
print("create", flush=True)
index = Index.open(folder) if Path(folder, RECORD_FILE).is_file() else Index.create(folder, checkpoint)
print("sync", flush=True)
result = index.sync(corpus, *loaded, report=lambda stage, done, total: print(stage, done, flush=True))
print("done", result.embedded, flush=True)
"""


@pytest.mark.slow
def test_a_run_killed_at_any_moment_loses_and_duplicates_nothing(
    tmp_path: Path, record_property: Callable[[str, object], None]
):
    model, processor = load_model(TINY, dtype="float32")
    size, folder, exit_codes = 4000, tmp_path / "index", []
    arguments = [sys.executable, "-c", RUN, str(folder), TINY, str(size)]

    def run(until: str | None, wait: float = 0) -> str:
        """Start a run, kill it `wait` seconds after it prints `until`, and return its last line."""
        process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
        last_line = ""
        for line in process.stdout:
            last_line = line.strip()
            if until is not None and last_line.startswith(until):
                try:
                    process.wait(wait)
                except subprocess.TimeoutExpired:
                    process.send_signal(signal.SIGKILL)
        process.stdout.close()
        exit_codes.append(process.wait())
        return last_line

    counts = []
    for until, wait in [("create", 0.005), ("sync", 0.05), ("Reading", 0.2), ("Embedding", 0), ("Embedding", 0.3)]:
        run(until, wait)
        if (folder / "index.json").is_file():
            indexed = rows(Index.open(folder))
            counts.append(len(indexed))
            assert all(
                row["text"] == f"number {name} of many" and row["n"] == int(name) for name, row in indexed.items()
            )
    assert counts == sorted(counts) and 0 < counts[-1] < size  # each run resumes where the last one was killed
    record_property("kills", exit_codes.count(-signal.SIGKILL))
    last = run(None)
    assert last == f"done {size - counts[-1]}"
    indexed = rows(Index.open(folder))
    assert indexed.keys() == {str(number) for number in range(size)}
    sample = range(0, size, 500)
    expected = model.encode([f"number {number} of many" for number in sample], processor)
    np.testing.assert_allclose([indexed[str(number)]["vector"] for number in sample], expected, atol=1e-5)
