"""Count the service's work for Prometheus."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from .metrics_folder import FOLDER

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_SHARE_OVER = 5.0  # seconds
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The counts of a service, over all its processes."""

    def __init__(self) -> None:
        """Make all counts with the value zero."""
        self._registry = registry = CollectorRegistry()
        self._since = time.monotonic()
        self._busy = 0.0
        self.requests = Counter(
            "fampe_requests", "Requests, by route and status code.", ["route", "code"],
            registry=registry,
        )  # fmt: skip
        self.seconds = Histogram(
            "fampe_request_seconds", "Seconds from a request's head to its reply.", ["route"],
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.waiting = Gauge(
            "fampe_queue_images", "Images waiting for the device.", multiprocess_mode="livesum", registry=registry
        )
        self.oldest = Gauge(
            "fampe_queue_oldest_seconds", "Age of the longest-waiting image, in seconds.",
            multiprocess_mode="livemax", registry=registry,
        )  # fmt: skip
        self.queue_seconds = Histogram(
            "fampe_queue_seconds", "Seconds that an image waited for the device.", buckets=_SECONDS, registry=registry
        )
        self.device_seconds = Histogram(
            "fampe_device_seconds", "Seconds of device time per batch.", buckets=_SECONDS, registry=registry
        )
        self.device_share = Gauge(
            "fampe_device_share", "Share of at least the last five seconds in which the device worked.",
            multiprocess_mode="livesum", registry=registry,
        )  # fmt: skip
        self.batches = Histogram("fampe_batch_images", "Images per batch.", buckets=_IMAGES, registry=registry)
        self.passes = Counter("fampe_passes", "Model passes, forward and backward.", registry=registry)
        self.cancelled = Counter("fampe_cancelled", "Images given up before the device began them.", registry=registry)
        self.halvings = Counter("fampe_halvings", "Chunks that did not fit into memory.", registry=registry)

    def batch(self, images: int, passes: int, took: float, waited: Sequence[float]) -> None:
        """Count a batch."""
        self.batches.observe(images)
        self.passes.inc(passes)
        self.device_seconds.observe(took)
        for seconds in waited:
            self.queue_seconds.observe(seconds)

    def halved(self) -> None:
        """Count a chunk that did not fit into memory."""
        self.halvings.inc()

    def look(self, oldest: float, busy: float) -> None:
        """Update the gauges that change by themselves; call it about once a second.

        Args:
            oldest: age of the image that waits longest.
            busy: seconds of device work since the start.
        """
        self.oldest.set(oldest)
        span = time.monotonic() - self._since
        if span >= _SHARE_OVER:
            self.device_share.set((busy - self._busy) / span)
            self._since, self._busy = self._since + span, busy

    def text(self) -> bytes:
        """Write all counts in Prometheus' text format."""
        if os.environ.get(FOLDER):
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
            return generate_latest(registry)
        return generate_latest(self._registry)
