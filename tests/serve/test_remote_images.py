"""Images from the web: fetched from public addresses only, and never without end."""

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
    """A small web that has an image, and traps."""

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
            with suppress(ConnectionError):  # the client hangs up
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
    """Take this one address for the public internet."""
    return str(address) == "127.0.0.1"


def fetch(*urls: str, **options) -> list[bytes]:
    named = [(url, f"item {number}") for number, url in enumerate(urls)]
    return asyncio.run(fetch_images(named, **({"max_bytes": 10_000, "allowed": only_the_web} | options)))


def test_images_are_fetched_in_their_order_and_redirects_followed(web: str):
    host = web.removeprefix("http://")
    named = web.replace("127.0.0.1", "localhost")
    assert fetch(f"{web}/moved", f"{web}/image", f"{named}/image") == [
        f"the image of {host}".encode(),
        f"the image of {host}".encode(),
        f"the image of {host.replace('127.0.0.1', 'localhost')}".encode(),  # the name, though it connects by address
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
def test_traps_are_one_sentence_that_names_the_item(web: str, path: str, reason: str):
    with pytest.raises(ValueError, match=f"^item 1: .*{reason}"):
        fetch(f"{web}/image", web + path)


def test_all_images_of_a_request_share_the_limits_of_size_and_time(web: str):
    with pytest.raises(ValueError, match="too large"):
        fetch(*[f"{web}/image"] * 3, max_bytes=80)  # one has 31 or so
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
def test_an_address_inside_is_refused_however_it_is_written(url: str):
    with pytest.raises(ValueError, match="item 0: the image's address is not on the public internet"):
        fetch(url, allowed=is_public)


def test_a_name_with_one_address_inside_is_refused_though_its_others_are_public(monkeypatch: pytest.MonkeyPatch):
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80)) for address in ("8.8.8.8", "10.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with pytest.raises(ValueError, match="not on the public internet"):
        fetch("http://two-faced.example/", allowed=is_public)


@pytest.mark.parametrize("url", ["ftp://example.org/a.png", "http://", "//example.org", "cat.png", "http://[::1"])
def test_what_is_no_web_address_is_refused(url: str):
    with pytest.raises(ValueError, match="item 0: (an image's address must begin|the image cannot be fetched)"):
        fetch(url, allowed=is_public)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2001:4860:4860::8888", True),
        ("100.64.0.1", False),  # shared by a provider's customers
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
        ("64:ff9b:1::a00:1", False),  # the same by a network's own prefix (RFC 8215)
        ("::7f00:1", False),  # 127.0.0.1 in the notation that IPv6 gave up
        ("::ffff:0:a00:1", False),  # 10.0.0.1, translated (RFC 2765)
        ("2001:0:7f00:1::", False),  # Teredo
        ("5f00::1", False),  # segment routing inside a network
    ],
)
def test_public_addresses(address: str, public: bool):
    assert is_public(ip_address(address)) is public


def test_a_name_is_looked_up_once_so_that_it_cannot_change_its_address(web: str, monkeypatch: pytest.MonkeyPatch):
    port = int(web.rpartition(":")[2])
    answers = iter(["127.0.0.1", "127.0.0.2", "127.0.0.2"])
    looked_up = []

    def rebinding(host: str, *_: object, **__: object) -> list[tuple]:
        own = host if host[0].isdigit() else looked_up.append(host) or next(answers)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (own, port))]

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    (image,) = fetch(f"http://rebinding.example:{port}/image")
    assert image == f"the image of rebinding.example:{port}".encode()
    assert looked_up == ["rebinding.example"]


def test_proxies_of_the_environment_are_not_asked(web: str, monkeypatch: pytest.MonkeyPatch):
    for name in ("http_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # where nobody listens
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert fetch(f"{web}/image")


def test_a_name_server_that_stalls_holds_up_no_others_work(monkeypatch: pytest.MonkeyPatch):
    end = threading.Event()

    def stalling(*_: object, **__: object) -> list[tuple]:
        end.wait(60)
        raise socket.gaierror

    async def main() -> None:
        asking = [
            asyncio.create_task(fetch_images([(f"http://{name}.example/", "item 0") for name in range(8)], 1, 0.5))
            for _ in range(5)  # 40 names: more than asyncio has threads
        ]
        await asyncio.sleep(0.1)
        async with asyncio.timeout(20):
            assert await asyncio.to_thread(lambda: "decoded") == "decoded"
        for refused in await asyncio.gather(*asking, return_exceptions=True):
            assert "not fetched within 0.5 seconds" in str(refused)
        end.set()

    monkeypatch.setattr(socket, "getaddrinfo", stalling)
    try:
        asyncio.run(main())
    finally:
        end.set()
