"""Fixtures of the bad-input tests: the committed model, a server that runs it, and error messages."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from transformers import ProcessorMixin

from unime import UniMEModel, load_model
from unime.serve.application import create_app
from unime.serve.embedder import Embedder
from unime.serve.limits import Limits
from unime.serve.service import EmbeddingService


TINY = str(Path(__file__).resolve().parents[2] / "checkpoints" / "unime-tiny")


@pytest.fixture(scope="session")
def tiny() -> tuple[UniMEModel, ProcessorMixin]:
    """Return the committed model and its processor; tests must not change them."""
    return load_model(TINY, dtype="float32")


@pytest.fixture(scope="session")
def encode(tiny: tuple[UniMEModel, ProcessorMixin]) -> Callable[[Any], np.ndarray]:
    """Return a function that embeds items with the committed model."""
    model, processor = tiny
    return lambda items: model.encode(items, processor)


@pytest.fixture(scope="session")
def error_message() -> Callable[..., str]:
    """Return a function that returns the one-line error message of a call."""

    def message_of(call: Callable[[], Any], error_type: type[Exception] = ValueError) -> str:
        with pytest.raises(error_type) as caught:
            call()
        message = str(caught.value)
        assert message and "\n" not in message and "Traceback" not in message
        return message

    return message_of


@pytest.fixture(scope="session")
def ask(tiny: tuple[UniMEModel, ProcessorMixin]) -> Iterator[Callable[[Any], np.ndarray | str]]:
    """Return a function that requests one item from the server: its embedding, or the error message."""
    with TestClient(create_app(EmbeddingService("unime-tiny", Embedder(*tiny), Limits(), max_wait=0))) as client:

        def embed(item: Any) -> np.ndarray | str:
            answer = client.post("/v1/embeddings", json={"input": [item]})
            if answer.status_code == 200:
                (entry,) = answer.json()["data"]
                return np.array(entry["embedding"], np.float32)
            assert answer.status_code == 400, answer.text
            message = answer.json()["error"]["message"]
            assert "\n" not in message
            return message

        yield embed
