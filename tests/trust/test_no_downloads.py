"""Nothing connects to another machine unless the user gives a Hub id."""

import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import huggingface_hub
import pytest
from fastapi.testclient import TestClient
from peft import LoraConfig
from typer.testing import CliRunner

from unime import load_model, save_checkpoint
from unime.cli.main import app
from unime.data.teacher import PACKAGED_TEACHER, load_teacher, precompute_teacher
from unime.openmoji.dataset import openmoji_rows
from unime.serve.application import create_app
from unime.serve.embedder import Embedder
from unime.serve.limits import Limits
from unime.serve.service import EmbeddingService
from unime.trainers import (
    ContrastiveConfig,
    ContrastiveTrainer,
    DistillationConfig,
    DistillationTrainer,
    merge_checkpoint,
)


TINY = str(Path(__file__).resolve().parents[2] / "checkpoints" / "unime-tiny")
attempts: list[str] | None = None


def refuse_connections(event: str, arguments: tuple) -> None:
    """Refuse and record name look-ups and connections during a test; Python calls this hook for every socket."""
    if attempts is None or event not in ("socket.getaddrinfo", "socket.connect", "socket.sendto"):
        return
    target = arguments[0] if event == "socket.getaddrinfo" else arguments[1]
    host = target[0] if isinstance(target, tuple) else target
    if isinstance(target, (str, bytes)) and event != "socket.getaddrinfo" or host in (None, "127.0.0.1", "localhost"):
        return  # a Unix socket or this machine
    attempts.append(f"{event} {host}")
    raise OSError(f"a test forbids {event} to {host}")


@pytest.fixture(autouse=True)
def no_connections() -> Iterator[None]:
    """Fail a test that tries to connect to another machine, without telling the libraries to stay offline."""
    global attempts
    assert not huggingface_hub.constants.HF_HUB_OFFLINE, "unset HF_HUB_OFFLINE: the Hub's client would not even try"
    attempts = []
    yield
    refused, attempts = attempts, None
    assert refused == []


@pytest.fixture(scope="module", autouse=True)
def audit_hook() -> None:
    sys.addaudithook(refuse_connections)  # until the process ends


def unime(*words: object) -> str:
    result = CliRunner().invoke(app, list(map(str, words)))
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


def test_the_audit_hook_notices_a_request_to_the_hub():
    with pytest.raises(Exception, match="a test forbids socket.getaddrinfo|offline|cannot|Cannot"):
        huggingface_hub.HfApi().model_info("org/name")
    assert attempts and attempts[0].startswith("socket.getaddrinfo")
    attempts.clear()


def test_commands_on_local_files_do_not_connect(tmp_path: Path):
    (tmp_path / "texts").mkdir()
    for name in "ab":
        (tmp_path / "texts" / f"{name}.txt").write_text(f"a text of {name}")
    unime("info", TINY)
    unime("embed", tmp_path / "texts", tmp_path / "vectors", "--model", TINY)
    unime("index", tmp_path / "texts", tmp_path / "index", "--model", TINY)
    assert "a.txt" in unime("search", tmp_path / "index", "a text of a", "--json")
    unime("export", "--model", TINY, "--output", tmp_path / "plain")
    unime("card", save_checkpoint(*load_model(TINY), tmp_path / "checkpoint"))


def test_the_model_of_an_index_is_not_downloaded_automatically(tmp_path: Path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("a text")
    unime("index", tmp_path / "texts", tmp_path / "index", "--model", TINY)
    record = tmp_path / "index" / "index.json"
    hostile = {"checkpoint": "stranger/model", "revision": "unknown"}
    record.write_text(json.dumps(json.loads(record.read_text()) | hostile))
    for words in (["search", tmp_path / "index", "a text"], ["index", tmp_path / "texts", tmp_path / "index"]):
        error = CliRunner().invoke(app, list(map(str, words))).exception
        assert str(error).startswith("the model stranger/model of ") and "is not downloaded automatically" in str(
            error
        )
        assert "\n" not in str(error)


def test_training_on_local_files_does_not_connect(tiny_model: Callable[[str], Path], tmp_path: Path):
    settings = {"per_device_train_batch_size": 4, "max_steps": 1, "report_to": "none", "use_cpu": True}
    model, processor = load_model(str(tiny_model("llava")))
    data = openmoji_rows("train", 8)
    lora = LoraConfig(r=2, target_modules=["q_proj"])
    args = ContrastiveConfig(str(tmp_path / "adapter"), **settings)
    trainer = ContrastiveTrainer(model, args, train_dataset=data, processing_class=processor, peft_config=lora)
    trainer.train()
    trainer.save_model()
    merge_checkpoint(str(tiny_model("llava")), tmp_path / "adapter", tmp_path / "merged")

    teacher = load_teacher(PACKAGED_TEACHER)

    texts = datasets.Dataset.from_dict({"text": [f"text {number}" for number in range(8)]})
    with_teacher = precompute_teacher(texts, teacher.encode, f"{PACKAGED_TEACHER} {tmp_path}")
    model, processor = load_model(str(tmp_path / "merged"))
    args = DistillationConfig(str(tmp_path / "distilled"), **settings)
    trainer = DistillationTrainer(model, args, train_dataset=with_teacher, processing_class=processor)
    trainer.train()
    trainer.save_model()


def test_the_server_does_not_fetch_image_urls_by_default():
    service = EmbeddingService("unime-tiny", Embedder(*load_model(TINY, dtype="float32")), Limits(), max_wait=0)
    with TestClient(create_app(service)) as client:
        part = {"type": "image_url", "image_url": {"url": "https://example.org/cat.png"}}
        body = {"messages": [{"role": "user", "content": [part]}]}
        answer = client.post("/v1/embeddings", json=body)
        assert (answer.status_code, "fetches no images" in answer.text) == (400, True)
        # FastAPI's pages make a browser fetch scripts from a CDN; /docs is a page of our own.
        assert client.get("/redoc").status_code == 404
        assert not re.search(r"<(script|link|img)|https?://(?!testserver)", client.get("/docs").text)
        assert client.get("/openapi.json").status_code == 200
