"""Fetching of images from the web (`--allow-remote-images`): from public addresses only, with size and time limits.

A server that fetches URLs from clients can be made to reach into its own network. Therefore the host name is resolved
here, all its addresses must be public, and the connection goes to the checked address. Each redirect is checked again.
"""

import asyncio
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import httpx2


Address = IPv4Address | IPv6Address
MAX_REDIRECTS = 3
MAX_CONCURRENT_FETCHES = 8  # per request
# Name lookups get threads of their own, so that a slow name server does not block other work.
DNS_THREADS = ThreadPoolExecutor(MAX_CONCURRENT_FETCHES, "lookup")
# All global IPv6 addresses. Outside this range are embedded IPv4 addresses (::10.0.0.1, NAT64), which a gateway may
# route into its own network, although Python calls them global.
GLOBAL_IPV6 = ip_network("2000::/3")


def is_public(address: Address) -> bool:
    """Return whether an address is reachable from the whole internet."""
    if isinstance(address, IPv6Address):
        embedded = address.ipv4_mapped or address.sixtofour
        if embedded is not None:
            return is_public(embedded)
        if address not in GLOBAL_IPV6:
            return False
    return address.is_global and not address.is_multicast


async def fetch_images(
    urls: list[tuple[str, str]],
    max_bytes: int,
    seconds: float = 20,
    allowed: Callable[[Address], bool] = is_public,
) -> list[bytes]:
    """Fetch the images of one request.

    Args:
        urls (`list`): Pairs of a URL and the name of its item, for error messages.
        max_bytes (`int`): Maximum size of all images together.
        seconds (`float`, *optional*, defaults to 20): Time limit for all images together.
        allowed (`Callable`, *optional*, defaults to [`is_public`]): Decides whether to connect to an address.

    Returns:
        `list[bytes]`: The encoded images in the order of `urls`.

    Raises:
        ValueError: An image could not be fetched or was refused; the message names the item.
    """
    budget = [max_bytes]
    slots = asyncio.Semaphore(MAX_CONCURRENT_FETCHES)

    async def fetch(client: httpx2.AsyncClient, url: str, name: str) -> bytes:
        async with slots:
            try:
                return await _fetch(client, url, name, budget, allowed)
            except (httpx2.HTTPError, httpx2.InvalidURL, UnicodeError, OSError):
                raise ValueError(
                    f"{name}: the image cannot be fetched: check its URL, or send it as a data URL"
                ) from None

    try:
        # A proxy from the environment would make connections that are not checked here.
        async with asyncio.timeout(seconds), httpx2.AsyncClient(trust_env=False) as client:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(fetch(client, url, name)) for url, name in urls]
    except TimeoutError:
        raise ValueError(f"the images were not fetched within {seconds:g} seconds: send them as data URLs") from None
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


async def _fetch(
    client: httpx2.AsyncClient, address: str, name: str, budget: list[int], allowed: Callable[[Address], bool]
) -> bytes:
    url = httpx2.URL(address)
    for _ in range(1 + MAX_REDIRECTS):
        if url.scheme not in ("http", "https") or not url.host:
            raise ValueError(f"{name}: an image URL must begin with data:, http:// or https://")
        checked = await _resolve(url.host, url.port or {"http": 80, "https": 443}[url.scheme], name, allowed)
        request = client.build_request(
            "GET",
            url.copy_with(host=checked),
            headers={"Host": url.netloc.decode("ascii"), "Accept": "image/*", "Accept-Encoding": "identity"},
            extensions={"sni_hostname": url.raw_host.decode("ascii")},  # verify the certificate of the host name
        )
        response = await client.send(request, stream=True)
        try:
            if response.has_redirect_location:
                url = url.join(response.headers["location"])
                continue
            if response.status_code != 200:
                raise ValueError(f"{name}: the image's host answered {response.status_code}: check its URL")
            return await _read(response, name, budget)
        finally:
            await response.aclose()
    raise ValueError(f"{name}: the image URL redirects more than {MAX_REDIRECTS} times: give the final URL")


async def _resolve(host: str, port: int, name: str, allowed: Callable[[Address], bool]) -> str:
    look_up = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    infos = await asyncio.get_running_loop().run_in_executor(DNS_THREADS, look_up)
    addresses = [ip_address(str(sockaddr[0]).split("%")[0]) for *_, sockaddr in infos]
    if not all(map(allowed, addresses)):
        raise ValueError(f"{name}: the image URL is not on the public internet: send the image as a data URL")
    return str(addresses[0])


async def _read(response: httpx2.Response, name: str, budget: list[int]) -> bytes:
    chunks = []
    async for chunk in response.aiter_raw():
        budget[0] -= len(chunk)
        if budget[0] < 0:
            raise ValueError(f"{name}: the images to fetch are too large: send smaller ones")
        chunks.append(chunk)
    return b"".join(chunks)
