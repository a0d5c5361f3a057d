"""Images from the web are fetched from public addresses only, with size and time limits."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address

import pytest

from unime.serve.remote_images import Address, fetch_images, is_public


class Web(BaseHTTPRequestHandler):
    """A small web server with an image and several traps."""

    def do_GET(self) -> None:
        port = self.server.server_address[1]
        redirects = {
            "/moved": "/image",
            "/inward": f"http://127.0.0.2:{port}/image",
            "/metadata": "http://169.254.169.254/latest/meta-data/",
            "/file": "file:///etc/passwd",
            "/round": "/round",
        }
        if self.path in redirects:
            self.send_response(302)
            self.send_header("Location", redirects[self.path])
            self.end_headers()
        elif self.path == "/image":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(f"the image of {self.headers['Host']}".encode())
        elif self.path == "/endless":
            self.send_response(200)
            self.end_headers()
            with suppress(ConnectionError):  # the client disconnects
                for _ in range(1000):
                    self.wfile.write(b"x" * 1000)
        elif self.path == "/slow":
            time.sleep(1)
        else:
            self.send_error(404)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def web() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Web)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def only_the_web(address: Address) -> bool:
    """Treat this one address as public."""
    return str(address) == "127.0.0.1"


def fetch(*urls: str, **options) -> list[bytes]:
    named = [(url, f"item {number}") for number, url in enumerate(urls)]
    return asyncio.run(fetch_images(named, **({"max_bytes": 10_000, "allowed": only_the_web} | options)))


def test_images_are_fetched_in_order_and_redirects_are_followed(web: str):
    host = web.removeprefix("http://")
    named = web.replace("127.0.0.1", "localhost")
    assert fetch(f"{web}/moved", f"{web}/image", f"{named}/image") == [
        f"the image of {host}".encode(),
        f"the image of {host}".encode(),
        f"the image of {host.replace('127.0.0.1', 'localhost')}".encode(),  # connects by address
    ]


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/inward", "not on the public internet"),
        ("/metadata", "not on the public internet"),
        ("/file", "must begin with"),
        ("/round", "redirects more than 3 times"),
        ("/endless", "too large"),
        ("/nothing", "answered 404"),
    ],
)
def test_a_trap_is_refused_in_one_sentence_that_names_the_item(web: str, path: str, reason: str):
    with pytest.raises(ValueError, match=f"^item 1: .*{reason}"):
        fetch(f"{web}/image", web + path)


def test_all_images_of_a_request_share_the_size_and_time_limits(web: str):
    with pytest.raises(ValueError, match="too large"):
        fetch(*[f"{web}/image"] * 3, max_bytes=80)  # each has about 31 bytes
    with pytest.raises(ValueError, match="within 0.2 seconds"):
        fetch(*[f"{web}/slow"] * 3, seconds=0.2)


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "http://localhost:9/",
        "http://[::1]/",
        "http://2130706433/",  # 127.0.0.1 as one number
        "http://127.1/",
        "http://0.0.0.0/",
        "http://10.1.2.3/",
        "http://169.254.169.254/latest/meta-data/",
        "http://[::ffff:10.0.0.1]/",
        "http://[fe80::1]/",
    ],
)
def test_a_private_address_is_refused_in_every_notation(url: str):
    with pytest.raises(ValueError, match="item 0: the image URL is not on the public internet"):
        fetch(url, allowed=is_public)


def test_a_host_with_one_private_address_is_refused_even_if_others_are_public(monkeypatch: pytest.MonkeyPatch):
    infos = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80)) for address in ("8.8.8.8", "10.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: infos)
    with pytest.raises(ValueError, match="not on the public internet"):
        fetch("http://two-faced.example/", allowed=is_public)


@pytest.mark.parametrize("url", ["ftp://example.org/a.png", "http://", "//example.org", "cat.png", "http://[::1"])
def test_a_url_that_is_not_a_web_address_is_refused(url: str):
    with pytest.raises(ValueError, match="item 0: (an image URL must begin|the image cannot be fetched)"):
        fetch(url, allowed=is_public)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2001:4860:4860::8888", True),
        ("100.64.0.1", False),  # carrier-grade NAT
        ("192.168.0.1", False),
        ("172.16.0.1", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::", False),
        ("fc00::1", False),
        ("fec0::1", False),
        ("::ffff:8.8.8.8", True),
        ("::ffff:127.0.0.1", False),
        ("2002:7f00:1::", False),  # 127.0.0.1 in a 6to4 address
        ("64:ff9b::a00:1", False),  # 10.0.0.1 behind NAT64
        ("64:ff9b:1::a00:1", False),  # the same with a local-use prefix (RFC 8215)
        ("::7f00:1", False),  # 127.0.0.1 in the deprecated IPv4-compatible notation
        ("::ffff:0:a00:1", False),  # 10.0.0.1, translated (RFC 2765)
        ("2001:0:7f00:1::", False),  # Teredo
        ("5f00::1", False),  # segment routing inside a network
    ],
)
def test_addresses_are_classified_as_public_or_not(address: str, public: bool):
    assert is_public(ip_address(address)) is public


def test_a_host_is_resolved_only_once_so_that_its_address_cannot_change(web: str, monkeypatch: pytest.MonkeyPatch):
    port = int(web.rpartition(":")[2])
    answers = iter(["127.0.0.1", "127.0.0.2", "127.0.0.2"])
    looked_up = []

    def rebinding(host: str, *_: object, **__: object) -> list[tuple]:
        address = host if host[0].isdigit() else looked_up.append(host) or next(answers)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    (image,) = fetch(f"http://rebinding.example:{port}/image")
    assert image == f"the image of rebinding.example:{port}".encode()
    assert looked_up == ["rebinding.example"]


def test_proxies_from_the_environment_are_not_used(web: str, monkeypatch: pytest.MonkeyPatch):
    for name in ("http_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nothing listens here
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert fetch(f"{web}/image")


def test_a_slow_name_server_does_not_block_other_work(monkeypatch: pytest.MonkeyPatch):
    end = threading.Event()

    def stalling(*_: object, **__: object) -> list[tuple]:
        end.wait(60)
        raise socket.gaierror

    async def main() -> None:
        requests = [
            asyncio.create_task(fetch_images([(f"http://{name}.example/", "item 0") for name in range(8)], 1, 0.5))
            for _ in range(5)  # 40 names: more than asyncio has threads
        ]
        await asyncio.sleep(0.1)
        async with asyncio.timeout(20):
            assert await asyncio.to_thread(lambda: "decoded") == "decoded"
        for refused in await asyncio.gather(*requests, return_exceptions=True):
            assert "not fetched within 0.5 seconds" in str(refused)
        end.set()

    monkeypatch.setattr(socket, "getaddrinfo", stalling)
    try:
        asyncio.run(main())
    finally:
        end.set()
