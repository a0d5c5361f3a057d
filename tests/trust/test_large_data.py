"""A dataset may be larger than memory: reading it takes a constant amount of memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


TEXT = "word " * 800  # 4 kB per row
MEASURE = """
import sys
from unime.data.sources import DataArguments, open_rows, open_texts

def anonymous_megabytes():  # memory of the process in MB, without memory-mapped files
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) / 1e3

_, stage, file, streaming = sys.argv
before = peak = anonymous_megabytes()
open_it = open_rows if stage == "2" else open_texts
dataset = open_it(DataArguments(file, streaming=streaming == "stream"))
count = 0
for count, row in enumerate(dataset, start=1):
    if count % 1000 == 0:
        peak = max(peak, anonymous_megabytes())
print(count, peak - before)
"""


def growth(stage: str, rows: int, streaming: str, folder: Path) -> float:
    """Write rows, read all of them in a new process, and return by how many MB its memory grew."""
    path = folder / f"{stage}-{rows}.jsonl"
    with path.open("w") as file:
        for number in range(rows):
            row = {"text": f"{number} {TEXT}"}
            if stage == "2":
                row = {"query": row, "positive": {"text": f"answer {number}"}}
            file.write(json.dumps(row) + "\n")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": str(folder / "cache")}
    command = [sys.executable, "-c", MEASURE, stage, str(path), streaming]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert process.returncode == 0, process.stderr[-4000:]
    count, megabytes = process.stdout.splitlines()[-1].split()
    assert int(count) == rows
    return float(megabytes)


@pytest.mark.slow
@pytest.mark.parametrize("streaming", ["file", "stream"])
@pytest.mark.parametrize("stage", ["1", "2"])
def test_memory_does_not_grow_with_the_number_of_rows(stage: str, streaming: str, tmp_path: Path):
    few, many = (growth(stage, rows, streaming, tmp_path) for rows in (6_000, 30_000))  # 24 MB and 120 MB of text
    assert many < few + 40, f"{few:.0f} MB of memory for 6,000 rows, {many:.0f} MB for 30,000"
