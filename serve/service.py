"""From the body of a request to the body of its answer."""

import asyncio
import base64
import time
from typing import Any

import numpy as np
from PIL import Image

from .embedder import Embedded, Embedder, RefusedItem, Task
from .errors import ApiError
from .limits import Admission, Limits
from .prometheus import Metrics
from .protocol import Asked, EmbeddingRequest, read_items, read_request
from .remote_images import fetch_images
from .request_batching import Batcher
from .request_images import decode_image, open_image, read_data_url


class EmbeddingService:
    """Answers requests for embeddings by one model.

    Args:
        name (`str`): The model's id.
        embedder ([`Encoder`]): The model.
        limits ([`Limits`]): What a request may ask.
        batch_items (`int`): Most items of a batch; a longer request takes its turns among the others.
        max_wait (`float`): Most seconds that an idle model waits for more items.
        allow_remote_images (`bool`): Fetch images from http(s) addresses.
    """

    def __init__(
        self,
        name: str,
        embedder: Embedder,
        limits: Limits,
        batch_items: int = 64,
        max_wait: float = 0.001,
        allow_remote_images: bool = False,
    ):
        self.name = name
        self.embedder = embedder
        self.limits = limits
        self.batch_items = batch_items
        self.allow_remote_images = allow_remote_images
        self.dimensions = embedder.model.config.hidden_size
        self.admission = Admission(limits)
        self.metrics = Metrics()
        self.batcher = Batcher(self._run, batch_items, max_wait)
        self.metrics.watch(lambda: self.admission.requests, lambda: self.batcher.waiting)

    async def warm_up(self) -> None:
        """Embed a text and an image, so that the first client does not wait for what happens once."""
        await self._embed([Task({"text": "warm"}), Task({"image": Image.new("RGB", (64, 64))})])

    async def answer(self, body: bytes) -> dict[str, Any]:
        """Answer one request.

        Args:
            body (`bytes`): JSON, see [`EmbeddingRequest`].

        Returns:
            `dict`: OpenAI's list of embeddings, ready for JSON.

        Raises:
            ValueError: The request or an item of it is bad.
            ApiError: The model is another one, or there is no room now.
        """
        request = read_request(body)
        if request.model is not None and request.model != self.name:
            raise ApiError(
                404, f"there is no model {request.model!r} here: this server has {self.name!r}", "model_not_found"
            )
        if request.dimensions is not None and not 1 <= request.dimensions <= self.dimensions:
            raise ValueError(f"'dimensions' must be between 1 and {self.dimensions}, got {request.dimensions}")
        asked = read_items(request, self.limits)
        opened = await self._open(asked)
        with self.admission.decoded(sum(image.width * image.height for one in opened for image in one)):
            items = await asyncio.to_thread(_decode, asked, opened)
            embedded = await self._embed([Task(item, request.truncate_prompt_tokens == -1) for item in items])
        self.metrics.items.inc(len(embedded))
        tokens = sum(one.tokens for one in embedded)
        self.metrics.tokens.inc(tokens)
        return {
            "object": "list",
            "data": [
                {"object": "embedding", "index": index, "embedding": _write(one.vector, request)}
                for index, one in enumerate(embedded)
            ],
            "model": self.name,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }

    async def _open(self, asked: list[Asked]) -> list[list[Image.Image]]:
        """Open the images of every item, undecoded."""
        urls = [(url, f"item {number}") for number, one in enumerate(asked) for url in one.images]
        remote = [(url, where) for url, where in urls if not url[:5].lower() == "data:"]
        if remote and not self.allow_remote_images:
            raise ValueError(
                f"{remote[0][1]}: this server fetches no images from the web: send them as data URLs "
                "(data:image/png;base64,...)"
            )
        fetched = iter(await fetch_images(remote, self.limits.max_body) if remote else [])

        def open_all() -> list[list[Image.Image]]:
            return [
                [
                    open_image(read_data_url(url, where) if url[:5].lower() == "data:" else next(fetched), where)
                    for url in one.images
                ]
                for one, where in ((one, f"item {number}") for number, one in enumerate(asked))
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

    def _run(self, tasks: list[Task]) -> list[Embedded | Exception]:
        started = time.perf_counter()
        results = self.embedder(tasks)
        self.metrics.batch_seconds.observe(time.perf_counter() - started)
        self.metrics.batch_items.observe(len(tasks))
        return results


def _decode(asked: list[Asked], opened: list[list[Image.Image]]) -> list[dict[str, Any]]:
    return [
        {
            "text": one.text,
            "image": [decode_image(image, f"item {number}") for image in images],
            "instruction": one.instruction,
        }
        for number, (one, images) in enumerate(zip(asked, opened, strict=True))
    ]


def _write(vector: np.ndarray, request: EmbeddingRequest) -> list[float] | str:
    if request.dimensions is not None:
        vector = vector[: request.dimensions]
        vector = vector / max(float(np.linalg.norm(vector)), 1e-12)
    if request.encoding_format == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
    return vector.tolist()
