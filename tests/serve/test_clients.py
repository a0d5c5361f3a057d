"""OpenAI's client and others over a real socket."""

import base64
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import openai
import pytest
import uvicorn
from PIL import Image

from unime.serve.application import create_app
from unime.serve.service import EmbeddingService


Expected = Callable[..., np.ndarray]


@pytest.fixture(scope="module")
def address(service: Callable[..., EmbeddingService]) -> Iterator[str]:
    """Serve on a real socket, from a thread."""
    app = create_app(service(max_wait=0.02), api_key="key")
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    server.should_exit = True
    thread.join()


def test_openais_client_works(address: str, expected: Expected):
    client = openai.OpenAI(base_url=address, api_key="key", max_retries=0)
    model = client.models.list().data[0].id
    texts = ["a cat", "Здравствуйте", "a " * 200]
    for encoding in ({}, {"encoding_format": "float"}, {"encoding_format": "base64"}):  # its default is base64
        answer = client.embeddings.create(model=model, input=texts, dimensions=64, **encoding)
        vectors = [entry.embedding for entry in answer.data]
        if encoding.get("encoding_format") == "base64":
            vectors = [np.frombuffer(base64.b64decode(vector), "<f4") for vector in vectors]
        np.testing.assert_allclose(vectors, expected(texts, truncate_dim=64), atol=1e-5)
    assert answer.usage.total_tokens > 200
    with pytest.raises(openai.NotFoundError, match="no model 'gpt'"):
        client.embeddings.create(model="gpt", input="a")
    with pytest.raises(openai.BadRequestError, match="token ids"):
        client.embeddings.create(model=model, input=[[1, 2, 3]])
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=address, api_key="wrong").embeddings.create(model=model, input="a")


def test_openais_client_sends_images_in_vllms_format(
    address: str, expected: Expected, image: Image.Image, data_url: Callable[..., str]
):
    client = openai.OpenAI(base_url=address, api_key="key", max_retries=0)
    parts = [{"type": "image_url", "image_url": {"url": data_url(image)}}, {"type": "text", "text": "with a hat"}]
    conversation = [{"role": "user", "content": parts}]
    answer = client.post(
        "/embeddings",
        body={"model": "unime-tiny", "messages": conversation, "encoding_format": "float"},
        cast_to=openai.types.CreateEmbeddingResponse,
    )
    vectors = [entry.embedding for entry in answer.data]
    np.testing.assert_allclose(vectors, expected([{"text": "with a hat", "image": image}]), atol=1e-5)


def test_a_body_that_is_too_large_gets_an_answer(address: str):
    client = openai.OpenAI(base_url=address, api_key="key", max_retries=0)
    with pytest.raises(openai.APIStatusError, match="16 MB, the limit") as caught:
        client.embeddings.create(model="unime-tiny", input="a" * 17_000_000)
    assert caught.value.status_code == 413


def test_a_body_with_a_declared_size_is_refused_before_it_is_sent(address: str):
    host, port = address.removeprefix("http://").removesuffix("/v1").split(":")
    head = "POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer key\r\nContent-Length: 17000000\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(head.encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")


def test_concurrent_clients_each_get_their_own_vectors(address: str, expected: Expected):
    client = openai.OpenAI(base_url=address, api_key="key", max_retries=0)
    texts = [[f"client {number} says {word}" for word in ("yes", "no")[: 1 + number % 2]] for number in range(16)]
    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda inputs: client.embeddings.create(model="unime-tiny", input=inputs), texts))
    for inputs, answer in zip(texts, answers, strict=True):
        np.testing.assert_allclose([entry.embedding for entry in answer.data], expected(inputs), atol=1e-5)
