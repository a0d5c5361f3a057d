"""`/v1/rerank`: the order of documents, the forms of other servers, and refusals."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from unime.reranker import UniMEReranker
from unime.serve.application import create_app
from unime.serve.limits import Limits
from unime.serve.reranking_service import RerankService
from unime.serve.service import EmbeddingService


BACKBONE = str(Path(__file__).resolve().parents[2] / "checkpoints" / "tiny-backbone")
Make = Callable[..., EmbeddingService]


@pytest.fixture(scope="module")
def reranker() -> UniMEReranker:
    return UniMEReranker.from_pretrained(BACKBONE, dtype="float32")


@pytest.fixture(scope="module")
def client(service: Make, reranker: UniMEReranker) -> Iterator[TestClient]:
    embedding = service(Limits(max_items=4))
    reranking = RerankService("tiny-backbone", reranker.scores, embedding)
    with TestClient(create_app(embedding, api_key="secret", reranking=reranking)) as client:
        client.headers["authorization"] = "Bearer secret"
        yield client


def refusal(client: TestClient, status: int, **body: object) -> str:
    response = client.post("/v1/rerank", json=body)
    assert response.status_code == status, response.text
    return response.json()["error"]["message"]


def test_documents_of_every_form_are_ordered_by_their_scores(
    client: TestClient, reranker: UniMEReranker, image: Image.Image, data_url: Callable[..., str]
):
    url = data_url(image)
    picked = {"type": "image_url", "image_url": {"url": url}}
    documents = [
        "a pizza",
        {"text": "a dog"},
        {"image": url},
        {"content": [picked, {"type": "text", "text": "a cat"}]},
    ]
    items = ["a pizza", "a dog", image, {"image": image, "text": "a cat"}]
    expected = reranker.rank("a slice of pizza", items)
    body = {"query": "a slice of pizza", "documents": documents, "model": "tiny-backbone"}
    answer = client.post("/v1/rerank", json=body).json()
    assert [result["index"] for result in answer["results"]] == [candidate.index for candidate in expected]
    scores = [result["relevance_score"] for result in answer["results"]]
    assert scores == pytest.approx([candidate.score for candidate in expected], abs=1e-5)
    assert answer["model"] == "tiny-backbone" and answer["id"].startswith("rerank-")

    best = client.post("/v1/rerank", json=body | {"top_n": 2, "return_documents": True}).json()["results"]
    assert [result["index"] for result in best] == [candidate.index for candidate in expected[:2]]
    first = documents[best[0]["index"]]
    assert best[0]["document"] == ({"text": first} if isinstance(first, str) else first)


def test_an_image_may_be_the_query(
    client: TestClient, reranker: UniMEReranker, image: Image.Image, data_url: Callable[..., str]
):
    expected = reranker.rank(image, ["a pizza", "a dog"])
    body = {"query": {"image": data_url(image)}, "documents": ["a pizza", "a dog"]}
    results = client.post("/v1/rerank", json=body).json()["results"]
    assert [result["index"] for result in results] == [candidate.index for candidate in expected]


def test_what_cannot_be_reranked_is_refused(client: TestClient):
    documents = ["a pizza", "a dog"]
    assert "'documents'" in refusal(client, 400, query="food", documents=[])
    assert "document 1 is an empty text" in refusal(client, 400, query="food", documents=["a pizza", " "])
    assert "the query must be a text" in refusal(client, 400, query=3.5, documents=documents)
    assert "'documents' has 5 items, the limit is 4" in refusal(client, 400, query="food", documents=["a"] * 5)
    assert "'top_n'" in refusal(client, 400, query="food", documents=documents, top_n=0)
    assert "no field 'rank_fields'" in refusal(client, 400, query="food", documents=documents, rank_fields=["a"])
    assert "there is no reranker 'other' here" in refusal(client, 404, query="a", documents=documents, model="other")
    url = {"image": "https://example.org/a.png"}
    assert "document 0: this server fetches no images" in refusal(client, 400, query="food", documents=[url])
    assert client.post("/v1/rerank", json={}, headers={"authorization": "Bearer wrong"}).status_code == 401


def test_models_lists_both_and_a_server_without_a_reranker_has_no_such_path(client: TestClient, service: Make):
    assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["unime-tiny", "tiny-backbone"]
    with TestClient(create_app(service())) as alone:
        assert alone.post("/v1/rerank", json={}).status_code == 404
