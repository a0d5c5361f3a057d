"""What the server counts, for Prometheus."""

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)


SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
ITEMS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        kept = {"namespace": "unime", "registry": self._registry}
        self.requests = Counter("requests", "Requests for embeddings that were answered.", ["status"], **kept)
        self.request_seconds = Histogram(
            "request_seconds", "From a request's arrival to its answer.", buckets=SECONDS, **kept
        )
        self.items = Counter("items", "Items that were embedded.", **kept)
        self.tokens = Counter("tokens", "Tokens that the model read, those of images included.", **kept)
        self.batch_items = Histogram("batch_items", "Items of a batch.", buckets=ITEMS, **kept)
        self.batch_seconds = Histogram("batch_seconds", "The model's time for a batch.", buckets=SECONDS, **kept)
        self._inside = Gauge("requests_inside", "Requests that are read, waiting or being answered.", **kept)
        self._waiting = Gauge("items_waiting", "Items that no batch has taken yet.", **kept)

    def watch(self, inside: Callable[[], int], waiting: Callable[[], int]) -> None:
        """Say where the present state is read whenever the metrics are."""
        self._inside.set_function(inside)
        self._waiting.set_function(waiting)

    def text(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self._registry)
