"""`unime serve` as a process: a port in use, many concurrent clients, disconnects, and SIGTERM."""

import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx2
import numpy as np
import pytest
import typer
import uvicorn
from PIL import Image
from server_process import started
from typer.testing import CliRunner

from unime.cli.serve import bind, serve
from unime.serve.server import Server


def test_answers_are_sent_without_delay() -> None:
    """With Nagle's algorithm an answer of two parts waits 40 ms for the client's delayed acknowledgement."""

    async def nagle_is_on() -> bool:
        accepted = asyncio.get_running_loop().create_future()
        with bind("127.0.0.1", 0) as listener:
            async with await asyncio.start_server(lambda _, writer: accepted.set_result(writer), sock=listener):
                _, client = await asyncio.open_connection(*listener.getsockname())
                writer = await accepted
                delayed = writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 0
                client.close()
                writer.close()
        return delayed

    assert not asyncio.run(nagle_is_on())


def test_a_port_in_use_is_reported_before_the_model_is_loaded():
    app = typer.Typer()
    app.command()(serve)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        result = CliRunner().invoke(app, ["--model", "there/is/none", "--port", str(port)])
    assert isinstance(result.exception, OSError)
    assert str(result.exception).startswith(f"cannot listen on 127.0.0.1, port {port}: ")


def test_an_unavailable_device_is_refused_in_one_sentence():
    app = typer.Typer()
    app.command()(serve)
    result = CliRunner().invoke(app, ["--port", "0", "--device", "tpu9"])
    assert isinstance(result.exception, ValueError)
    assert str(result.exception).startswith("this machine cannot compute on tpu9: ")
    assert "\n" not in str(result.exception)


@pytest.mark.slow
def test_threads_of_torch_sleep_while_they_wait_unless_the_environment_says_otherwise():
    """Else they take the cores of the server's other threads: on two busy cores a text took five times as long."""
    start = (
        "import os, sys; from unime.cli.serve import serve; assert 'torch' not in sys.modules\n"
        "try: serve(port=0, device='tpu9')\n"
        "except ValueError: print(os.environ['OMP_WAIT_POLICY'])"
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    for given, expected in (({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")):
        done = subprocess.run([sys.executable, "-c", start], env=environment | given, capture_output=True, text=True)
        assert done.stdout.split()[-1:] == [expected], done.stderr


def test_connections_that_were_made_before_the_shutdown_are_answered_and_others_refused() -> None:
    async def app(scope: dict, receive: Callable, send: Callable) -> None:
        if scope["path"] == "/block":  # connections wait in the listener's queue meanwhile
            server.should_exit = True
            connected.append(socket.create_connection(address))
            time.sleep(0.2)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"8")]})
        await send({"type": "http.response.body", "body": b"answered"})

    def answer(connection: socket.socket, path: str) -> bytes:
        connection.settimeout(10)
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        received = b""
        while not received.endswith(b"answered") and (part := connection.recv(4096)):
            received += part
        return received

    listener = bind("127.0.0.1", 0)
    server = Server(uvicorn.Config(app, lifespan="off", log_level="warning", ws="none", timeout_graceful_shutdown=10))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not server.started:
        assert thread.is_alive() and time.monotonic() < deadline
        time.sleep(0.01)
    address = listener.getsockname()
    connected = [socket.create_connection(address)]  # without a request yet
    with socket.create_connection(address) as blocking:
        assert answer(blocking, "/block").endswith(b"answered")
    time.sleep(0.3)  # the shutdown has begun
    for connection in connected:
        received = answer(connection, "/")
        assert received.endswith(b"answered") and b"connection: close" in received.lower()
        connection.close()
    with pytest.raises(ConnectionRefusedError):
        while time.monotonic() < deadline:
            socket.create_connection(address, timeout=60).close()
    thread.join(60)
    assert not thread.is_alive()


@pytest.mark.slow
def test_64_clients_get_their_own_embeddings_while_others_disconnect_or_send_bad_requests(
    expected: Callable[..., np.ndarray], data_url: Callable[..., str]
):
    rng = random.Random(0)
    colours = [tuple(rng.randrange(256) for _ in range(3)) for _ in range(40)]
    images = [Image.new("RGB", (40, 40), colour) for colour in colours]
    items = [f"the number {number} in words" for number in range(60)] + [
        {"text": f"number {number}", "image": image} if number % 2 else {"image": image}
        for number, image in enumerate(images)
    ]
    truth = expected(items)

    def wire(item: str | dict) -> object:
        if isinstance(item, str):
            return item
        parts = [{"type": "image_url", "image_url": {"url": data_url(item["image"])}}]
        parts += [{"type": "text", "text": item["text"]}] if "text" in item else []
        return [{"role": "user", "content": parts}]

    wired = [wire(item) for item in items]
    stop = threading.Event()

    def disconnect(address: str) -> None:
        """Send requests and disconnect before the answer or in the middle of the body."""
        host, port = address.removeprefix("http://").removesuffix("/v1").split(":")
        body = json.dumps({"input": ["disconnected"] * 20}).encode()
        head = f"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        while not stop.is_set():
            with socket.create_connection((host, int(port))) as connection:
                connection.sendall(head + body[: rng.choice([5, len(body)])])
            time.sleep(0.05)

    def client(seed: int, address: str) -> int:
        client_rng = random.Random(seed)
        answered = 0
        with httpx2.Client(timeout=120) as http:
            for _ in range(6):
                if client_rng.random() < 0.2:
                    bad = client_rng.choice(
                        [{"input": "far too long " * 1000}, {"input": [1]}, {"input": ["a", None]}]
                    )
                    assert http.post(f"{address}/embeddings", json=bad).status_code == 400
                chosen = client_rng.sample(range(len(items)), client_rng.randint(1, 4))
                answer = http.post(f"{address}/embeddings", json={"input": [wired[number] for number in chosen]})
                assert answer.status_code == 200, answer.text
                vectors = [entry["embedding"] for entry in answer.json()["data"]]
                np.testing.assert_allclose(vectors, truth[chosen], atol=1e-5)
                answered += len(chosen)
        return answered

    with started() as (_, address):
        disconnecting = threading.Thread(target=disconnect, args=(address,))
        disconnecting.start()
        try:
            with ThreadPoolExecutor(64) as threads:
                answered = sum(threads.map(lambda seed: client(seed, address), range(64)))
        finally:
            stop.set()
            disconnecting.join()
        text = httpx2.get(address.replace("/v1", "/metrics")).text
    counted = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(counted["unime_items_total"]) >= answered > 64 * 6
    assert float(counted['unime_requests_total{status="499"}']) > 0
    assert 'unime_requests_total{status="500"}' not in counted
    # Requests were batched: an average batch is larger than the largest request.
    assert float(counted["unime_batch_items_sum"]) > 4 * float(counted["unime_batch_items_count"])


@pytest.mark.slow
def test_sigterm_finishes_accepted_requests_and_refuses_new_ones(expected: Callable[..., np.ndarray]):
    with started("--max-wait-ms", 8000) as (process, address), ThreadPoolExecutor(4) as threads:
        texts = [[f"accepted {number}"] for number in range(4)]

        def request(inputs: list[str]) -> httpx2.Response:
            return httpx2.post(f"{address}/embeddings", json={"input": inputs}, timeout=60)

        accepted = [threads.submit(request, inputs) for inputs in texts]
        metrics = address.replace("/v1", "/metrics")
        while "unime_items_waiting 4.0" not in httpx2.get(metrics).text:  # they wait 8 seconds for more items
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        with pytest.raises(httpx2.ConnectError):
            while True:
                httpx2.get(address.replace("/v1", "/health"))
        assert not any(future.done() for future in accepted)
        for inputs, answer in zip(texts, [future.result() for future in accepted], strict=True):
            vectors = [entry["embedding"] for entry in answer.json()["data"]]
            np.testing.assert_allclose(vectors, expected(inputs), atol=1e-5)
        assert process.wait(timeout=10) in (0, -signal.SIGTERM)
        log = process.stdout.read()
        assert "Traceback" not in log and "accepted" not in log


@pytest.mark.slow
def test_the_options_reach_the_server():
    options = ["--max-items", 2, "--max-characters", 9, "--max-requests", 1, "--api-key", "k", "--dtype", "bfloat16"]
    with started(*options) as (_, address):
        http = httpx2.Client(base_url=address, headers={"Authorization": "Bearer k"})
        assert httpx2.get(f"{address}/models").status_code == 401
        assert http.get("/models").json()["data"][0]["id"] == "unime-tiny"
        for body, reason in [
            ({"input": ["a"] * 3}, "the limit is 2"),
            ({"input": "a" * 10}, "the limit is 9"),
        ]:
            assert reason in http.post("/embeddings", json=body).json()["error"]["message"]
        vector = http.post("/embeddings", json={"input": "a"}).json()["data"][0]["embedding"]
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-4)
