"""Load test of the web page: concurrent visitors who search by text, image, or both.

    python benchmarks/page_load.py --clients 64 --seconds 300 --hostile 0.05

Visitors use the page like a browser: upload, join the queue, read the events. Every answer must equal the result of
the same search in this process, and the memory of the page is monitored. With `--hostile 0.05`, that share of the
requests is broken, too large, forged, or disconnects; these must fail without affecting the others.
"""

import asyncio
import html
import json
import os
import platform
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
from load import Load, measure_load
from PIL import Image
from trl import TrlParser

from unime.page.collection import Collection, open_index, open_openmoji


ROOT = Path(__file__).resolve().parents[1]
NUM_QUERIES = 60
CARD = re.compile(r'<p class="name" title="([^"]*)">.*?<span>(-?\d\.\d{3})</span></p>', re.DOTALL)
AUTOMATIC = "automatic: chosen by the kind of query"
MAX_UPLOAD_BYTES = 25 * 2**20


@dataclass
class ScriptArguments:
    """Settings of the benchmark."""

    index: str | None = field(default=None, metadata={"help": "Index to search. Default: the OpenMoji drawings."})
    clients: int = field(default=64, metadata={"help": "Number of concurrent clients."})
    seconds: float = field(default=30.0, metadata={"help": "Duration of the measurement in seconds."})
    warm: float = field(default=10.0, metadata={"help": "Seconds of the same load before the measurement."})
    hostile: float = field(default=0.0, metadata={"help": "Share of requests that are broken, forged or disconnect."})
    tolerance: float = field(
        default=0.002, metadata={"help": "Maximum difference of a score; the page shows 3 digits."}
    )
    output: str = field(default="benchmarks/results/page_load.json", metadata={"help": "Output file."})


def queries() -> list[tuple[str, Image.Image | None]]:
    """Return distinct queries: texts, images, and both in turn."""
    rng = np.random.default_rng(0)
    result = []
    for number in range(NUM_QUERIES):
        image = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((96, 96))
        text = f"number {number} " + " ".join(rng.choice(["red", "cat", "of", "sun", "hats"], 1 + number % 9))
        result.append((text if number % 3 else "", None if number % 3 == 1 else image))
    return result


@contextmanager
def running_page(script: ScriptArguments) -> Iterator[tuple[subprocess.Popen, str]]:
    """Start the page; yield its process and its address."""
    command = [sys.executable, str(ROOT / "app.py"), *(["--index", script.index] if script.index else [])]
    with tempfile.TemporaryFile("w+") as log, tempfile.TemporaryDirectory() as uploads:
        environment = os.environ | {"PYTHONUNBUFFERED": "1", "GRADIO_TEMP_DIR": uploads}
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            while True:
                log.seek(0)
                output = log.read()
                if address := re.search(r"Running on local URL:\s+(\S+)", output):
                    break
                if process.poll() is not None:
                    raise ValueError(f"the page did not start: {output[-2000:]}")
                time.sleep(0.2)
            yield process, address[1]
        finally:
            process.terminate()
            process.wait()


class Visitor:
    """A client that sends the same requests as the script of the page."""

    def __init__(self, http: httpx2.AsyncClient, function: int):
        self.http, self.function = http, function

    async def upload(self, name: str, content: bytes) -> dict[str, Any]:
        answer = await self.http.post("/gradio_api/upload", files={"files": (name, content)})
        answer.raise_for_status()
        return {"path": answer.json()[0], "meta": {"_type": "gradio.FileData"}}

    async def ask(self, data: Any, function: int | None = None, **options: Any) -> dict[str, Any]:
        """Call a function of the page and wait for the event with the answer or the error."""
        session = f"{random.getrandbits(64):x}"
        body = {"data": data, "fn_index": self.function if function is None else function, "session_hash": session}
        (await self.http.post("/gradio_api/queue/join", json=body, **options)).raise_for_status()
        address = f"/gradio_api/queue/data?session_hash={session}"
        async with self.http.stream("GET", address, **options) as events:
            async for line in events.aiter_lines():
                event = json.loads(line.removeprefix("data:")) if line.startswith("data:") else {"msg": ""}
                if event["msg"] == "process_completed":
                    return event
        return {"success": False}


async def search_function(http: httpx2.AsyncClient) -> int:
    """Return the id of the search function in the page."""
    config = (await http.get("/config")).json()
    results = next(part["id"] for part in config["components"] if part["props"].get("elem_id") == "results")
    functions = config["dependencies"]
    return next(item["id"] for item in functions if item["outputs"] == [results] and len(item["inputs"]) == 4)


async def load(script: ScriptArguments, collection: Collection) -> Load:
    """Start the page and measure it."""
    searches = queries()
    expected = [collection.search(text, image).hits for text, image in searches]
    files = []
    for _, image in searches:
        buffer = BytesIO()
        if image is not None:
            image.save(buffer, "PNG")
        files.append(buffer.getvalue())

    async def ask(rng: random.Random) -> None:
        number = rng.randrange(NUM_QUERIES)
        file = await visitor.upload(f"{number}.png", files[number]) if files[number] else None
        event = await visitor.ask([searches[number][0], file, AUTOMATIC, 12])
        assert event["success"], event
        cards = [(html.unescape(name), float(score)) for name, score in CARD.findall(event["output"]["data"][0])]
        scores = {hit.id: hit.score for hit in expected[number]}
        assert len(cards) == len(expected[number]) and {name for name, _ in cards} == scores.keys(), (cards, scores)
        assert all(abs(score - scores[name]) <= script.tolerance for name, score in cards), (cards, scores)

    async def misbehave(rng: random.Random) -> None:
        forged = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
        attack = rng.randrange(8)
        try:
            if attack == 0:
                event = await attacker.ask(["a cat", await attacker.upload("a.png", b"no image"), AUTOMATIC, 12])
            elif attack == 1:
                event = await attacker.ask(["a cat", forged, AUTOMATIC, 12])
            elif attack == 2:
                event = await attacker.ask(["a cat", None, AUTOMATIC, 10**9])
            elif attack == 3:
                event = await attacker.ask(["far too long " * 50_000, None, AUTOMATIC, 12])
                # The page shows a message and keeps its results.
                event["success"] = event["success"] and CARD.search(str(event["output"]["data"]))
            elif attack == 4:
                event = await attacker.ask([{"a": [1]}, 5, None, "many"])
            elif attack == 5:
                event = await attacker.ask(["a cat", None, AUTOMATIC, 12], function=10**6)
            elif attack == 6:
                event = {"success": await attacker.upload("a.png", bytes(MAX_UPLOAD_BYTES + 1))}
            else:
                event = await attacker.ask(["gone", None, AUTOMATIC, 12], timeout=rng.choice([0.001, 0.02]))
                event["success"] = False  # the answer arrived before the timeout
        except (httpx2.TransportError, httpx2.HTTPStatusError):
            return
        assert not event["success"], (attack, event)

    # The page may close a connection at any time, for example after an oversized upload: do not reuse it.
    single_use, reusable = httpx2.Limits(max_keepalive_connections=0), httpx2.Limits(keepalive_expiry=2)
    with running_page(script) as (process, address):
        async with (
            httpx2.AsyncClient(base_url=address, timeout=300, limits=reusable) as http,
            httpx2.AsyncClient(base_url=address, timeout=300, limits=single_use) as attacker_http,
        ):
            visitor = Visitor(http, await search_function(http))
            attacker = Visitor(attacker_http, visitor.function)
            return await measure_load(
                process, ask, misbehave, script.clients, script.hostile, script.warm, script.seconds
            )


def main(script: ScriptArguments) -> None:
    collection = open_index(script.index) if script.index else open_openmoji(ROOT / "checkpoints" / "unime-tiny")
    row = {"clients": script.clients} | asyncio.run(load(script, collection)).row()
    print("| clients | p50, ms | p95, ms | p99, ms | MB |\n|---|---|---|---|---|")
    times = " | ".join(f"{row[key]:.1f}" for key in ("p50_ms", "p95_ms", "p99_ms"))
    print(f"| {script.clients} | {times} | {row['memory_mb']:.0f} |")
    machine = {"machine": platform.platform(), "cores": os.cpu_count()}
    path = Path(script.output)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(machine | {"settings": asdict(script), "rows": [row]}, indent=2) + "\n")


if __name__ == "__main__":
    main(*TrlParser((ScriptArguments,)).parse_args_and_config())
