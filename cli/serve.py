"""`unime serve`: an embedding server."""

import socket
from typing import Annotated

import typer

from ..extras import require_extra
from .options import Device, Dtype, ImageSize, Model, Preset, load_onto, model_or_default, note_demonstration


def serve(
    model: Model = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for other machines.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 picks a free one.")] = 8000,
    rerank: Annotated[
        str | None, typer.Option(help="Reranker to serve at /v1/rerank, such as a model trained by recipes/rerank.py.")
    ] = None,
    image_size: ImageSize = None,
    preset: Preset = None,
    dtype: Dtype = "float32",
    device: Device = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="UNIME_API_KEY", help="Key that clients must send; prefer the variable.")
    ] = None,
    allow_remote_images: Annotated[
        bool, typer.Option("--allow-remote-images", help="Fetch images from public http(s) URLs.")
    ] = False,
    cors_allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            help="Origin (https://example.org) whose web pages may call the server; repeat it, or * for all."
        ),
    ] = None,
    max_items: Annotated[int, typer.Option(min=1, help="Maximum number of items per request.")] = 2048,
    max_body_mb: Annotated[float, typer.Option(min=0.001, help="Maximum size of a request's body.")] = 16,
    max_characters: Annotated[int, typer.Option(min=1, help="Maximum number of characters per item.")] = 100_000,
    max_megapixels: Annotated[float, typer.Option(min=0.001, help="Maximum size of a request's images, summed.")] = 64,
    max_requests: Annotated[
        int, typer.Option(min=1, help="Maximum number of concurrent requests; others get 429.")
    ] = 256,
    batch_items: Annotated[int, typer.Option(min=1, help="Maximum number of items per batch; 1: no batching.")] = 64,
    max_wait_ms: Annotated[float, typer.Option(min=0, help="How long an idle model waits for more items.")] = 0,
    micro_batch_tokens: Annotated[
        int | None, typer.Option(min=1, help="Token budget of one forward pass: 1024 on the CPU, 8192 elsewhere.")
    ] = None,
) -> None:
    """Serve embeddings over HTTP in OpenAI's format, images included, until SIGTERM or Ctrl-C."""
    model = model_or_default(model)
    listener = bind(host, port)  # reports a port in use before the model is loaded

    require_extra("serve", "fastapi", "uvicorn")

    import os
    from pathlib import Path

    # Read once, when torch is imported: torch's threads would otherwise wait in a loop for their next work, on cores
    # that the other threads of the server need.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

    import uvicorn

    from ..checkpoint import fingerprint
    from ..serve.application import create_app
    from ..serve.embedder import Embedder
    from ..serve.limits import Limits
    from ..serve.server import Server
    from ..serve.service import EmbeddingService

    note_demonstration(model)
    network, processor = load_onto(model, dtype, device, image_size, preset)
    service = EmbeddingService(
        Path(model).resolve().name if Path(model).is_dir() else model,
        Embedder(network, processor, micro_batch_tokens),
        Limits(max_items, max_body_mb, max_characters, max_megapixels, max_requests),
        batch_items,
        max_wait_ms / 1000,
        allow_remote_images,
        fingerprint(model),
    )
    reranking = None
    if rerank is not None:
        from ..reranker import UniMEReranker
        from ..serve.reranking_service import RerankService

        reranker = UniMEReranker.from_pretrained(rerank, device=network.device, dtype=dtype)
        reranker.scores("warm", ["up"])
        name = Path(rerank).resolve().name if Path(rerank).is_dir() else rerank
        reranking = RerankService(name, reranker.scores, service)
    app = create_app(service, api_key or None, cors_allow_origin or (), reranking)
    address = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}/v1"
    typer.echo(f"{service.name} ({service.dimensions} dimensions, {dtype}, {network.device}) at {address}")
    # No access log: a proxy can write one, and /metrics counts requests. After SIGTERM, requests have 30 s to finish.
    config = uvicorn.Config(app, access_log=False, timeout_graceful_shutdown=30, server_header=False, ws="none")
    Server(config).run([listener])


def bind(host: str, port: int) -> socket.socket:
    """Return a socket bound to a port but not listening, so that connections are refused until the model is warm.

    Raises:
        OSError: The address does not belong to this machine, or the port is in use.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # asyncio turns off Nagle's algorithm, which delays answers by 40 ms, only for sockets with a named protocol.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise OSError(f"cannot listen on {host}, port {port}: {error.strerror}; choose another --port") from None
    return listener
