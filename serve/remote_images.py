"""Images from the web, where `--allow-remote-images` allows them: only from public addresses, small and soon.

A server that fetches what strangers name can be led into its own network. So a host's name is resolved here, every
address it has must be public, and the connection goes to the address that was checked, at each redirect anew.
"""

import asyncio
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import httpx2


Address = IPv4Address | IPv6Address
REDIRECTS = 3
AT_A_TIME = 8
LOOKUPS = ThreadPoolExecutor(AT_A_TIME, "lookup")  # threads of their own: a name server that stalls holds up no others
# All of IPv6 that is given out for the internet; beyond it are IPv4 addresses in disguise (::10.0.0.1, NAT64), which a
# gateway may take into its own network, and Python calls them global.
GIVEN_OUT = ip_network("2000::/3")


def is_public(address: Address) -> bool:
    """Say whether an address is one that anybody on the internet could reach."""
    if isinstance(address, IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is not None:
            return is_public(inner)
        if address not in GIVEN_OUT:
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
        urls (`list`): Pairs of an address and of the item's name, for errors.
        max_bytes (`int`): Most bytes of all of them together.
        seconds (`float`): Most seconds for all of them together.
        allowed (`Callable`): Which addresses may be connected to.

    Returns:
        `list[bytes]`: The encoded images in the order of `urls`.

    Raises:
        ValueError: One could not be had, or was refused; it names the item.
    """
    room = [max_bytes]
    turns = asyncio.Semaphore(AT_A_TIME)

    async def fetch(client: httpx2.AsyncClient, url: str, where: str) -> bytes:
        async with turns:
            try:
                return await _fetch(client, url, where, room, allowed)
            except (httpx2.HTTPError, httpx2.InvalidURL, UnicodeError, OSError):
                raise ValueError(f"{where}: the image cannot be fetched: check its address, or send it") from None

    try:
        # Proxies of the environment would connect for us, to wherever they like.
        async with asyncio.timeout(seconds), httpx2.AsyncClient(trust_env=False) as client:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(fetch(client, url, where)) for url, where in urls]
    except TimeoutError:
        raise ValueError(f"the images were not fetched within {seconds:g} seconds: send them as data URLs") from None
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


async def _fetch(
    client: httpx2.AsyncClient, address: str, where: str, room: list[int], allowed: Callable[[Address], bool]
) -> bytes:
    url = httpx2.URL(address)
    for _ in range(1 + REDIRECTS):
        if url.scheme not in ("http", "https") or not url.host:
            raise ValueError(f"{where}: an image's address must begin with data:, http:// or https://")
        checked = await _resolve(url.host, url.port or {"http": 80, "https": 443}[url.scheme], where, allowed)
        request = client.build_request(
            "GET",
            url.copy_with(host=checked),
            headers={"Host": url.netloc.decode("ascii"), "Accept": "image/*", "Accept-Encoding": "identity"},
            extensions={"sni_hostname": url.raw_host.decode("ascii")},  # the certificate must be the name's
        )
        response = await client.send(request, stream=True)
        try:
            if response.has_redirect_location:
                url = url.join(response.headers["location"])
                continue
            if response.status_code != 200:
                raise ValueError(f"{where}: the image's host answered {response.status_code}")
            return await _read(response, where, room)
        finally:
            await response.aclose()
    raise ValueError(f"{where}: the image's address redirects more than {REDIRECTS} times")


async def _resolve(host: str, port: int, where: str, allowed: Callable[[Address], bool]) -> str:
    look_up = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    found = await asyncio.get_running_loop().run_in_executor(LOOKUPS, look_up)
    addresses = [ip_address(sockaddr[0].split("%")[0]) for *_, sockaddr in found]
    if not all(map(allowed, addresses)):
        raise ValueError(f"{where}: the image's address is not on the public internet: send the image itself")
    return str(addresses[0])


async def _read(response: httpx2.Response, where: str, room: list[int]) -> bytes:
    chunks = []
    async for chunk in response.aiter_raw():
        room[0] -= len(chunk)
        if room[0] < 0:
            raise ValueError(f"{where}: the images to fetch are too large: send smaller ones")
        chunks.append(chunk)
    return b"".join(chunks)
