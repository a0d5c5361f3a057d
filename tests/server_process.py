"""`unime serve` as a process, for tests that need one."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2


ROOT = Path(__file__).resolve().parents[1]
COMMAND = "import typer; from unime.cli.serve import serve; typer.run(serve)"


@contextmanager
def started(*options: object) -> Iterator[tuple[subprocess.Popen, str]]:
    """Start a server on a free port; yield the process and its address."""
    command = [sys.executable, "-c", COMMAND, "--port", "0", "--device", "cpu", *map(str, options)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT
    )
    try:
        address = next(line for line in process.stdout if " at http://" in line).split(" at ")[1].strip()
        deadline = time.monotonic() + 60
        while True:
            try:
                httpx2.get(address.replace("/v1", "/health"))
                break
            except httpx2.ConnectError:  # not warm yet
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.05)
        yield process, address
    finally:
        process.kill()
        process.wait()
