"""Fixtures: the committed model behind the application of the server, without a network."""

import base64
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from transformers import ProcessorMixin

from unime import UniMEModel, load_model
from unime.serve.application import create_app
from unime.serve.embedder import Embedder
from unime.serve.limits import Limits
from unime.serve.service import EmbeddingService


TINY = Path(__file__).resolve().parents[2] / "checkpoints" / "unime-tiny"


@pytest.fixture(scope="session")
def loaded() -> tuple[UniMEModel, ProcessorMixin]:
    return load_model(str(TINY), dtype="float32")


@pytest.fixture
def fresh_embedder() -> Embedder:
    """Return an embedder that a test may modify."""
    return Embedder(*load_model(str(TINY), dtype="float32"))


@pytest.fixture(scope="session")
def expected(loaded: tuple[UniMEModel, ProcessorMixin]) -> Callable[..., np.ndarray]:
    """Return a function that embeds items with `encode`."""
    model, processor = loaded
    return lambda item, **options: model.encode(item, processor, **options)


@pytest.fixture(scope="session")
def service(loaded: tuple[UniMEModel, ProcessorMixin]) -> Callable[..., EmbeddingService]:
    """Return a function that makes a service of the committed model with some settings changed."""

    def make(limits: Limits | None = None, **settings: Any) -> EmbeddingService:
        return EmbeddingService("unime-tiny", Embedder(*loaded), limits or Limits(), **settings)

    return make


@pytest.fixture(scope="module")
def client(service: Callable[..., EmbeddingService]) -> Iterator[TestClient]:
    with TestClient(create_app(service(max_wait=0))) as client:
        yield client


@pytest.fixture(scope="session")
def image() -> Image.Image:
    """Return an image with a different colour in every pixel."""
    ramp = np.arange(48 * 32, dtype=np.uint32)
    pixels = np.stack([ramp % 256, ramp // 8 % 256, (ramp * 37) % 256], axis=1).reshape(32, 48, 3)
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.fixture(scope="session")
def data_url() -> Callable[..., str]:
    """Return a function that encodes an image as a data URL."""

    def write(image: Image.Image, kind: str = "PNG", **options: Any) -> str:
        buffer = BytesIO()
        image.save(buffer, kind, **options)
        return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"

    return write
