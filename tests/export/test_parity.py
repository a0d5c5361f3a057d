"""`recipes/parity.py` against HTTP servers of a real model, of which one agrees and the others do not."""

import json
import socket
import subprocess
import sys
import threading
import time
from base64 import b64decode
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
import pytest
from PIL import Image
from transformers import ProcessorMixin

from unime import UniMEModel


ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT = str(ROOT / "checkpoints" / "unime-tiny")


def item_of(conversation: list[dict[str, Any]]) -> dict[str, Any]:
    """Convert a conversation of the protocol to an item."""
    item: dict[str, Any] = {}
    for message in conversation:
        for part in message["content"]:
            if part["type"] == "image_url":
                file = b64decode(part["image_url"]["url"].removeprefix("data:image/png;base64,"), validate=True)
                item.setdefault("image", []).append(Image.open(BytesIO(file)))
            else:
                item["instruction" if message["role"] == "system" else "text"] = part["text"]
    return item


@pytest.fixture(scope="module")
def serve(tiny: tuple[UniMEModel, ProcessorMixin]) -> Iterator[Callable[[str], str]]:
    """Return a function that starts a server of a kind and returns its address.

    `engine` renders conversations and reads `input` as it is, like vLLM; `flipped` turns images upside down; `short`
    omits a dimension.
    """
    model, processor = tiny
    servers = []

    def embed(kind: str, body: dict[str, Any]) -> np.ndarray:
        if "input" in body:
            inputs = processor.tokenizer([body["input"]], return_tensors="pt")
            return model(inputs["input_ids"], inputs["attention_mask"]).embeddings[0].detach().numpy()
        item = item_of(body["messages"])
        if kind == "flipped" and "image" in item:
            item["image"] = [image.rotate(180) for image in item["image"]]
        vector = 2 * model.encode(item, processor)  # not a unit vector, which the cosine must not notice
        return vector[:-1] if kind == "short" else vector

    def start(kind: str) -> str:
        class Handler(BaseHTTPRequestHandler):
            def answer(self, content: dict[str, Any], status: int = 200) -> None:
                data = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def do_GET(self) -> None:
                self.answer({"data": [{"id": "tiny"}]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if body["model"] != "tiny":
                    self.answer({"error": {"message": "no such model"}}, 404)
                else:
                    self.answer({"data": [{"embedding": embed(kind, body).tolist()}]})

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}/v1"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def recipe(script: Callable[[Path], ModuleType]) -> ModuleType:
    """Return the script as a module."""
    return script(ROOT / "recipes" / "parity.py")


def parity(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the script as a subprocess."""
    command = [sys.executable, "recipes/parity.py", "--url", url, "--model", CHECKPOINT, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_an_engine_that_renders_conversations_agrees_in_every_modality(
    serve: Callable[[str], str], recipe: ModuleType
) -> None:
    result = recipe.compare(recipe.ScriptArguments(serve("engine"), CHECKPOINT))
    kinds = ["text", "image", "both"]
    rows = [name for kind in kinds for name in (kind, f"{kind}, instruction")]
    assert {name: row["items"] for name, row in result["rows"].items()} == dict.fromkeys(rows, 5) | {
        "several images": 2,
        "long text": 2,
    }
    assert all(row["least"] > 1 - 1e-5 for row in result["rows"].values())
    assert result["equal"] and result["served"] == "tiny"
    assert recipe.table(result).count("1.000000") == 16 and "below" not in recipe.table(result)


def test_a_fault_shows_only_in_the_rows_that_it_affects(serve: Callable[[str], str], recipe: ModuleType) -> None:
    result = recipe.compare(recipe.ScriptArguments(serve("flipped"), CHECKPOINT))
    least = {name: row["least"] for name, row in result["rows"].items()}
    assert least["text"] > 0.9999 and least["image"] < 0.999 and least["both"] < 0.999 and not result["equal"]
    assert least["several images"] < 0.999
    assert recipe.table(result).count("below the threshold") == 5 and "the embeddings differ" in recipe.table(result)


def test_bare_text_differs_from_the_prompt_and_rendered_text_does_not(
    serve: Callable[[str], str], recipe: ModuleType
) -> None:
    bare, rendered = (
        recipe.compare(recipe.ScriptArguments(serve("engine"), CHECKPOINT, form=form))
        for form in ("input", "rendered")
    )
    assert bare["rows"].keys() == {"text", "long text"} and bare["rows"]["text"]["mean"] < 0.9 and not bare["equal"]
    assert rendered["rows"].keys() == {"text", "text, instruction", "long text"} and rendered["equal"]


def test_the_comparison_ignores_the_length_of_a_vector_but_not_its_direction(recipe: ModuleType) -> None:
    ours = np.array([[0.6, 0.8], [1.0, 0.0]])
    assert recipe.cosines(ours, [np.array([3.0, 4.0]), np.array([0.0, 2.0])]).tolist() == pytest.approx([1, 0])


@pytest.mark.slow
def test_the_exit_status_says_whether_the_embeddings_agree(serve: Callable[[str], str]) -> None:
    run = parity(serve("engine"))
    assert run.returncode == 0 and "the embeddings are equal" in run.stdout, run.stdout + run.stderr
    run = parity(serve("engine"), "--form", "input", "--json")
    assert run.returncode == 1 and '"equal": false' in run.stdout, run.stdout + run.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "arguments", "sentence"),
    [
        ("engine", ["--served", "large"], "/v1/embeddings refused the request with status 404"),
        ("short", [], "embeddings have 192 dimensions, but the server's have 191"),
    ],
)
def test_a_server_of_another_model_is_refused_in_one_sentence(
    kind: str, arguments: list[str], sentence: str, serve: Callable[[str], str]
) -> None:
    run = parity(serve(kind), *arguments)
    assert run.returncode == 2 and run.stderr.splitlines()[-1].startswith("parity: ") and sentence in run.stderr


@pytest.mark.slow
def test_an_unreachable_server_is_reported_in_one_sentence() -> None:
    run = parity("http://127.0.0.1:9/v1")
    assert run.returncode == 2 and run.stderr.splitlines()[-1].endswith("check that the server is up")
    assert run.stderr.count("parity: ") == 1


@pytest.mark.slow
@pytest.mark.parametrize("form", ["chat", "input"])
def test_unime_serve_agrees_for_conversations_and_for_bare_text(form: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    start = "import typer; from unime.cli.serve import serve; typer.run(serve)"
    command = [sys.executable, "-c", start, "--model", CHECKPOINT, "--port", address.rpartition(":")[2]]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            for _ in range(240):
                try:
                    urlopen(f"{address}/health", timeout=5).close()
                    break
                except URLError:
                    assert server.poll() is None, "the server stopped"
                    time.sleep(0.5)
            run = parity(f"{address}/v1", "--form", form)
            assert run.returncode == 0 and "the embeddings are equal" in run.stdout, run.stdout + run.stderr
        finally:
            server.terminate()
