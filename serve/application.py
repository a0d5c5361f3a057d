"""The HTTP side: routes, the key, bodies, clients that leave, and errors without insides."""

import asyncio
import logging
import secrets
import time
import traceback
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from ..cpu_prepacking_unime import prepacked_weights
from .errors import ApiError
from .protocol import EmbeddingRequest
from .service import EmbeddingService


UPLOAD_SECONDS = 60
GONE = ApiError(499, "the client closed the connection")  # nobody reads it, but the metrics count it
logger = logging.getLogger(__name__)


def create_app(service: EmbeddingService, api_key: str | None = None) -> FastAPI:
    """Make the ASGI application that serves a model.

    Args:
        service ([`EmbeddingService`]): Answers the requests; it works while the application's lifespan lasts.
        api_key (`str`, *optional*): What clients must send as `Authorization: Bearer ...` to `/v1`.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        with prepacked_weights(service.embedder.model):
            async with service.batcher:
                await service.warm_up()
                yield

    def authorise(request: Request) -> None:
        given = request.headers.get("authorization", "")
        if api_key is not None and not secrets.compare_digest(given.encode(), f"Bearer {api_key}".encode()):
            raise ApiError(401, "the API key is missing or wrong: send 'Authorization: Bearer KEY'", "invalid_api_key")

    # No page of FastAPI's, for those fetch their scripts from elsewhere: /openapi.json says the same.
    about = {"title": "UniME", "description": "Multimodal embeddings.", "docs_url": None, "redoc_url": None}
    app = FastAPI(lifespan=lifespan, **about)
    router = APIRouter(prefix="/v1", dependencies=[Depends(authorise)])
    served = {"id": service.name, "object": "model", "created": int(time.time()), "owned_by": "unime"}
    schema = {"content": {"application/json": {"schema": EmbeddingRequest.model_json_schema()}}, "required": True}

    # The body is read by hand: after the key was checked and the request was let in, never before.
    @router.post("/embeddings", openapi_extra={"requestBody": schema})
    async def embeddings(request: Request) -> Response:
        """Embed texts, images, or both together."""
        started = time.perf_counter()
        try:
            response = await _answer(service, request)
        except ApiError as error:
            response = error.response()
        except ValueError as error:
            response = ApiError(400, str(error)).response()
        except Exception as error:
            _log(error)
            response = ApiError(500, "the server failed on this request, which is its fault").response()
        service.metrics.requests.labels(response.status_code).inc()
        service.metrics.request_seconds.observe(time.perf_counter() - started)
        return response

    @router.get("/models")
    async def models() -> dict[str, Any]:
        """Say which model is served."""
        return {"object": "list", "data": [served]}

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Answer at all: the port opens when the model is warm, and closes when the server is told to stop."""
        return {"status": "ok"}

    @app.get("/metrics")
    async def metrics() -> Response:
        """Counters for Prometheus."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @app.exception_handler(ApiError)
    async def refused(_: Request, error: ApiError) -> JSONResponse:
        return error.response()

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> JSONResponse:
        return ApiError(error.status_code, f"{request.method} {request.url.path}: {error.detail}").response()

    app.include_router(router)
    return app


async def _answer(service: EmbeddingService, request: Request) -> JSONResponse:
    with service.admission.request():
        body = await _read_body(request, service.limits.max_body)
        return JSONResponse(await _unless_gone(request, service.answer(body)))


async def _read_body(request: Request, limit: int) -> bytes:
    too_large = ApiError(413, f"the body is larger than {limit / 1e6:g} MB, the limit: send several requests")
    if int(request.headers.get("content-length", 0)) > limit:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(UPLOAD_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    raise too_large
    except ClientDisconnect:
        raise GONE from None
    except TimeoutError:
        raise ApiError(408, f"the body did not arrive within {UPLOAD_SECONDS} seconds: try again") from None
    return bytes(body)


async def _unless_gone(request: Request, work: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
    """Await work, and give it up when the client has gone: nobody computes for those who no longer wait."""
    working = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(request.receive())  # after the body, the next message is that the client has left
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise GONE
    finally:
        working.cancel()
        gone.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)


def _log(error: Exception) -> None:
    """Log where an error arose without its message or values: they may quote what a client sent."""
    cause = error.__cause__ or error
    frames = traceback.extract_tb(cause.__traceback__)
    places = " < ".join(f"{frame.filename}:{frame.lineno} {frame.name}" for frame in reversed(frames))
    logger.error("%s at %s", type(cause).__name__, places)
