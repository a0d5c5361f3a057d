"""The embedding service: turns the body of a request into the body of its response."""

import asyncio
import base64
import logging
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from PIL import Image

from ..checkpoint import named_prompts
from .embedder import Embedded, Embedder, RefusedItem, Task
from .errors import ApiError
from .limits import Admission, Limits
from .prometheus import Metrics
from .protocol import EmbeddingRequest, RequestItem, read_items, read_request
from .remote_images import fetch_images
from .request_batching import Batcher
from .request_images import decode_image, open_image, read_data_url


logger = logging.getLogger(__name__)


class EmbeddingService:
    """A service that answers embedding requests with one model.

    Args:
        name (`str`): Id of the model in the API.
        embedder ([`Embedder`]): The model.
        limits ([`Limits`]): Limits on requests.
        batch_items (`int`, *optional*, defaults to 64): Maximum number of items per batch. A longer request is split,
            and its parts are interleaved with other requests.
        max_wait (`float`, *optional*, defaults to 0): Maximum number of seconds that an idle model waits for more
            items.
        allow_remote_images (`bool`, *optional*, defaults to `False`): Whether to fetch images from http(s) URLs.
        model_fingerprint (`str`, *optional*): Fingerprint of the checkpoint for `/v1/models`, see [`fingerprint`].
    """

    def __init__(
        self,
        name: str,
        embedder: Embedder,
        limits: Limits,
        batch_items: int = 64,
        max_wait: float = 0.0,
        allow_remote_images: bool = False,
        model_fingerprint: str | None = None,
    ):
        self.name = name
        self.embedder = embedder
        self.limits = limits
        self.batch_items = batch_items
        self.allow_remote_images = allow_remote_images
        config = embedder.model.config
        self.dimensions = config.hidden_size
        self.trained_dimensions = config.matryoshka_dimensions or [self.dimensions]
        self.model_info = {
            "id": name,
            "object": "model",
            "created": int(time.time()),
            "owned_by": "unime",
            "dimensions": self.dimensions,
            "matryoshka_dimensions": config.matryoshka_dimensions,
            "pooling": config.pooling,
            "prompts": named_prompts(config),
            "fingerprint": model_fingerprint,
        }
        self.admission = Admission(limits)
        self.metrics = Metrics()
        self.batcher = Batcher(self._run, batch_items, max_wait)
        self._warned_dimensions: set[int] = set()
        self.metrics.watch(lambda: self.admission.requests, lambda: self.batcher.waiting)

    async def warm_up(self) -> None:
        """Embed a text and an image, so that the first client does not wait for one-time initialisation."""
        await self._embed([Task({"text": "warm"}), Task({"image": Image.new("RGB", (64, 64))})])

    async def answer(self, body: bytes) -> dict[str, Any]:
        """Answer one request.

        Args:
            body (`bytes`): JSON, see [`EmbeddingRequest`].

        Returns:
            `dict`: OpenAI's list of embeddings, ready for JSON.

        Raises:
            ValueError: The request or one of its items is invalid.
            ApiError: The request names another model, or the server is full.
        """
        request = read_request(body)
        if request.model is not None:
            self.require_name(request.model)
        if request.dimensions is not None and not 1 <= request.dimensions <= self.dimensions:
            raise ValueError(f"'dimensions' must be between 1 and {self.dimensions}, got {request.dimensions}")
        items = read_items(request, self.limits)
        names = [f"item {number}" for number in range(len(items))]
        truncate = request.truncate_prompt_tokens == -1
        if any(item.images for item in items):
            images = await self.open_images(items, names)
            with self.admission.decoded(sum(image.width * image.height for opened in images for image in opened)):
                results = await self._embed(await asyncio.to_thread(decode, items, images, names, truncate))
        else:
            results = await self._embed(decode(items, [[]] * len(items), names, truncate))
        self.metrics.items.inc(len(results))
        tokens = sum(result.tokens for result in results)
        self.metrics.tokens.inc(tokens)
        answer = {
            "object": "list",
            "data": [
                {"object": "embedding", "index": index, "embedding": _serialize(result.embedding, request)}
                for index, result in enumerate(results)
            ],
            "model": self.name,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
        warning = self._truncation_warning(request.dimensions)
        return answer if warning is None else answer | {"warning": warning}

    def _truncation_warning(self, dimensions: int | None) -> str | None:
        """Return why embeddings of these dimensions may be bad, or None; the log gets each reason once."""
        if dimensions is None or dimensions in self.trained_dimensions:
            return None
        warning = (
            f"the configuration of this model does not list {dimensions} among the dimensions that it was trained for "
            f"({', '.join(map(str, self.trained_dimensions))}), so truncated embeddings may be much worse: leave "
            "'dimensions' out, or train the model with matryoshka_dims"
        )
        if dimensions not in self._warned_dimensions:
            self._warned_dimensions.add(dimensions)
            logger.warning("a client truncates embeddings: %s", warning)
        return warning

    def require_name(self, name: str) -> None:
        """Refuse the name of another model.

        Raises:
            ApiError: 404, if this server does not have the model.
        """
        if name != self.name:
            raise ApiError(404, f"there is no model {name!r} here: this server has {self.name!r}", "model_not_found")

    async def open_images(self, items: list[RequestItem], names: list[str]) -> list[list[Image.Image]]:
        """Return the images of every item, not yet decoded.

        Args:
            items (`list[RequestItem]`): The items.
            names (`list[str]`): Name of each in errors.

        Raises:
            ValueError: An image is no data URL and may not be fetched, or cannot be opened.
        """
        urls = [[(url, name) for url in item.images] for item, name in zip(items, names, strict=True)]
        remote = [(url, name) for item_urls in urls for url, name in item_urls if not _is_data_url(url)]
        if remote and not self.allow_remote_images:
            raise ValueError(
                f"{remote[0][1]}: this server fetches no images from the web: send them as data URLs "
                "(data:image/png;base64,...)"
            )
        fetched = iter(await fetch_images(remote, self.limits.max_body_bytes) if remote else [])

        def open_all() -> list[list[Image.Image]]:
            return [
                [
                    open_image(read_data_url(url, name) if _is_data_url(url) else next(fetched), name)
                    for url, name in item_urls
                ]
                for item_urls in urls
            ]

        return await asyncio.to_thread(open_all)

    async def _embed(self, tasks: list[Task]) -> list[Embedded]:
        embedded: list[Embedded] = []
        for start in range(0, len(tasks), self.batch_items):
            for result in await self.batcher.submit(tasks[start : start + self.batch_items]):
                if isinstance(result, RefusedItem):
                    raise ValueError(f"item {len(embedded)}: {result}")
                if isinstance(result, Exception):
                    raise RuntimeError("the model failed") from result
                embedded.append(result)
        return embedded

    def _run(self, tasks: list[Task]) -> Iterator[Mapping[int, Embedded | Exception]]:
        started = time.perf_counter()
        self.metrics.batch_items.observe(len(tasks))
        yield from self.embedder(tasks)
        self.metrics.batch_seconds.observe(time.perf_counter() - started)


def _is_data_url(url: str) -> bool:
    return url[:5].lower() == "data:"


def decode(
    items: list[RequestItem], images: list[list[Image.Image]], names: list[str], truncate: bool = False
) -> list[Task]:
    """Return the items of a request with their images decoded.

    Args:
        items (`list[RequestItem]`): The items.
        images (`list[list[PIL.Image]]`): Opened images of each.
        names (`list[str]`): Name of each in errors.
        truncate (`bool`, *optional*, defaults to `False`): See [`Task`].

    Raises:
        ValueError: An image is damaged.
    """
    tasks = []
    for item, opened, name in zip(items, images, names, strict=True):
        decoded = iter([decode_image(image, name) for image in opened])
        content = [part if isinstance(part, str) else next(decoded) for part in item.content]
        tasks.append(Task({"content": content, "instruction": item.instruction}, truncate))
    return tasks


def _serialize(embedding: np.ndarray, request: EmbeddingRequest) -> list[float] | str:
    if request.dimensions is not None:
        embedding = embedding[: request.dimensions]
        embedding = embedding / max(float(np.linalg.norm(embedding)), 1e-12)
    if request.encoding_format == "base64":
        return base64.b64encode(embedding.astype("<f4").tobytes()).decode("ascii")
    return embedding.tolist()
