"""The HTTP application: routes, the API key, request bodies, disconnects, and errors that reveal no internals."""

import asyncio
import logging
import secrets
import time
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import HTMLResponse, JSONResponse
from jinja2 import Environment, PackageLoader
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from ..cpu_prepacking_unime import prepacked_weights
from .errors import ApiError
from .protocol import EmbeddingRequest
from .reranking_service import RerankRequest, RerankService
from .service import EmbeddingService


Answer = Callable[[bytes], Coroutine[Any, Any, dict[str, Any]]]  # from the body of a request to that of the response

UPLOAD_TIMEOUT_SECONDS = 60
DISCONNECTED = ApiError(499, "the client closed the connection")  # nobody receives it, but the metrics count it
DOCS_PAGE = Environment(
    loader=PackageLoader("unime.serve", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
).get_template("docs.html.jinja")
logger = logging.getLogger(__name__)


def create_app(
    service: EmbeddingService,
    api_key: str | None = None,
    cors_allow_origins: Sequence[str] = (),
    reranking: RerankService | None = None,
) -> FastAPI:
    """Return the ASGI application that serves a model.

    Args:
        service ([`EmbeddingService`]): Answers the requests; it runs during the lifespan of the application.
        api_key (`str`, *optional*): Key that clients must send to `/v1` as `Authorization: Bearer ...`.
        cors_allow_origins (`Sequence[str]`, *optional*): Origins such as `https://example.org` whose web pages may
            call the server from a browser; `*` stands for all.
        reranking ([`RerankService`], *optional*): Answers requests to `/v1/rerank`, a path that the application has
            only then.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        with prepacked_weights(service.embedder.model):
            async with service.batcher:
                await service.warm_up()
                yield

    async def authorize(request: Request) -> None:  # without `async` FastAPI would call it in a thread
        header = request.headers.get("authorization", "")
        if api_key is not None and not secrets.compare_digest(header.encode(), f"Bearer {api_key}".encode()):
            raise ApiError(401, "the API key is missing or wrong: send 'Authorization: Bearer KEY'", "invalid_api_key")

    # FastAPI's documentation pages load scripts from other hosts, so /docs is a page of our own.
    app = FastAPI(
        lifespan=lifespan, title="UniME", description="Multimodal embeddings.", docs_url=None, redoc_url=None
    )
    if cors_allow_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=cors_allow_origins, allow_methods=["GET", "POST"], allow_headers=["*"]
        )
    router = APIRouter(prefix="/v1", dependencies=[Depends(authorize)])
    schema = {"content": {"application/json": {"schema": EmbeddingRequest.model_json_schema()}}, "required": True}

    # The handler reads the body itself, so that it is read only after the key is checked and the request is admitted.
    @router.post("/embeddings", openapi_extra={"requestBody": schema})
    async def embeddings(request: Request) -> Response:
        """Embed texts, images, or both together."""
        return await respond(service.answer, request)

    async def respond(answer: Answer, request: Request) -> Response:
        started = time.perf_counter()
        try:
            response = await _answer(service, answer, request)
        except ApiError as error:
            response = error.response()
        except ValueError as error:
            response = ApiError(400, str(error)).response()
        except Exception as error:  # a fault of the server: logged in full, and no detail of it is sent
            _log(error)
            response = ApiError(500, "internal error: the server failed on this request").response()
        service.metrics.requests.labels(response.status_code).inc()
        service.metrics.request_seconds.observe(time.perf_counter() - started)
        return response

    if reranking is not None:
        rerank_schema = {"content": {"application/json": {"schema": RerankRequest.model_json_schema()}}}

        @router.post("/rerank", openapi_extra={"requestBody": rerank_schema | {"required": True}})
        async def rerank(request: Request) -> Response:
            """Order documents by how well they meet a query."""
            return await respond(reranking.answer, request)

    @router.get("/models")
    async def models() -> dict[str, Any]:
        """List the served models."""
        served = [service.model_info, *([] if reranking is None else [reranking.model_info])]
        return {"object": "list", "data": served}

    @router.get("/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        """Describe the served model: its dimensions, pooling, prompts and fingerprint."""
        service.require_name(name)
        return service.model_info

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Return 200; the port opens when the model is warm and closes on SIGTERM."""
        return {"status": "ok"}

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> HTMLResponse:
        return HTMLResponse(
            DOCS_PAGE.render(
                title=app.title,
                paths=app.openapi()["paths"],
                fields=EmbeddingRequest.model_fields,
                address=request.base_url,
                needs_key=api_key is not None,
            )
        )

    @app.get("/metrics")
    async def metrics() -> Response:
        """Return the metrics for Prometheus."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @app.exception_handler(ApiError)
    async def on_api_error(_: Request, error: ApiError) -> JSONResponse:
        return error.response()

    @app.exception_handler(HTTPException)
    async def on_http_error(request: Request, error: HTTPException) -> JSONResponse:
        return ApiError(error.status_code, f"{request.method} {request.url.path}: {error.detail}").response()

    app.include_router(router)
    return app


async def _answer(service: EmbeddingService, answer: Answer, request: Request) -> JSONResponse:
    with service.admission.request():
        body = await _read_body(request, service.limits.max_body_bytes)
        return JSONResponse(await _cancel_on_disconnect(request, answer(body)))


async def _read_body(request: Request, max_bytes: int) -> bytes:
    too_large = ApiError(413, f"the body is larger than {max_bytes / 1e6:g} MB, the limit: send several requests")
    if int(request.headers.get("content-length", 0)) > max_bytes:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(UPLOAD_TIMEOUT_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > max_bytes:
                    raise too_large
    except ClientDisconnect:
        raise DISCONNECTED from None
    except TimeoutError:
        raise ApiError(408, f"the body did not arrive within {UPLOAD_TIMEOUT_SECONDS} seconds: try again") from None
    return bytes(body)


async def _cancel_on_disconnect(request: Request, work: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
    """Await work, and cancel it when the client disconnects."""
    working = asyncio.ensure_future(work)
    disconnect = asyncio.ensure_future(request.receive())  # after the body, the only message left is the disconnect
    try:
        await asyncio.wait((working, disconnect), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise DISCONNECTED
    finally:
        working.cancel()
        disconnect.cancel()
        await asyncio.gather(working, disconnect, return_exceptions=True)


def _log(error: Exception) -> None:
    """Log where an error occurred, without its message or values, which may quote a client's input."""
    cause = error.__cause__ or error
    frames = traceback.extract_tb(cause.__traceback__)
    locations = " < ".join(f"{frame.filename}:{frame.lineno} {frame.name}" for frame in reversed(frames))
    logger.error("%s at %s", type(cause).__name__, locations)
