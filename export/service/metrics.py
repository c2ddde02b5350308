"""Figures for Prometheus, in a registry of their own, so that two servers do not mix."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

BATCHES = (1, 2, 3, 4, 6, 8, 12, 16, 32)
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """What happened since the start, and how this process is."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self._requests = Counter(
            "metricgold_requests", "Answers", ["route", "status"], registry=self._registry
        )
        self._latency = Histogram(
            "metricgold_request_seconds",
            "From a request's first byte to its answer's last",
            ["route"],
            buckets=SECONDS,
            registry=self._registry,
        )
        self._batch = Histogram(
            "metricgold_batch_pictures",
            "Pictures that went through the networks together",
            buckets=BATCHES,
            registry=self._registry,
        )
        self._stages = Histogram(
            "metricgold_stage_seconds",
            "A picture's time by stage",
            ["stage"],
            buckets=SECONDS,
            registry=self._registry,
        )
        self._queue = Gauge(
            "metricgold_queue_pictures", "Pictures that wait", registry=self._registry
        )
        self._inside = Gauge(
            "metricgold_requests_inside", "Requests being served", registry=self._registry
        )

    def watch(self, queue: Callable[[], float], inside: Callable[[], float]) -> None:
        """Ask these whenever somebody reads the figures."""
        self._queue.set_function(queue)
        self._inside.set_function(inside)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count an answer."""
        self._requests.labels(route, status).inc()
        self._latency.labels(route).observe(seconds)

    def batch(self, pictures: int) -> None:
        """Count a batch."""
        self._batch.observe(pictures)

    def stages(self, seconds: Mapping[str, float]) -> None:
        """Count a picture's stages."""
        for stage, taken in seconds.items():
            self._stages.labels(stage).observe(taken)

    def text(self) -> bytes:
        """In Prometheus' text format 0.0.4."""
        return generate_latest(self._registry)
