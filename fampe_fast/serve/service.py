"""Combine the parts of a service: the model, its methods, the queue, the device and the counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..answers.environment import processor_of, versions_now
from ..answers.explainer import Answer, noise_for
from ..answers.result import RowResult
from ..catalog import method_options
from ..models.classifier import Classifier
from ..models.identity import identity_of
from ..ops.backends import choice
from ..plots.colours import is_signed
from ..runtime.model_probe import probe
from .asks import Ask, AskError
from .device import Device
from .job_queue import JobQueue, Outcome
from .method_book import MethodBook
from .metrics import Metrics
from .record import ImageName, describe
from .settings import ServiceSettings


class Service:
    """A model with everything needed to answer requests.

    Attributes:
        settings: its limits.
        classifier: the model.
        book: its methods.
        queue: queue of waiting images.
        device: the thread that explains them.
        metrics: its counts.
        draining: whether it refuses new requests.
        in_flight: number of requests being answered.
    """

    def __init__(
        self,
        classifier: Classifier,
        methods: Mapping[str, Mapping[str, Any]],
        settings: ServiceSettings,
        *,
        threads: int,
    ) -> None:
        """Store the model and its methods; ``start`` begins the work.

        Args:
            classifier: on its device.
            methods: names of the methods, the default first, with their options.
            settings: the limits.
            threads: torch's number of threads on a CPU.
        """
        self.settings = settings
        self.classifier = classifier
        self.metrics = Metrics()
        self.queue = JobQueue(settings.queue, self.metrics.waiting.set)
        self.book = MethodBook(classifier, methods, settings.max_passes, settings.internal_batch_size)
        self.device = Device(classifier, self.book, self.queue, settings, self.metrics, threads)
        self.draining = False
        self.in_flight = 0
        noise = noise_for(classifier)
        self._classes = probe(classifier, noise).shape[0]
        identity = identity_of(classifier)
        self._made = {
            "model": identity["model"],
            "model_fingerprint": identity["fingerprint"],
            "device": noise.device.type,
            "backend": choice(noise.device)[0],
            "processor": processor_of(noise.device),
            "threads": threads,
            "versions": versions_now(),
        }

    def start(self) -> None:
        """Start: every method makes a first map, then the service is ready."""
        self.device.start()

    def drain(self) -> None:
        """Refuse new requests; accepted ones are still answered."""
        self.draining = True

    def not_ready(self) -> str:
        """Return the reason to refuse requests, in words that follow "the service is"; empty if ready."""
        if self.draining:
            return "draining"
        if self.device.failure:
            return f"broken: {self.device.failure}"
        return "" if self.device.ready else "warming up"

    def look(self) -> None:
        """Update the gauges that change by themselves."""
        self.metrics.look(self.queue.oldest(), self.device.busy)

    def check_target(self, target: int | None) -> None:
        """Refuse a class that the model does not have.

        Raises:
            AskError: the model does not have the class.
        """
        if target is not None and target >= self._classes:
            raise AskError(f"the target {target} is out of range: the model has {self._classes} classes")

    def described(self) -> dict[str, Any]:
        """Describe the model and the possible requests."""
        size = self.classifier.input_size
        limits = ("queue", "batch_size", "max_passes", "max_bytes", "max_pixels", "deadline")
        return {
            "name": self.settings.name,
            "ready": not self.not_ready(),
            **self._made,
            "classes": self._classes,
            "input_size": list(size),
            "methods": list(self.book.names),
            **{name: getattr(self.settings, name) for name in limits},
        }

    def finished(
        self, ask: Ask, image: ImageName, image_id: int, outcome: Outcome, *, overlay: bool
    ) -> tuple[RowResult, dict[str, Any]]:
        """Convert an outcome to the form of replies, and describe it.

        Args:
            ask: options of the request.
            image: identity of the image.
            image_id: id of the image in the random stream.
            outcome: a map.
            overlay: whether to draw it over the image.
        """
        assert isinstance(outcome.found, Answer)
        recipe = outcome.recipe
        assert recipe is not None
        result = recipe.explainer.finish(outcome.found, "float16", overlay)
        paths = {option.name for option in method_options(ask.method) if option.kind == "path"}
        asked = {
            "method": ask.method,
            # Replies must not contain paths of this machine.
            "options": {name: value for name, value in recipe.options.items() if name not in paths},
            "configuration": recipe.configuration,
            "passes": recipe.passes,
            "seed": recipe.seed,
            "reproducible": ask.reproducible,
        }
        made: dict[str, Any] = {
            **self._made, "batch_size": outcome.batch_size, "internal_batch_size": outcome.chunk
        }  # fmt: skip
        evidence = outcome.found.attribution.sum(0)
        made["signed"] = bool(np.isfinite(evidence).all()) and is_signed(evidence)
        if not ask.reproducible:  # replies of these have the same bytes at every load
            made["queue_ms"] = round(outcome.waited * 1e3, 1)
            made["device_ms"] = round(outcome.took * 1e3, 1)
        return result, describe(result, image, image_id, asked, made)
