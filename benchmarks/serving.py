"""Load test of `unime serve`: latency and throughput, with and without request batching.

    python benchmarks/serving.py --clients 1 8 64 --seconds 10

Every embedding is compared with `UniMEModel.encode`, and the memory of the server is monitored. With `--hostile 0.05`,
that share of the requests is broken, too large, or disconnects; these must fail without affecting the others.
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
from load import Load, measure_load
from PIL import Image
from result_files import write
from trl import TrlParser

from unime import load_model


SERVE = "import typer; from unime.cli.serve import serve; typer.run(serve)"
NUM_ITEMS = 200
BATCH_ITEMS = {"batched": 64, "one by one": 1}


@dataclass
class ScriptArguments:
    """Settings of the benchmark."""

    model: str = field(default="checkpoints/unime-tiny", metadata={"help": "Checkpoint to embed with."})
    device: str = field(default="cpu", metadata={"help": "Device of the server."})
    clients: list[int] = field(default_factory=lambda: [1, 8, 64], metadata={"help": "Numbers of concurrent clients."})
    modes: list[str] = field(
        default_factory=lambda: [*BATCH_ITEMS], metadata={"help": "Modes of the server: 'batched', 'one by one'."}
    )
    seconds: float = field(default=10.0, metadata={"help": "Duration of each measurement in seconds."})
    warm: float = field(default=1.0, metadata={"help": "Seconds of the same load before the measurement."})
    images: float = field(default=0.25, metadata={"help": "Share of items with an image."})
    hostile: float = field(
        default=0.0, metadata={"help": "Share of requests that are broken, too large or disconnect."}
    )
    tolerance: float = field(default=1e-5, metadata={"help": "Maximum difference of a component from `encode`."})
    output: str = field(default="benchmarks/results/serving.json", metadata={"help": "Output file."})


def build_items(images: float) -> tuple[list[Any], list[Any]]:
    """Return the items and the corresponding inputs of requests."""
    rng = np.random.default_rng(0)
    items: list[Any] = []
    inputs: list[Any] = []
    for number in range(NUM_ITEMS):
        text = f"item {number}: " + " ".join(rng.choice(["red", "cat", "of", "sun", "seven", "hats"], 3 + number % 20))
        if number >= images * NUM_ITEMS:
            items.append(text)
            inputs.append(text)
            continue
        image = Image.fromarray(rng.integers(0, 256, (96, 96, 3), dtype=np.uint8))
        buffer = BytesIO()
        image.save(buffer, "PNG")
        url = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        items.append({"text": text, "image": image})
        parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": text}]
        inputs.append([{"role": "user", "content": parts}])
    return items, inputs


def hostile_bodies() -> list[bytes]:
    """Return request bodies that a server must reject with a status from 400 to 499."""
    broken = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}
    local_address = {
        "role": "user",
        "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1/a.png"}}],
    }
    requests = [
        {"input": "far too long " * 5000},
        {"input": ["a", None]},
        {"messages": [broken]},
        {"messages": [local_address]},
    ]
    return [*(json.dumps(request).encode() for request in requests), b"[" * 100_000, b" " * 20_000_000]


@contextmanager
def running_server(script: ScriptArguments, batch_items: int) -> Iterator[tuple[subprocess.Popen, str]]:
    """Start a server; yield its process and its address."""
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
            except httpx2.ConnectError:  # the model is still loading
                time.sleep(0.1)
        yield process, address
    finally:
        process.terminate()
        process.wait()


async def load(
    script: ScriptArguments, clients: int, batch_items: int, inputs: list[Any], expected: np.ndarray
) -> Load:
    """Start a server and measure it."""
    bodies = hostile_bodies()

    async def ask(rng: random.Random) -> None:
        item = rng.randrange(NUM_ITEMS)
        answer = await http.post("/embeddings", json={"input": [inputs[item]], "encoding_format": "base64"})
        assert answer.status_code == 200, answer.text
        vector = np.frombuffer(base64.b64decode(answer.json()["data"][0]["embedding"]), "<f4")
        np.testing.assert_allclose(vector, expected[item], rtol=0, atol=script.tolerance)

    async def misbehave(rng: random.Random) -> None:
        if rng.random() < 0.3:
            try:
                await http.post("/embeddings", json={"input": ["gone"] * 5}, timeout=rng.choice([0.001, 0.02]))
            except httpx2.TimeoutException:
                pass
            return
        answer = await http.post("/embeddings", content=rng.choice(bodies))
        assert 400 <= answer.status_code < 500, answer.text

    limits = httpx2.Limits(max_connections=None)
    with running_server(script, batch_items) as (process, address):
        async with httpx2.AsyncClient(base_url=address, timeout=300, limits=limits) as http:
            return await measure_load(process, ask, misbehave, clients, script.hostile, script.warm, script.seconds)


def main(script: ScriptArguments) -> None:
    items, inputs = build_items(script.images)
    model, processor = load_model(script.model, dtype="float32")
    expected = model.encode(items, processor)
    rows = []
    print("| clients | mode | p50, ms | p95, ms | p99, ms | items/s | MB |\n|---|---|---|---|---|---|---|")
    for clients in script.clients:
        for mode in script.modes:
            row = asyncio.run(load(script, clients, BATCH_ITEMS[mode], inputs, expected)).row()
            row |= {"clients": clients, "mode": mode}
            row["items_per_second"] = row["answers_checked"] / script.seconds
            rows.append(row)
            times = " | ".join(f"{row[key]:.1f}" for key in ("p50_ms", "p95_ms", "p99_ms", "items_per_second"))
            print(f"| {clients} | {mode} | {times} | {row['memory_mb']:.0f} |", flush=True)
    write(script.output, asdict(script), rows)


if __name__ == "__main__":
    main(*TrlParser((ScriptArguments,)).parse_args_and_config())
