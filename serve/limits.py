"""Limits on a single request and on all concurrent requests together."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from .errors import ApiError


# Decoded images in memory may take as much as this many requests of the maximum size: 3 GB at 64 megapixels each.
MAX_REQUESTS_OF_PIXELS = 16


@dataclass(frozen=True)
class Limits:
    """Limits on incoming requests.

    Args:
        max_items (`int`, *optional*, defaults to 2048): Items per request.
        max_body_mb (`float`, *optional*, defaults to 16): Size in MB (10^6 bytes) of a request's body, and of the
            remote images that it names.
        max_characters (`int`, *optional*, defaults to 100000): Characters of an item's text and instruction together.
        max_megapixels (`float`, *optional*, defaults to 64): Size of all images of a request together, in 10^6 pixels.
        max_requests (`int`, *optional*, defaults to 256): Requests that are read, waiting or computed at a time.
    """

    max_items: int = 2048
    max_body_mb: float = 16
    max_characters: int = 100_000
    max_megapixels: float = 64
    max_requests: int = 256

    @property
    def max_body_bytes(self) -> int:
        """Return the maximum size of a body in bytes."""
        return int(self.max_body_mb * 1e6)

    @property
    def max_pixels(self) -> int:
        """Return the maximum number of pixels per request."""
        return int(self.max_megapixels * 1e6)


class Admission:
    """Counters of what is being processed; requests beyond the limits are refused, so that memory stays bounded.

    Args:
        limits ([`Limits`]): The limits.
    """

    def __init__(self, limits: Limits):
        self.limits = limits
        self.requests = 0
        self.pixels = 0

    @contextmanager
    def request(self) -> Iterator[None]:
        """Count one request while the context is open.

        Raises:
            ApiError: 429, if the maximum number of requests is in progress.
        """
        max_requests = self.limits.max_requests
        if self.requests >= max_requests:
            raise ApiError(
                429, f"the server is busy with {max_requests} requests, its limit: try again", "rate_limit_exceeded", 1
            )
        self.requests += 1
        try:
            yield
        finally:
            self.requests -= 1

    @contextmanager
    def decoded(self, pixels: int) -> Iterator[None]:
        """Count the decoded images of one request while the context is open.

        Args:
            pixels (`int`): Pixels of all images of the request.

        Raises:
            ValueError: The images exceed the limit of a request.
            ApiError: 429, if the images of concurrent requests leave no memory for them.
        """
        if pixels > self.limits.max_pixels:
            raise ValueError(
                f"the images of this request have {pixels / 1e6:.1f} megapixels together, the limit is "
                f"{self.limits.max_megapixels:g}: make them smaller or send fewer"
            )
        if self.pixels + pixels > MAX_REQUESTS_OF_PIXELS * self.limits.max_pixels:
            raise ApiError(429, "the server's memory for images is full: try again", "rate_limit_exceeded", 1)
        self.pixels += pixels
        try:
            yield
        finally:
            self.pixels -= pixels
