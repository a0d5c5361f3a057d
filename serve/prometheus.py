"""Prometheus metrics of the server."""

from collections.abc import Callable
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)


BUCKETS_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
BUCKETS_ITEMS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        shared: dict[str, Any] = {"namespace": "unime", "registry": self._registry}
        self.requests = Counter("requests", "Embedding requests that were answered.", ["status"], **shared)
        self.request_seconds = Histogram(
            "request_seconds", "Time from a request's arrival to its answer.", buckets=BUCKETS_SECONDS, **shared
        )
        self.items = Counter("items", "Items that were embedded.", **shared)
        self.tokens = Counter("tokens", "Tokens that the model read, image tokens included.", **shared)
        self.batch_items = Histogram("batch_items", "Items per batch.", buckets=BUCKETS_ITEMS, **shared)
        self.batch_seconds = Histogram("batch_seconds", "Computing time per batch.", buckets=BUCKETS_SECONDS, **shared)
        self._requests = Gauge("requests_in_progress", "Requests that are being read, waiting or computed.", **shared)
        self._waiting = Gauge("items_waiting", "Items that are not in a batch yet.", **shared)

    def watch(self, requests: Callable[[], int], waiting: Callable[[], int]) -> None:
        """Set the functions that give the current numbers of requests in progress and of waiting items."""
        self._requests.set_function(requests)
        self._waiting.set_function(waiting)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)
