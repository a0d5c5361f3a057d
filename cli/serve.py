"""The command `unime serve`."""

import socket
from typing import Annotated

import typer

from .options import Device, Dtype, Model, load_onto


# What the server needs is imported when it starts: `unime --help` answers at once.


def serve(
    model: Model = "checkpoints/unime-tiny",
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for other machines.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000,
    dtype: Dtype = "float32",
    device: Device = None,
    api_key: Annotated[
        str | None, typer.Option(envvar="UNIME_API_KEY", help="What clients must send; better by the variable.")
    ] = None,
    allow_remote_images: Annotated[
        bool, typer.Option("--allow-remote-images", help="Fetch images from public http(s) addresses.")
    ] = False,
    max_items: Annotated[int, typer.Option(min=1, help="Most items of a request.")] = 2048,
    max_body_mb: Annotated[float, typer.Option(min=0.001, help="Largest body of a request.")] = 16,
    max_characters: Annotated[int, typer.Option(min=1, help="Most characters of an item's text.")] = 100_000,
    max_megapixels: Annotated[float, typer.Option(min=0.001, help="Largest images of a request together.")] = 64,
    max_requests: Annotated[int, typer.Option(min=1, help="Most requests inside at a time; others get 429.")] = 256,
    batch_items: Annotated[int, typer.Option(min=1, help="Most items of a batch; 1 answers one by one.")] = 64,
    max_wait_ms: Annotated[float, typer.Option(min=0, help="Longest wait of an idle model for more items.")] = 1,
    micro_batch_tokens: Annotated[
        int | None, typer.Option(min=1, help="Token budget of one forward pass: 1024 on the CPU, 8192 elsewhere.")
    ] = None,
) -> None:
    """Serve embeddings over HTTP in OpenAI's format, images included, until SIGTERM or Ctrl-C."""
    listener = bind(host, port)  # a taken port is found before the model is loaded

    from pathlib import Path

    import uvicorn

    from ..serve.application import create_app
    from ..serve.embedder import Embedder
    from ..serve.limits import Limits
    from ..serve.service import EmbeddingService

    loaded, processor = load_onto(model, dtype, device)
    service = EmbeddingService(
        Path(model).resolve().name if Path(model).is_dir() else model,
        Embedder(loaded, processor, micro_batch_tokens),
        Limits(max_items, max_body_mb, max_characters, max_megapixels, max_requests),
        batch_items,
        max_wait_ms / 1000,
        allow_remote_images,
    )
    app = create_app(service, api_key or None)
    address = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}/v1"
    typer.echo(f"{service.name} ({service.dimensions} dimensions, {dtype}, {loaded.device}) at {address}")
    # No access log: a proxy keeps one, /metrics counts. What is being answered has 30 seconds after SIGTERM.
    config = uvicorn.Config(app, access_log=False, timeout_graceful_shutdown=30, server_header=False)
    uvicorn.Server(config).run([listener])


def bind(host: str, port: int) -> socket.socket:
    """Take the port without listening yet: connections are refused, not kept waiting, until the model is warm.

    Raises:
        OSError: The address is not this machine's, or the port is taken.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # asyncio turns Nagle's algorithm, 40 ms an answer, off only where the protocol is named.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise OSError(f"cannot listen on {host}, port {port}: {error.strerror}; choose another --port") from None
    return listener
