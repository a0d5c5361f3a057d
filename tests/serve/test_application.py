"""The answers of the application, called in process."""

import asyncio
import base64
import json
import logging
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import httpx2
import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from transformers import ProcessorMixin

from unime import UniMEModel
from unime.checkpoint import PROMPTS
from unime.cpu_prepacking_unime import can_prepack
from unime.serve.application import create_app
from unime.serve.embedder import Embedder, Task
from unime.serve.limits import Limits
from unime.serve.protocol import EmbeddingRequest
from unime.serve.service import EmbeddingService


Expected = Callable[..., np.ndarray]
Make = Callable[..., EmbeddingService]


def embed(client: TestClient, **body: object) -> np.ndarray:
    response = client.post("/v1/embeddings", json=body)
    assert response.status_code == 200, response.text
    data = response.json()["data"]
    assert [entry["index"] for entry in data] == list(range(len(data)))
    return np.array([entry["embedding"] for entry in data], dtype=np.float32)


def error_message(client: TestClient, status: int, **body: object) -> str:
    """Return the message of an error, which has OpenAI's format."""
    response = client.post("/v1/embeddings", json=body)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error["message"]


def conversation(text: str | None, *urls: str) -> list[dict]:
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": parts + ([] if text is None else [{"type": "text", "text": text}])}]


def test_every_kind_of_item_has_the_same_embedding_as_encode(
    client: TestClient, expected: Expected, image: Image.Image, data_url: Callable[..., str]
):
    url, other = data_url(image), data_url(image.rotate(180))
    instructed = [{"role": "system", "content": "Represent the given image."}, *conversation(None, url)]
    items = {
        "a text": "a text",
        "an image": {"image": image},
        "both": {"text": "with a hat", "image": image},
        "two images": {"text": "and", "image": [image, image.rotate(180)]},
        "an instruction": {"image": image, "instruction": "Represent the given image."},
        "a control token": "an <image> of <|end|>",
    }
    inputs = [
        "a text",
        conversation(None, url),
        conversation("with a hat", url),
        conversation("and", url, other),
        instructed,
        "an <image> of <|end|>",
    ]
    vectors = embed(client, model="unime-tiny", input=inputs)
    np.testing.assert_allclose(vectors, expected(list(items.values())), atol=1e-5)
    np.testing.assert_allclose(embed(client, messages=instructed), vectors[4:5], atol=1e-5)
    np.testing.assert_allclose(embed(client, messages=[inputs[1], instructed]), vectors[[1, 4]], atol=1e-5)


def test_interleaved_conversations_have_the_same_embeddings_as_encode(
    client: TestClient, expected: Expected, image: Image.Image, data_url: Callable[..., str]
):
    other = image.rotate(180)
    contents = [["The cat", image, "sits on", other], [other, "sits on", image], ["Which?", image, other, ""]]

    def wire(part: str | Image.Image) -> dict:
        if isinstance(part, str):
            return {"type": "text", "text": part}
        return {"type": "image_url", "image_url": {"url": data_url(part)}}

    conversations = [[{"role": "user", "content": [wire(part) for part in content]}] for content in contents]
    system = {"role": "system", "content": "Find it:"}
    conversations += [[system, *conversation] for conversation in conversations]
    items = [{"content": content, "instruction": text} for text in (None, "Find it:") for content in contents]
    np.testing.assert_allclose(embed(client, messages=conversations), expected(items), atol=1e-6)

    # All images after the only text: the form of an item with `text` and `image`.
    both = [{"role": "user", "content": [wire("Which?"), wire(image), wire(other)]}]
    item = {"text": "Which?", "image": [image, other]}
    np.testing.assert_allclose(embed(client, messages=both), expected([item]), atol=1e-6)


def test_long_interleaved_texts_are_refused_or_truncated_on_request(
    client: TestClient, expected: Expected, image: Image.Image, data_url: Callable[..., str]
):
    text = "words upon words " * 600
    parts = [{"type": "image_url", "image_url": {"url": data_url(image)}}, {"type": "text", "text": text}]
    messages = [{"role": "user", "content": [*parts[::-1], *parts]}]
    assert error_message(client, 400, messages=messages).startswith("item 0: it has ")
    truncated = embed(client, messages=messages, truncate_prompt_tokens=-1)
    np.testing.assert_allclose(truncated, expected([[text, image, image, text]]), atol=1e-6)


def test_base64_and_dimensions_are_supported(client: TestClient, expected: Expected):
    short = embed(client, input=["a cat"], dimensions=48)
    np.testing.assert_allclose(short, expected(["a cat"], truncate_dim=48), atol=1e-5)
    body = {"input": ["a cat"], "dimensions": 48, "encoding_format": "base64"}
    text = client.post("/v1/embeddings", json=body).json()["data"][0]["embedding"]
    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(text), "<f4"), short[0])
    assert "between 1 and 192, got 193" in error_message(client, 400, input="a", dimensions=193)


def test_truncation_that_the_model_was_not_trained_for_is_warned_about(
    fresh_embedder: Embedder, caplog: pytest.LogCaptureFixture
):
    fresh_embedder.model.config.matryoshka_dimensions = [48, 192]
    with TestClient(create_app(EmbeddingService("tiny", fresh_embedder, Limits(), max_wait=0))) as client:
        for dimensions, warned in [(64, True), (64, True), (48, False), (192, False), (None, False)]:
            answer = client.post("/v1/embeddings", json={"input": "a cat", "dimensions": dimensions}).json()
            assert ("warning" in answer) == warned
            if warned:
                assert "does not list 64 among the dimensions that it was trained for (48, 192)" in answer["warning"]
        assert client.get("/v1/models/tiny").json()["matryoshka_dimensions"] == [48, 192]
    (record,) = caplog.records
    assert "does not list 64" in record.getMessage()


def test_usage_counts_the_tokens_that_the_model_read(client: TestClient, loaded: tuple[UniMEModel, ProcessorMixin]):
    _, processor = loaded
    rendered = processor.apply_chat_template([{"role": "user", "content": "a cat"}], tokenize=False)
    tokens = len(processor.tokenizer(rendered)["input_ids"])
    one = client.post("/v1/embeddings", json={"input": "a cat"}).json()
    two = client.post("/v1/embeddings", json={"input": ["a cat", "a cat"]}).json()
    assert one["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    assert two["usage"]["total_tokens"] == 2 * tokens


def test_long_texts_are_refused_or_truncated_on_request(client: TestClient, expected: Expected):
    text = "words upon words " * 1000
    assert error_message(client, 400, input=["a", text]).startswith("item 1: it has ")
    truncated = embed(client, input=["a", text], truncate_prompt_tokens=-1)
    np.testing.assert_allclose(truncated, expected(["a", text]), atol=1e-5)


def test_a_request_larger_than_a_batch_takes_several_batches(service: Make, expected: Expected):
    texts = [f"number {number}" for number in range(10)]
    with TestClient(create_app(service(batch_items=4, max_wait=0))) as client:
        np.testing.assert_allclose(embed(client, input=texts), expected(texts), atol=1e-5)
        assert 'unime_batch_items_bucket{le="2.0"} 2.0' in client.get("/metrics").text  # the warm-up and the last two
        assert 'unime_batch_items_bucket{le="4.0"} 4.0' in client.get("/metrics").text
        texts[9] = "far too long " * 1000
        assert error_message(client, 400, input=texts).startswith("item 9: ")


def test_requests_beyond_a_limit_are_refused_with_the_limit(
    service: Make, image: Image.Image, data_url: Callable[..., str], client: TestClient
):
    url = data_url(image)  # 1536 pixels
    limits = Limits(max_items=2, max_body_mb=0.05, max_characters=50, max_megapixels=0.002)
    with TestClient(create_app(service(limits, max_wait=0))) as small:
        assert "has 3 items, the limit is 2" in error_message(small, 400, input=["a"] * 3)
        assert "51 characters, the limit is 50" in error_message(small, 400, input="a" * 51)
        assert "0.05 MB, the limit" in error_message(small, 413, input="a" * 50_000)
        chunks = (b" " * 10_000 for _ in range(6))  # without a declared length
        assert small.post("/v1/embeddings", content=chunks).status_code == 413
        assert embed(small, messages=conversation(None, url)).shape == (1, 192)
        assert "0.0 megapixels together, the limit is 0.002" in error_message(
            small, 400, messages=conversation(None, url, url)
        )
    remote = conversation(None, "https://example.org/cat.png")
    assert "item 1: this server fetches no images" in error_message(client, 400, input=["a", remote])


def test_remote_images_are_fetched_only_from_public_addresses(service: Make):
    with TestClient(create_app(service(max_wait=0, allow_remote_images=True))) as client:
        private = conversation(None, "http://127.0.0.1:8000/cat.png")
        assert "item 0: the image URL is not on the public" in error_message(client, 400, messages=private)


@asynccontextmanager
async def open_to(service: EmbeddingService) -> AsyncIterator[httpx2.AsyncClient]:
    """Run a service that, once warm, waits for full batches; closing it ends the waiting."""
    app = create_app(service)
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://unime") as http:
        async with app.router.lifespan_context(app):
            service.batcher.max_wait = 600
            yield http


def test_weights_are_prepacked_while_the_server_runs(fresh_embedder: Embedder):
    model = fresh_embedder.model
    expected = model.encode("a cat", fresh_embedder.processor)

    def num_prepacked() -> int:
        return sum("forward" in vars(module) for module in model.modules())

    with TestClient(create_app(EmbeddingService("tiny", fresh_embedder, Limits(), max_wait=0))) as client:
        assert bool(num_prepacked()) == can_prepack(model)
        np.testing.assert_allclose(embed(client, input=["a cat"])[0], expected, atol=1e-6)
    assert num_prepacked() == 0
    np.testing.assert_array_equal(model.encode("a cat", fresh_embedder.processor), expected)


def test_a_full_server_answers_429_with_retry_after(service: Make):
    async def main() -> list[httpx2.Response]:
        full = service(Limits(max_requests=2), batch_items=3, max_wait=0)
        async with open_to(full) as http:
            waiting = [asyncio.create_task(http.post("/v1/embeddings", json={"input": "a"})) for _ in range(2)]
            while full.batcher.waiting < 2:
                await asyncio.sleep(0.01)
            refused = await http.post("/v1/embeddings", json={"input": "a"})
        return [*await asyncio.gather(*waiting), refused]

    first, second, third = asyncio.run(main())
    assert (first.status_code, second.status_code, third.status_code) == (200, 200, 429)
    assert third.headers["retry-after"] == "1"
    assert third.json()["error"]["code"] == "rate_limit_exceeded"


def test_concurrent_requests_share_a_batch_and_a_bad_item_fails_only_its_own_request(
    service: Make, expected: Expected
):
    tested = service(batch_items=5, max_wait=0)
    bodies = [["a cat", "a dog"], ["far too long " * 1000], ["a hat"], ["a sun"]]

    async def main() -> list[httpx2.Response]:
        async with open_to(tested) as http:
            return await asyncio.gather(*(http.post("/v1/embeddings", json={"input": texts}) for texts in bodies))

    answers = asyncio.run(main())
    assert [answer.status_code for answer in answers] == [200, 400, 200, 200]
    assert b"unime_batch_items_count 2.0" in tested.metrics.text()  # the warm-up, and all four requests at once
    for texts, answer in zip(bodies, answers, strict=True):
        if answer.status_code == 200:
            vectors = [entry["embedding"] for entry in answer.json()["data"]]
            np.testing.assert_allclose(vectors, expected(texts), atol=1e-5)


def test_the_items_of_a_disconnected_client_are_not_computed(service: Make):
    tested = service(batch_items=64, max_wait=0)
    sent: list[dict] = []

    async def main() -> None:
        scope = {"type": "http", "method": "POST", "path": "/v1/embeddings", "headers": [], "query_string": b""}
        disconnect = {"type": "http.disconnect"}
        whole = {"type": "http.request", "body": b'{"input": "a"}'}
        part = {"type": "http.request", "body": b'{"inp', "more_body": True}
        messages = iter([whole, disconnect, part, disconnect])

        async def receive() -> dict:
            message = next(messages)
            while (
                message is disconnect and sent == [] and tested.batcher.waiting < 1
            ):  # it disconnects once it is queued
                await asyncio.sleep(0.01)
            return message

        async def send(message: dict) -> None:
            sent.append(message)

        app = create_app(tested)
        async with app.router.lifespan_context(app):
            tested.batcher.max_wait = 600
            for _ in range(2):  # once while it waits for its batch, once while it sends its body
                await app(dict(scope), receive, send)

    asyncio.run(main())
    assert [message["status"] for message in sent if "status" in message] == [499, 499]
    assert b"unime_batch_items_count 1.0" in tested.metrics.text()  # the warm-up alone


def test_the_key_is_checked_before_the_body_is_read(service: Make):
    with TestClient(create_app(service(max_wait=0), api_key="sésame")) as client:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "sésame".encode("latin-1")}):
            response = client.post("/v1/embeddings", content=b"not JSON", headers=headers)
            assert response.status_code == 401
            assert response.json()["error"]["code"] == "invalid_api_key"
            assert client.get("/v1/models", headers=headers).status_code == 401
        assert client.get("/health").status_code == client.get("/metrics").status_code == 200


def test_an_internal_error_reveals_nothing_to_the_client_and_no_inputs_to_the_log(
    fresh_embedder: Embedder, caplog: pytest.LogCaptureFixture
):
    service = EmbeddingService("unime-tiny", fresh_embedder, Limits(), max_wait=0)
    with TestClient(create_app(service)) as client, caplog.at_level(logging.DEBUG):
        fresh_embedder.model.backbone.to("meta")  # its weights are gone
        message = error_message(client, 500, input="my secret words")
        assert message == "internal error: the server failed on this request"
        assert "modeling_unime.py" in caplog.text

        def quoting(tasks: list[Task]) -> list:
            raise ValueError(f"cannot embed {tasks[0].item}")

        service.embedder = quoting
        assert error_message(client, 500, input="my secret words") == message
    assert "quoting" in caplog.text
    assert "secret" not in caplog.text


def test_an_internal_error_is_never_blamed_on_the_client(
    fresh_embedder: Embedder, image: Image.Image, data_url: Callable[..., str]
):
    with TestClient(create_app(EmbeddingService("unime-tiny", fresh_embedder, Limits(), max_wait=0))) as client:
        fresh_embedder.model.backbone.config.image_token_id += 1  # the model looks for images elsewhere: a ValueError
        ((error,),) = (results.values() for results in fresh_embedder([Task({"image": image})]))
        assert type(error) is ValueError
        assert "the server failed" in error_message(client, 500, messages=conversation(None, data_url(image)))


def test_a_non_finite_embedding_is_never_returned(fresh_embedder: Embedder):
    with TestClient(create_app(EmbeddingService("unime-tiny", fresh_embedder, Limits(), max_wait=0))) as client:
        fresh_embedder.model.get_input_embeddings().weight.data.fill_(float("nan"))
        for encoding in ("float", "base64"):
            assert "the server failed" in error_message(client, 500, input="a", encoding_format=encoding)


def test_the_model_is_described_under_its_id(loaded: tuple[UniMEModel, ProcessorMixin]):
    service = EmbeddingService("someone/unime-tiny", Embedder(*loaded), Limits(), model_fingerprint="1a2b")
    with TestClient(create_app(service)) as client:
        (model,) = client.get("/v1/models").json()["data"]
        assert client.get("/v1/models/someone/unime-tiny").json() == model
        assert client.get("/v1/models/someone%2Funime-tiny").json() == model  # as OpenAI's client writes it
        assert client.get("/v1/models/gpt").json()["error"]["code"] == "model_not_found"
    description = {
        "id": "someone/unime-tiny",
        "dimensions": 192,
        "matryoshka_dimensions": None,
        "pooling": "last",
        "prompts": PROMPTS,
        "fingerprint": "1a2b",
    }
    assert model.items() >= description.items()


def test_the_page_of_the_api_names_paths_and_fields_and_loads_nothing(client: TestClient):
    page = client.get("/docs")
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
    paths = client.get("/openapi.json").json()["paths"]
    for name in (*paths, *EmbeddingRequest.model_fields):
        assert f"{name}</code>" in page.text
    assert not re.search(r"<(script|link|img|iframe)|url\(|@import", page.text)


def test_web_pages_of_allowed_origins_may_call_the_server(service: Make):
    origin = "https://example.org"
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    with TestClient(create_app(service(max_wait=0), "key", [origin])) as client:
        for other, allowed in [(origin, origin), ("https://elsewhere.org", None)]:
            preflight = client.options("/v1/embeddings", headers={"Origin": other} | asked)
            assert preflight.headers.get("access-control-allow-origin") == allowed
            refused = client.post("/v1/embeddings", json={"input": "a"}, headers={"Origin": other})
            assert refused.status_code == 401  # which the page may read
            assert refused.headers.get("access-control-allow-origin") == allowed
    with TestClient(create_app(service(max_wait=0))) as client:
        answer = client.get("/v1/models", headers={"Origin": origin})
        assert "access-control-allow-origin" not in answer.headers


def test_models_health_metrics_and_unknown_paths_are_answered(client: TestClient):
    assert client.get("/health").json() == {"status": "ok"}
    before = client.get("/metrics").text
    embed(client, input=["a", "b"])
    after = client.get("/metrics").text

    def value(text: str, name: str) -> float:
        return next(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name + " "))

    assert value(after, "unime_items_total") == value(before, "unime_items_total") + 2
    assert value(after, "unime_tokens_total") > value(before, "unime_tokens_total")
    assert value(after, "unime_requests_in_progress") == value(after, "unime_items_waiting") == 0
    assert client.get("/v2").json()["error"]["message"] == "GET /v2: Not Found"
    assert client.get("/v1/embeddings").status_code == 405
    assert "no model 'x' here" in error_message(client, 404, input="a", model="x")
    body = client.get("/openapi.json").json()["paths"]["/v1/embeddings"]["post"]["requestBody"]
    assert "dimensions" in json.dumps(body)
