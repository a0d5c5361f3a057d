"""What a long job shows: Ctrl-C ends it at once, and Pillow's warnings are counted."""

import json
import signal
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image
from small_index import TINY

from unime.cli.progress import INTERRUPTED, job
from unime.index.index import Index


JOB = """
import os, signal, time
from concurrent.futures import ThreadPoolExecutor
from unime.cli.progress import job

with ThreadPoolExecutor() as threads, job(lambda: "7 entries are kept") as show:
    show("Embedding", 7, 9)
    working = threads.submit(time.sleep, 100)
    threads.submit(os.kill, os.getpid(), signal.SIGINT)
    working.result()
"""


def test_an_interrupted_job_says_what_is_kept_and_waits_for_no_thread() -> None:
    done = subprocess.run([sys.executable, "-c", JOB], capture_output=True, text=True, timeout=60)
    assert done.returncode == INTERRUPTED
    assert done.stderr.endswith("interrupted: 7 entries are kept\n") and "Traceback" not in done.stderr


def test_ctrl_c_is_handled_as_before_after_a_job() -> None:
    before = signal.getsignal(signal.SIGINT)
    with job(lambda: ""):
        assert signal.getsignal(signal.SIGINT) != before
    assert signal.getsignal(signal.SIGINT) == before


def test_warnings_of_pillow_are_counted_by_kind(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01"
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", exif=exif)
    with pytest.warns(UserWarning, match="of something else"), job(lambda: ""), ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda _: Image.open(tmp_path / "a.jpg").getexif().get(274), range(50)))
        warnings.warn("of something else", stacklevel=1)
    shown = capfd.readouterr().err
    assert shown.count("Corrupt EXIF data") == 1 and "50 warnings of Pillow, such as: Corrupt EXIF data." in shown


@pytest.mark.slow
@pytest.mark.parametrize("command", ["index", "embed"])
def test_ctrl_c_ends_an_index_at_once_and_the_next_run_continues(command: str, tmp_path: Path) -> None:
    source, output = tmp_path / "images", tmp_path / "output"
    source.mkdir()
    for number in range(2500):
        Image.new("RGB", (64, 64), (number % 256, number // 256, 0)).save(source / f"{number}.png")
    arguments = [sys.executable, "-m", "unime.cli", command, str(source), str(output), "--model", TINY]
    running = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)

    def has_entries() -> bool:
        return any(output.glob("*.parquet")) or (output / "entries.lance").is_dir() and len(Index.open(output)) > 0

    while not has_entries():
        assert running.poll() is None
        time.sleep(0.02)
    started = time.perf_counter()
    running.send_signal(signal.SIGINT)
    _, shown = running.communicate(timeout=60)
    assert running.returncode == INTERRUPTED and time.perf_counter() - started < 1
    assert "start the same command again for the rest" in shown and "Traceback" not in shown
    result = json.loads(subprocess.run([*arguments, "--json"], stdout=subprocess.PIPE, check=True).stdout)
    kept = result["unchanged" if command == "index" else "kept"]
    assert kept >= 1000 and kept + result["embedded"] == 2500
    assert command == "embed" or len(Index.open(output)) == 2500
