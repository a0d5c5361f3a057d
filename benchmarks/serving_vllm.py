"""Speed, CPU time and memory of `unime serve` beside vLLM, on the same machine and with the same requests.

    make .venv-vllm/installed
    mkdir -p runs && git archive d6c4c24 checkpoints/unime-tiny | tar -x -C runs
    python benchmarks/serving_vllm.py

The model is the first unime-tiny, a LLaVA: vLLM on a CPU reads no images of the present one (docs/guides/export.md).

Both servers run at the same time and are measured in turn: each window sends them the same requests, which no other
window repeats. Texts are sent as conversations, because vLLM applies the prompt to nothing else. Every embedding is
compared with `UniMEModel.encode` afterwards. Where other programs take the cores, set `OMP_WAIT_POLICY=PASSIVE`, which
`unime serve` does by itself: vLLM's threads otherwise spin while they wait.

The memory is that of a fresh server which answers requests of varied shapes: one to eight items, texts of one to 600
words, images of 32 to 1024 pixels a side. It is the proportional set size (PSS) of the server and its child processes.
"""

import asyncio
import base64
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path
from statistics import median
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
import psutil
from PIL import Image
from result_files import table, write
from trl import TrlParser

from unime import load_model
from unime.export.plain import export_plain


ROOT = Path(__file__).resolve().parents[1]
VLLM = ROOT / ".venv-vllm" / "bin" / "vllm"
VLLM_VARIABLES = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "HF_HUB_OFFLINE": "1"}
NAME = "unime-tiny"
CHECKPOINT = str(ROOT / "runs" / "checkpoints" / NAME)
WORDS = ["red", "cat", "of", "sun", "seven", "hats", "a", "river", "under", "the", "bridge", "runs"]
IMAGE_SIZE = (640, 480)
BATCH_TEXTS = 16
MEMORY_SAMPLES = 10
LARGEST_DIFFERENCE = 1e-4  # of a component, float32


@dataclass(frozen=True)
class Workload:
    """A kind of request, and how many clients send it at a time.

    Args:
        name (`str`): Name in the table.
        clients (`int`): Number of concurrent clients; each waits for its answer before it sends the next request.
        requests (`int`): Requests per window.
        texts, images (`int`): Items of a request.
    """

    name: str
    clients: int
    requests: int
    texts: int = 0
    images: int = 0


WORKLOADS = [
    Workload("texts", 1, 300, texts=1),
    Workload(f"{BATCH_TEXTS} texts per request", 8, 60, texts=BATCH_TEXTS),
    Workload("texts", 64, 1000, texts=1),
    Workload("images", 1, 200, images=1),
    Workload("images", 8, 300, images=1),
    Workload("images", 64, 500, images=1),
    Workload("text and image in one request", 64, 400, texts=1, images=1),
]


@dataclass
class ScriptArguments:
    """Settings of the benchmark."""

    servers: list[str] = field(default_factory=lambda: ["unime", "vllm"], metadata={"help": "Servers to measure."})
    rounds: int = field(default=5, metadata={"help": "Windows per workload and server."})
    scale: float = field(default=1.0, metadata={"help": "Factor of the requests per window."})
    memory_requests: int = field(default=20_000, metadata={"help": "Requests of varied shapes; 0: no memory test."})
    output: str = field(default="benchmarks/results/serving_vllm.json", metadata={"help": "Output file."})


def text_part(rng: random.Random, words: int) -> dict[str, Any]:
    """Return a text of random words as a part of a conversation."""
    return {"type": "text", "text": " ".join(rng.choices(WORDS, k=words)) + f" {rng.getrandbits(32)}"}


def image_part(rng: random.Random, size: tuple[int, int]) -> dict[str, Any]:
    """Return a smooth random JPEG as a part of a conversation."""
    pixels = np.frombuffer(rng.randbytes(12 * 16 * 3), np.uint8).reshape(12, 16, 3)
    file = BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    url = f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def window_bodies(workload: Workload, window: int, requests: int) -> list[bytes]:
    """Return the bodies of the requests of one window."""
    rng = random.Random(f"{workload} {window}")
    bodies = []
    for _ in range(requests):
        parts = [text_part(rng, rng.randint(4, 24)) for _ in range(workload.texts)]
        parts += [image_part(rng, IMAGE_SIZE) for _ in range(workload.images)]
        bodies.append(body([[part] for part in parts]))
    return bodies


def varied_bodies(requests: int) -> Iterator[bytes]:
    """Yield the bodies of requests of varied shapes."""
    rng = random.Random("varied")
    for _ in range(requests):
        items = []
        for _ in range(rng.choice([1, 1, 1, 2, 4, 8])):
            with_image, with_text = rng.choice([(False, True), (True, False), (True, True)])
            side = partial(rng.randint, 32, 1024 if rng.random() < 0.2 else 256)
            item = [image_part(rng, (side(), side()))] if with_image else []
            words = round(min(600 - 200 * with_image, rng.lognormvariate(3, 1.2))) + 1
            items.append([*item, text_part(rng, words)] if with_text else item)
        yield body(items)


def body(items: Sequence[list[dict[str, Any]]]) -> bytes:
    """Return the body of a request for items, each a list of parts."""
    conversations = [[{"role": "user", "content": parts}] for parts in items]
    return json.dumps({"model": NAME, "messages": conversations, "encoding_format": "base64"}).encode()


class Connection:
    """A kept HTTP/1.1 connection; a client library would take a good part of the machine from the servers."""

    def __init__(self, port: int):
        self.port = port

    async def __aenter__(self) -> "Connection":
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port, limit=2**20)
        return self

    async def __aexit__(self, *error: object) -> None:
        self.writer.close()
        await self.writer.wait_closed()

    async def post(self, content: bytes) -> bytes:
        """Send the body of a request and return that of the answer.

        Raises:
            ValueError: The status is not 200.
        """
        head = f"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n"
        self.writer.write(f"{head}Content-Type: application/json\r\n\r\n".encode())
        self.writer.write(content)
        status, *lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().strip().lower().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        answer = await self.reader.readexactly(int(headers["content-length"]))
        if " 200 " not in status:
            raise ValueError(f"{status}: {answer.decode()[:500]}")
        return answer


@dataclass
class Window:
    """Measurements of one window: latencies and duration in seconds, CPU seconds of the server, and the answers."""

    latencies: list[float]
    seconds: float
    cpu_seconds: float
    answers: list[bytes]


class Server:
    """A running server.

    Args:
        process (`subprocess.Popen`): Its main process.
        port (`int`): Its port.
    """

    def __init__(self, process: subprocess.Popen, port: int):
        self.process = psutil.Process(process.pid)
        self.port = port

    def tree(self) -> list[psutil.Process]:
        """Return the main process and all that it has started."""
        return [self.process, *self.process.children(recursive=True)]

    def cpu_seconds(self) -> float:
        """Return the CPU time that the running processes have used."""
        times = [process.cpu_times() for process in self.tree()]
        return sum(time.user + time.system for time in times)

    def memory_mb(self) -> float:
        """Return the proportional set size of the processes in MB (10^6 bytes)."""
        return sum(process.memory_full_info().pss for process in self.tree()) / 1e6

    async def window(self, bodies: Sequence[bytes], clients: int) -> Window:
        """Answer the requests with a number of concurrent clients."""
        queue = iter(enumerate(bodies))
        latencies = [0.0] * len(bodies)
        answers = [b""] * len(bodies)

        async def client(connection: Connection) -> None:
            for index, content in queue:
                started = time.perf_counter()
                answers[index] = await connection.post(content)
                latencies[index] = time.perf_counter() - started

        async with AsyncExitStack() as stack:
            connections = [await stack.enter_async_context(Connection(self.port)) for _ in range(clients)]
            cpu, started = self.cpu_seconds(), time.perf_counter()
            await asyncio.gather(*map(client, connections))
            return Window(latencies, time.perf_counter() - started, self.cpu_seconds() - cpu, answers)


@contextmanager
def running(kind: str, folder: Path) -> Iterator[Server]:
    """Start a server of unime-tiny, `unime` or `vllm`, and yield it when it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    if kind == "unime":
        command = [sys.executable, "-m", "unime.cli", "serve", "--model", CHECKPOINT]
    else:
        command = [str(VLLM), "serve", str(folder / "plain"), "--served-model-name", NAME, "--runner", "pooling"]
        command += ["--convert", "embed", "--dtype", "float32", "--enforce-eager"]
        command += ["--disable-log-stats", "--disable-uvicorn-access-log"]  # `unime serve` has neither
    with (folder / f"{kind}.log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--port", str(port)], env=os.environ | VLLM_VARIABLES, stdout=log, stderr=log
        )
    try:
        while True:
            try:
                urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except URLError:
                if process.poll() is not None:
                    raise ValueError(f"{kind} exited: {(folder / f'{kind}.log').read_text()[-4000:]}") from None
                time.sleep(0.5)
        yield Server(process, port)
    finally:
        process.terminate()
        process.wait()


def embeddings(answer: bytes) -> np.ndarray:
    """Return the embeddings of an answer, `(items, dimensions)`."""
    data = [base64.b64decode(entry["embedding"]) for entry in json.loads(answer)["data"]]
    return np.stack([np.frombuffer(embedding, "<f4") for embedding in data])


def items_of(content: bytes) -> list[dict[str, Any]]:
    """Return the items of a request's body."""
    items = []
    for (message,) in json.loads(content)["messages"]:
        item: dict[str, Any] = {}
        for part in message["content"]:
            if part["type"] == "text":
                item["text"] = part["text"]
            else:
                encoded = base64.b64decode(part["image_url"]["url"].partition(",")[2])
                item["image"] = Image.open(BytesIO(encoded))
        items.append(item)
    return items


def measure_speed(script: ScriptArguments, folder: Path) -> list[dict[str, Any]]:
    """Return a row per workload and server."""
    model, processor = load_model(CHECKPOINT, dtype="float32")
    rows = []
    with ExitStack() as stack:
        servers = {kind: stack.enter_context(running(kind, folder)) for kind in script.servers}
        for workload in WORKLOADS:
            requests = max(1, round(script.scale * workload.requests))
            measured: dict[str, list[Window]] = {kind: [] for kind in servers}
            for number in range(script.rounds + 1):
                bodies = window_bodies(workload, number, requests)
                for kind, server in servers.items():
                    measured[kind].append(asyncio.run(server.window(bodies, workload.clients)))
                if number == 0:  # a warm-up, whose answers are checked
                    expected = model.encode([item for content in bodies for item in items_of(content)], processor)
                    for (window,) in measured.values():
                        difference = abs(np.concatenate([*map(embeddings, window.answers)]) - expected).max()
                        if not difference < LARGEST_DIFFERENCE:
                            raise ValueError(f"{workload}: embeddings differ from those of encode by {difference}")
            for kind, windows in measured.items():
                rows.append(speed_row(workload, kind, requests, windows[1:]))
                print({key: value for key, value in rows[-1].items() if key != "windows"}, flush=True)
    return rows


def speed_row(workload: Workload, kind: str, requests: int, windows: list[Window]) -> dict[str, Any]:
    """Return the medians over windows of what one server did on one workload, and the figures of every window."""
    items = requests * max(workload.texts, workload.images)
    figures = []
    for window in windows:
        p50, p99 = np.percentile(window.latencies, [50, 99]) * 1000
        speed, cpu = items / window.seconds, 1000 * window.cpu_seconds / items
        figures.append({"items per second": speed, "p50, ms": p50, "p99, ms": p99, "CPU per item, ms": cpu})
    medians = {name: median(figure[name] for figure in figures) for name in figures[0]}
    return {"workload": workload.name, "clients": workload.clients, "server": kind, **medians, "windows": figures}


def measure_memory(kind: str, requests: int, folder: Path) -> dict[str, Any]:
    """Return the memory of one server after a number of requests of varied shapes."""
    memory = {}
    with running(kind, folder) as server:
        memory[0] = server.memory_mb()
        bodies = varied_bodies(requests)
        step = max(1, requests // MEMORY_SAMPLES)
        for done in range(step, requests + 1, step):
            asyncio.run(server.window([next(bodies) for _ in range(step)], clients=8))
            memory[done] = server.memory_mb()
            print(kind, done, f"{memory[done]:.0f} MB", flush=True)
    return {"server": kind, "requests": requests, "started, MB": memory[0], "MB": [*memory.values()]}


def main(script: ScriptArguments) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export_plain(*load_model(CHECKPOINT, dtype="float32"), folder / "plain")
        rows = measure_speed(script, folder)
        print(table([{key: value for key, value in row.items() if key != "windows"} for row in rows]))
        write(script.output, asdict(script), rows)  # is not lost if the memory test fails
        if script.memory_requests:
            memory = [measure_memory(kind, script.memory_requests, folder) for kind in script.servers]
            write(script.output, asdict(script), [*rows, *memory])


if __name__ == "__main__":
    main(*TrlParser((ScriptArguments,)).parse_args_and_config())
