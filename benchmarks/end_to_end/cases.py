"""Define the end-to-end cases: a classifier, a batch of work, and the ways of doing it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from fampe_fast.models.classifier import Classifier

from .public_attexplore import RESIZE_RATE

OURS = ("fampe", "attexplore", "fampe_one_pass")
PEERS = ("public_attexplore", "integrated_gradients", "smoothgrad", "grad_cam")
ONE_PASS = ("fampe_one_pass", "grad_cam")
"""Methods that make a map of one pass, whatever T and N are."""
BARE = "bare"
LABELS = {
    BARE: "bare passes",
    "fampe": "FAMPE",
    "fampe_one_pass": "FAMPE, 1 pass",
    "attexplore": "AttEXplore, here",
    "public_attexplore": "AttEXplore, public code's way",
    "integrated_gradients": "Captum, integrated gradients",
    "smoothgrad": "Captum, SmoothGrad",
    "grad_cam": "Grad-CAM, pytorch-grad-cam",
}


@dataclass(frozen=True)
class ModelSpec:
    """A classifier; ``embedded`` is the package's own small one.

    Attributes:
        name: as ``load_classifier`` takes it, or ``embedded``.
        weights: a local checkpoint; without one the weights are random, which costs the same.
        mean: one number or one per channel, None for the model's own.
        std: likewise.
        arguments: of the model's constructor.
    """

    name: str
    weights: str | None = None
    mean: float | tuple[float, ...] | None = None
    std: float | tuple[float, ...] | None = None
    arguments: dict[str, Any] = field(default_factory=dict)

    def load(self, device: torch.device) -> Classifier:
        """Load it as it was published, on the device, in evaluation mode, its convolutions channels-last."""
        from fampe_fast import load_classifier, load_embedded_classifier

        if self.name == "embedded":
            model = load_embedded_classifier(device)
        else:
            given = {name: value for name in ("mean", "std") if (value := getattr(self, name)) is not None}
            torch.manual_seed(0)
            model = load_classifier(
                self.name,
                weights=self.weights,
                pretrained=None if self.weights else False,
                device=device,
                model_args=self.arguments,
                fold_batch_norm=False,
                **given,
            )
        return model.to(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Case:
    """A batch of work.

    Attributes:
        batch: B, images per call.
        side: pixels.
        steps: T.
        samples: N; the peers make T * N passes, too.
        diversity: whether this package's methods use input diversity; None: each as by default.
    """

    batch: int
    side: int
    steps: int
    samples: int
    diversity: bool | None = None

    @property
    def passes(self) -> int:
        """Forward and backward passes that the maps of the batch are made of: T * N * B."""
        return self.steps * self.samples * self.batch

    @property
    def enlarged(self) -> int:
        """Side of the frame in which a diversified sample is shown."""
        return int(self.side * RESIZE_RATE)

    def __str__(self) -> str:
        shown = {None: "", True: ", input diversity", False: ", no input diversity"}[self.diversity]
        return f"batch {self.batch}, {self.side} px, T {self.steps}, N {self.samples}{shown}"


@dataclass(frozen=True)
class Way:
    """A method and how it is run.

    Attributes:
        method: a key of ``LABELS``.
        precision: of the model.
        compile: off, on or graphs.
        enlarged: of the bare passes alone: on images of the size that input diversity shows.
        prepared: of the bare passes alone: as this package makes them, its normalisation folded, freed memory kept.
    """

    method: str
    precision: str = "fp32"
    compile: str = "off"
    enlarged: bool = False
    prepared: bool = False

    def maps(self, case: Case) -> int:
        """Count the maps of each image that a call makes: of one pass as many as the others make passes.

        So all calls take as long as T * N passes, and none is timed with caches that the one before has left cold.
        """
        return case.steps * case.samples if self.method in ONE_PASS else 1

    def __str__(self) -> str:
        parts = [LABELS[self.method], self.precision]
        parts += {"off": [], "on": ["compiled"], "graphs": ["CUDA graphs"]}[self.compile]
        return ", ".join(parts + ["as here"] * self.prepared + ["enlarged images"] * self.enlarged)
