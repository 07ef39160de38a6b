"""What is compared, each as a call that makes the maps of a batch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fampe_fast.engine.precision import autocast, matrix_precision
from fampe_fast.models import fold_batch_norm
from fampe_fast.runtime.compilation import with_code_of_its_own
from fampe_fast.runtime.cpu_memory import kept_memory

from .counting import Counted, MeanColour
from .public_attexplore import RESIZE_RATE, PublicAttEXplore

OURS = ("fampe", "attexplore")
PEERS = ("public_attexplore", "integrated_gradients", "smoothgrad")
BARE = "bare"
LABELS = {
    BARE: "bare passes",
    "fampe": "FAMPE",
    "attexplore": "AttEXplore, here",
    "public_attexplore": "AttEXplore, public code's way",
    "integrated_gradients": "Captum, integrated gradients",
    "smoothgrad": "Captum, SmoothGrad",
}


@dataclass(frozen=True)
class ModelSpec:
    """Which classifier; ``embedded`` is the package's own small one.

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

    def load(self, device: torch.device) -> nn.Module:
        """The classifier as it was published, on the device, in evaluation mode, its convolutions channels-last."""
        from fampe_fast import load_classifier, load_embedded_classifier

        if self.name == "embedded":
            model: nn.Module = load_embedded_classifier()
            model = model.to(device)
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
        diversity: whether the methods that use input diversity by default do so here.
    """

    batch: int
    side: int
    steps: int
    samples: int
    diversity: bool

    @property
    def passes(self) -> int:
        """Forward and backward passes that the maps of the batch are made of: T * N * B."""
        return self.steps * self.samples * self.batch

    @property
    def enlarged(self) -> int:
        """Side of the frame in which a diversified sample is shown."""
        return int(self.side * RESIZE_RATE)

    def __str__(self) -> str:
        shown = "" if self.diversity else ", no input diversity"
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

    def __str__(self) -> str:
        parts = [LABELS[self.method], self.precision]
        parts += {"off": [], "on": ["compiled"], "graphs": ["CUDA graphs"]}[self.compile]
        return ", ".join(parts + ["as here"] * self.prepared + ["enlarged images"] * self.enlarged)


Call = Callable[[], Any]


@dataclass(frozen=True)
class Models:
    """One classifier in three forms.

    Attributes:
        best: channels-last, for Captum and the bare passes.
        plain: contiguous, its parameters trainable, as the public code has it.
        ours: channels-last, batch normalisation folded, as ``load_classifier`` gives it to this package's methods.
    """

    best: nn.Module
    plain: nn.Module
    ours: nn.Module

    @classmethod
    def of(cls, model: nn.Module, image: Tensor, *, plain: bool = True) -> Models:
        """The forms of a channels-last model, which is shown an image (1, C, H, W); without a plain one if so asked."""
        other = copy.deepcopy(model).to(memory_format=torch.contiguous_format).requires_grad_(True) if plain else model
        return cls(model, other, fold_batch_norm(model, image).to(memory_format=torch.channels_last))


def build(
    way: Way, case: Case, models: Models, chunk: int, images: Tensor, targets: Tensor, *, warm: bool = False
) -> Call:
    """The call that makes the batch's maps, or as many bare passes as ``bare_passes`` says.

    Args:
        way: what to run.
        case: how much of it.
        models: the classifier.
        chunk: images per model pass, where the method has a say in it.
        images: (B, C, H, W).
        targets: (B,) int64.
        warm: compile ahead what this package would compile in the course of its calls.
    """
    if way.method == BARE:
        return _bare(way, case, models.ours if way.prepared else models.best, chunk, images)
    if way.method in OURS:
        return _ours(way, case, models.ours, chunk, images, targets, warm)
    if way.method == "public_attexplore":
        public = PublicAttEXplore(
            _InPrecision(models.plain, way.precision),
            steps=case.steps,
            samples=case.samples,
            diversity=0.5 if case.diversity else 0.0,
        )
        return lambda: public.attribute(images, targets)
    return _captum(way, case, _InPrecision(models.best, way.precision), chunk, images, targets)


def _ours(way: Way, case: Case, model: nn.Module, chunk: int, images: Tensor, targets: Tensor, warm: bool) -> Call:
    from fampe_fast import FAMPE, AttEXplore, warmup

    method = {"fampe": FAMPE, "attexplore": AttEXplore}[way.method](
        model,
        steps=case.steps,
        samples=case.samples,
        precision=way.precision,
        compile=way.compile,
        **({} if case.diversity else {"input_diversity": False}),
    )
    if warm:
        size = case.side, case.side
        warmup(method, size, batch=case.batch, target=targets, internal_batch_size=chunk, device=images.device)
    return lambda: method.attribute(images, targets, internal_batch_size=chunk)


def _captum(way: Way, case: Case, model: nn.Module, chunk: int, images: Tensor, targets: Tensor) -> Call:
    import captum.attr

    passes = case.steps * case.samples

    def logits(pixels: Tensor) -> Tensor:
        found: Tensor = model(pixels.contiguous(memory_format=torch.channels_last))
        return found

    if way.method == "integrated_gradients":
        gradients = captum.attr.IntegratedGradients(logits)
        # Captum warns of less than a pass of all images, and then makes one.
        size = max(chunk, len(images))
        return lambda: gradients.attribute(images, target=targets, n_steps=passes, internal_batch_size=size)
    tunnel = captum.attr.NoiseTunnel(captum.attr.Saliency(logits))
    leaves = images.clone().requires_grad_(True)
    return lambda: tunnel.attribute(
        leaves,
        nt_type="smoothgrad",
        nt_samples=passes,
        nt_samples_batch_size=max(1, min(passes, chunk // len(images))),
        stdevs=0.15,
        target=targets,
        abs=False,
    )


class _InPrecision(nn.Module):
    """A model that runs in the precision asked for, as this package's methods run it."""

    def __init__(self, model: nn.Module, precision: str) -> None:
        super().__init__()
        self.model, self._precision = model, precision
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        """Float32 logits (float64 of a model in float64)."""
        with autocast(self._precision, pixels.device):  # type: ignore[arg-type]
            found: Tensor = self.model(pixels)
        return found if found.dtype == torch.float64 else found.float()


def bare_passes(case: Case, chunk: int, device: torch.device) -> int:
    """How many bare passes of ``chunk`` images are timed at once."""
    return -(-min(case.passes, 64 if device.type == "cpu" else 1024) // chunk)


def _call_of(model: nn.Module) -> Callable[[Tensor], Tensor]:
    def call(pixels: Tensor) -> Tensor:
        found: Tensor = model(pixels)
        return found

    return with_code_of_its_own(call)  # torch compiles each code object eight times at most


def _bare(way: Way, case: Case, model: nn.Module, chunk: int, images: Tensor) -> Call:
    side = case.enlarged if way.enlarged else case.side
    generator = torch.Generator().manual_seed(1)
    pixels = torch.rand(chunk, images.shape[1], side, side, generator=generator).to(images.device)
    pixels = pixels.contiguous(memory_format=torch.channels_last).requires_grad_(True)
    run: Callable[[Tensor], Tensor] = model
    if way.compile != "off":
        options = {"mode": "reduce-overhead"} if way.compile == "graphs" else {}
        compiled = torch.compile(_call_of(model), fullgraph=True, dynamic=False, **options)

        def run(pixels: Tensor) -> Tensor:
            if way.compile == "graphs":  # or a pass takes the last one's output for one that is still wanted
                torch.compiler.cudagraph_mark_step_begin()
            found: Tensor = compiled(pixels)
            return found

    count = bare_passes(case, chunk, images.device)
    parameters = list(model.parameters())

    def passes() -> None:
        with kept_memory(pixels.device) if way.prepared else nullcontext():
            run_passes()

    def run_passes() -> None:
        wanted = [parameter.requires_grad for parameter in parameters]
        for parameter in parameters:
            parameter.requires_grad_(False)
        try:
            for _ in range(count):
                with autocast(way.precision, pixels.device):  # type: ignore[arg-type]
                    output = run(pixels)
                torch.autograd.grad(output.float().logsumexp(1).sum(), pixels)
        finally:
            for parameter, flag in zip(parameters, wanted, strict=True):
                parameter.requires_grad_(flag)

    return passes


def in_precision(call: Call, precision: str, device: torch.device) -> Call:
    """The call with tf32 allowed where the precision is tf32 and nowhere else, for peers and bare passes, too."""

    def run() -> Any:
        with matrix_precision(precision, device):  # type: ignore[arg-type]
            return call()

    return run


@dataclass(frozen=True)
class Passes:
    """Passes of the model per map, counted.

    Attributes:
        forward: forward passes.
        backward: backward passes.
        enlarged: share of the forward passes that saw images enlarged by input diversity.
    """

    forward: float
    backward: float
    enlarged: float


def count_passes(way: Way, case: Case, chunk: int) -> Passes:
    """By a model that counts; its random placements are those of the timed run where they depend on a seed."""
    model = Counted(MeanColour())
    images = torch.rand(case.batch, 3, case.side, case.side, generator=torch.Generator().manual_seed(2))
    targets = torch.zeros(case.batch, dtype=torch.long)
    with torch.random.fork_rng():
        call = build(Way(way.method), case, Models(model, model, model), chunk, images, targets)
        call()  # a model that is new is asked what its output is like first
        model.forward_images.clear()
        model.backward_images.clear()
        torch.manual_seed(0)
        call()
    forward, backward = model.forward_images, model.backward_images
    enlarged = sum(count for (_, width), count in forward.items() if width > case.side)
    total = sum(forward.values())
    return Passes(total / case.batch, sum(backward.values()) / case.batch, enlarged / max(total, 1))


def load_images(folder: str | None, batch: int, side: int, model: Any) -> Tensor:
    """(B, 3, side, side) in [0, 1]: the first B files of a folder, over and over, or noise."""
    if folder is None:
        return torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(0))
    from fampe_fast.images import read_image

    found = []
    for path in sorted(Path(folder).iterdir()):
        if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp") and len(found) < batch:
            found.append(model.transform(read_image(path)))
    if not found:
        raise ValueError(f"no images in {folder}")
    images = torch.stack([found[i % len(found)] for i in range(batch)])
    if images.shape[-2:] != (side, side):
        images = torch.nn.functional.interpolate(images, size=(side, side), mode="bilinear", antialias=True)
    return images.clamp(0, 1)
