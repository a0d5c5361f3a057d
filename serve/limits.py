"""What one client may ask of the server, and all of them together."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from .errors import ApiError


REQUESTS_OF_PIXELS = 16  # largest requests whose decoded images may be in memory at a time: 3 GB of 64 megapixels


@dataclass(frozen=True)
class Limits:
    """Limits on what comes in.

    Args:
        max_items (`int`): Items of a request.
        max_body_mb (`float`): Size of a request's body, and of the remote images it names, in 10^6 bytes.
        max_characters (`int`): Characters of an item's text and instruction.
        max_megapixels (`float`): Size of all images of a request together, in 10^6 pixels.
        max_requests (`int`): Requests that are read, waiting or being answered at a time.
    """

    max_items: int = 2048
    max_body_mb: float = 16
    max_characters: int = 100_000
    max_megapixels: float = 64
    max_requests: int = 256

    @property
    def max_body(self) -> int:
        """Most bytes of a body."""
        return int(self.max_body_mb * 1e6)

    @property
    def max_pixels(self) -> int:
        """Most pixels of a request."""
        return int(self.max_megapixels * 1e6)


class Admission:
    """Counts what is in the server, and turns away what is beyond the limits: memory stays bounded whoever comes."""

    def __init__(self, limits: Limits):
        self.limits = limits
        self.requests = 0
        self.pixels = 0

    @contextmanager
    def request(self) -> Iterator[None]:
        """Let one request in.

        Raises:
            ApiError: 429: too many are inside.
        """
        if self.requests >= self.limits.max_requests:
            most = self.limits.max_requests
            raise ApiError(
                429, f"the server is busy with {most} requests, its limit: try again", "rate_limit_exceeded", 1
            )
        self.requests += 1
        try:
            yield
        finally:
            self.requests -= 1

    @contextmanager
    def decoded(self, pixels: int) -> Iterator[None]:
        """Let a request's images be decoded.

        Raises:
            ValueError: They are more than one request may send.
            ApiError: 429: those of the requests inside leave no room.
        """
        if pixels > self.limits.max_pixels:
            raise ValueError(
                f"the images of this request have {pixels / 1e6:.1f} megapixels together, the limit is "
                f"{self.limits.max_megapixels:g}: make them smaller or send fewer"
            )
        if self.pixels + pixels > REQUESTS_OF_PIXELS * self.limits.max_pixels:
            raise ApiError(429, "the server's memory for images is full: try again", "rate_limit_exceeded", 1)
        self.pixels += pixels
        try:
            yield
        finally:
            self.pixels -= pixels
