"""The reranking service: `POST /v1/rerank` in the form that vLLM, Jina and Cohere share."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field

from ..processing_unime import Item
from .errors import ApiError
from .protocol import RequestItem, read_body, read_item
from .service import EmbeddingService, decode


class RerankRequest(BaseModel):
    """The body of a request; unknown fields are refused, because they may be meant to change the scores."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = Field(None, description="Id of the served reranker, see `/v1/models`.")
    query: Any = Field(description="A text, a conversation, or an object with 'text', 'image' or 'content'.")
    documents: list[Any] = Field(min_length=1, description="Documents, each in one of the forms of the query.")
    top_n: int | None = Field(None, ge=1, description="How many of the best documents to return. Default: all.")
    return_documents: bool = Field(False, description="Return each document with its score.")
    user: str | None = Field(None, description="Accepted for compatibility; not used.")


class RerankService:
    """A service that answers reranking requests with one model, one request after the other.

    Args:
        name (`str`): Id of the reranker in the API.
        scores (`Callable`): Takes a query and candidates and returns a score from 0 to 1 for each, such as
            [`UniMEReranker.scores`].
        embedding ([`EmbeddingService`]): The service of the same server, whose limits apply.
    """

    def __init__(
        self, name: str, scores: Callable[[Item, Sequence[Item]], Sequence[float]], embedding: EmbeddingService
    ):
        self.name, self.scores, self.embedding = name, scores, embedding
        self.model_info = {"id": name, "object": "model", "created": embedding.model_info["created"]}
        self.model_info |= {"owned_by": "unime", "task": "rerank"}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="reranker")

    async def answer(self, body: bytes) -> dict[str, Any]:
        """Answer one request.

        Args:
            body (`bytes`): JSON, see [`RerankRequest`].

        Returns:
            `dict`: `results` by falling score, each with the `index` of the document and its `relevance_score`.

        Raises:
            ValueError: The request, its query or one of its documents is invalid.
            ApiError: The request names another model, or the server is full.
        """
        request = read_body(RerankRequest, body)
        if request.model not in (None, self.name):
            message = f"there is no reranker {request.model!r} here: this server has {self.name!r}"
            raise ApiError(404, message, "model_not_found")
        limits = self.embedding.limits
        if len(request.documents) > limits.max_items:
            raise ValueError(
                f"'documents' has {len(request.documents)} items, the limit is {limits.max_items}: send fewer"
            )
        names = ["the query", *(f"document {number}" for number in range(len(request.documents)))]
        values = [request.query, *request.documents]
        items = [read_item(_conversation(value), name, limits) for value, name in zip(values, names, strict=True)]
        scores = await self._score(items, names)
        order = sorted(range(len(scores)), key=lambda index: -scores[index])
        results: list[dict[str, Any]] = []
        for index in order[: request.top_n]:
            results.append({"index": index, "relevance_score": scores[index]})
            if request.return_documents:
                document = request.documents[index]
                results[-1]["document"] = {"text": document} if isinstance(document, str) else document
        return {"id": f"rerank-{uuid4().hex}", "model": self.name, "results": results}

    async def _score(self, items: list[RequestItem], names: list[str]) -> list[float]:
        images = await self.embedding.open_images(items, names)
        pixels = sum(image.width * image.height for opened in images for image in opened)

        def run() -> list[float]:
            query, *documents = (task.item for task in decode(items, images, names))
            return [float(score) for score in self.scores(query, documents)]

        with self.embedding.admission.decoded(pixels):
            return await asyncio.get_running_loop().run_in_executor(self._thread, run)


def _conversation(value: Any) -> Any:
    """Return Jina's `{"text": ...}` and `{"image": ...}` and vLLM's `{"content": [...]}` as a conversation."""
    match value:
        case {"content": list(content), **others} if not others:
            return [{"role": "user", "content": content}]
        case {"text": str(text), **others} if not others:
            return text
        case {"image": str(url), **others} if not others:
            return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]
    return value
