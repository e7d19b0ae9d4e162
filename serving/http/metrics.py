"""What /metrics tells, in Prometheus' form.

Where several workers share a port, each writes its figures to files in
$PROMETHEUS_MULTIPROC_DIR, and whoever is asked adds them up.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from ris.engines.errors import ExpressionError

if TYPE_CHECKING:
    from ris.serving.http.service import Answered, Service

SHARED_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""The variable that prometheus_client looks at, once, when it is imported."""

_REQUESTS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_STAGES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Metrics:
    """The counters of one process, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._service: Service | None = None
        own: dict[str, Any] = {"registry": registry}
        self.requests = Counter(
            "ris_http_requests", "Requests by what they were told", ["route", "status"], **own
        )
        self.request_seconds = Histogram(
            "ris_http_request_seconds",
            "From a request's first byte to its answer's last",
            ["route"],
            buckets=_REQUESTS,
            **own,
        )
        self.stage_seconds = Histogram(
            "ris_stage_seconds",
            "Seconds of a question by stage; queue is the waiting",
            ["stage"],
            buckets=_STAGES,
            **own,
        )
        self.expressions = Counter(
            "ris_expressions",
            "Expressions by their answer: mask, no_target, refused",
            ["answer"],
            **own,
        )
        self.images = Counter(
            "ris_image_cache",
            "Questions by whether their image was kept: hit, miss",
            ["found"],
            **own,
        )
        self.reloads = Counter("ris_reloads", "Reloads of the bundle", ["result"], **own)

        summed = {"multiprocess_mode": "livesum", **own}
        self.waiting = Gauge("ris_questions_waiting", "Questions in the queue", **summed)
        self.running = Gauge("ris_questions_running", "Questions that are answered now", **summed)
        self.inside = Gauge("ris_requests_inside", "Requests that were let in", **summed)
        self.held = Gauge("ris_requests_bytes", "Bytes that these hold", **summed)
        self.kept = Gauge("ris_image_cache_images", "Encoded images that are kept", **summed)
        if SHARED_FOLDER not in os.environ:
            ProcessCollector(registry=registry)
            PlatformCollector(registry=registry)

    def watch(self, service: Service) -> None:
        """Gauges are read from the service whenever somebody asks."""
        self._service = service

    def answered(self, answered: Answered[Any]) -> None:
        """Counts one question."""
        self.images.labels("hit" if answered.from_cache else "miss").inc()
        for stage, seconds in answered.seconds.items():
            self.stage_seconds.labels(stage).observe(seconds)
        for answer in answered.answers:
            self.expressions.labels(_kind(answer)).inc()

    def page(self) -> bytes:
        """The text of /metrics."""
        self.refresh()
        registry = self.registry
        if SHARED_FOLDER in os.environ:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)
        return generate_latest(registry)

    def refresh(self) -> None:
        """Brings the gauges up to date."""
        service = self._service
        if service is None:
            return
        self.waiting.set(service.waiting)
        self.running.set(service.running)
        self.inside.set(service.door.requests)
        self.held.set(service.door.bytes)
        current = service.models.current
        self.kept.set(len(current.cache) if current else 0)


def _kind(answer: Any) -> str:
    if isinstance(answer, ExpressionError):
        return "refused"
    return "no_target" if getattr(answer, "is_no_target", False) else "mask"
