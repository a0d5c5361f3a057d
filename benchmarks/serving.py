"""Load on `unime serve`: latency and throughput, with request batching and with the same server answering one by one.

    python benchmarks/serving.py --clients 1 8 64 --seconds 10

Every vector is held against `UniMEModel.encode`, and the server's memory is watched. With `--hostile 0.05`, that share
of the requests is broken, too large, or hangs up; they must fail, and nobody else.
"""

import asyncio
import base64
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from io import BytesIO
from typing import Any

import httpx2
import numpy as np
from load import Load, put_load
from PIL import Image
from result_files import write
from trl import TrlParser

from unime import load_model


SERVE = "import typer; from unime.cli.serve import serve; typer.run(serve)"
POOL = 200  # different items
BATCH_ITEMS = {"batched": 64, "answered one by one": 1}


@dataclass
class ScriptArguments:
    """What to measure."""

    model: str = field(default="checkpoints/unime-tiny", metadata={"help": "Checkpoint."})
    device: str = field(default="cpu", metadata={"help": "Where the server computes."})
    clients: list[int] = field(default_factory=lambda: [1, 8, 64], metadata={"help": "Clients at a time."})
    kinds: list[str] = field(default_factory=lambda: [*BATCH_ITEMS], metadata={"help": "How requests are answered."})
    seconds: float = field(default=10.0, metadata={"help": "Length of each measurement."})
    warm: float = field(default=1.0, metadata={"help": "Seconds of the same load before it."})
    images: float = field(default=0.25, metadata={"help": "Share of items that have an image."})
    hostile: float = field(default=0.0, metadata={"help": "Share of requests that are broken, too large or hang up."})
    tolerance: float = field(default=1e-5, metadata={"help": "Largest difference of a vector's entry from `encode`."})
    output: str = field(default="benchmarks/results/serving.json", metadata={"help": "Where the figures are written."})


def pool(images: float) -> tuple[list[Any], list[Any]]:
    """Return the items, and what is sent for them."""
    rng = np.random.default_rng(0)
    items: list[Any] = []
    sent: list[Any] = []
    for number in range(POOL):
        text = f"item {number}: " + " ".join(rng.choice(["red", "cat", "of", "sun", "seven", "hats"], 3 + number % 20))
        if number >= images * POOL:
            items.append(text)
            sent.append(text)
            continue
        image = Image.fromarray(rng.integers(0, 256, (96, 96, 3), dtype=np.uint8))
        buffer = BytesIO()
        image.save(buffer, "PNG")
        url = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        items.append({"text": text, "image": image})
        parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]
        sent.append([{"role": "user", "content": parts}])
    return items, sent


def hostile_bodies() -> list[bytes]:
    """Return bodies that a server must refuse with a status from 400 to 499."""
    broken = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}
    inside = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1/a.png"}}]}
    requests = [
        {"input": "far too long " * 5000},
        {"input": ["a", None]},
        {"messages": [broken]},
        {"messages": [inside]},
    ]
    return [*(json.dumps(one).encode() for one in requests), b"[" * 100_000, b" " * 20_000_000]


@contextmanager
def served(script: ScriptArguments, batch_items: int) -> Iterator[tuple[subprocess.Popen, str]]:
    """Start a server and give it with its address."""
    options = ["--model", script.model, "--device", script.device, "--port", "0", "--batch-items", str(batch_items)]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, *options], env=environment, stdout=subprocess.PIPE, stderr=sys.stderr, text=True
    )
    try:
        address = next(line for line in process.stdout if " at http://" in line).split(" at ")[1].strip()
        while process.poll() is None:
            try:
                httpx2.get(address.replace("/v1", "/health"))
                break
            except httpx2.ConnectError:  # the model is not warm yet
                time.sleep(0.1)
        yield process, address
    finally:
        process.terminate()
        process.wait()


async def load(script: ScriptArguments, clients: int, batch_items: int, sent: list[Any], truth: np.ndarray) -> Load:
    """Start a server and measure it."""
    bodies = hostile_bodies()

    async def ask(own: random.Random) -> None:
        item = own.randrange(POOL)
        answer = await http.post("/embeddings", json={"input": [sent[item]], "encoding_format": "base64"})
        assert answer.status_code == 200, answer.text
        vector = np.frombuffer(base64.b64decode(answer.json()["data"][0]["embedding"]), "<f4")
        np.testing.assert_allclose(vector, truth[item], rtol=0, atol=script.tolerance)

    async def misbehave(own: random.Random) -> None:
        if own.random() < 0.3:
            try:
                await http.post("/embeddings", json={"input": ["gone"] * 5}, timeout=own.choice([0.001, 0.02]))
            except httpx2.TimeoutException:
                pass
            return
        answer = await http.post("/embeddings", content=own.choice(bodies))
        assert 400 <= answer.status_code < 500, answer.text

    limits = httpx2.Limits(max_connections=None)
    with served(script, batch_items) as (process, address):
        async with httpx2.AsyncClient(base_url=address, timeout=300, limits=limits) as http:
            return await put_load(process, ask, misbehave, clients, script.hostile, script.warm, script.seconds)


def main(script: ScriptArguments) -> None:
    items, sent = pool(script.images)
    model, processor = load_model(script.model, dtype="float32")
    truth = model.encode(items, processor)
    rows = []
    print("| clients | requests are | p50, ms | p95, ms | p99, ms | items/s | MB |\n|---|---|---|---|---|---|---|")
    for clients in script.clients:
        for name in script.kinds:
            row = asyncio.run(load(script, clients, BATCH_ITEMS[name], sent, truth)).row()
            row |= {"clients": clients, "requests are": name}
            row["items_per_second"] = row["answers_checked"] / script.seconds
            rows.append(row)
            times = " | ".join(f"{row[key]:.1f}" for key in ("p50_ms", "p95_ms", "p99_ms", "items_per_second"))
            print(f"| {clients} | {name} | {times} | {row['memory_mb']:.0f} |", flush=True)
    write(script.output, asdict(script), rows)


if __name__ == "__main__":
    main(*TrlParser((ScriptArguments,)).parse_args_and_config())
