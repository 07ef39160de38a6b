"""Build the compared methods, each as a call that makes the maps of a batch."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fampe_fast.engine.precision import autocast, matrix_precision
from fampe_fast.errors import FampeWarning
from fampe_fast.models import fold_batch_norm
from fampe_fast.runtime.activations import find_activations
from fampe_fast.runtime.compilation import with_code_of_its_own
from fampe_fast.runtime.cpu_memory import kept_memory

from ..common.timing import Call
from .cases import BARE, ONE_PASS, OURS, Case, Way
from .counting import Counted, MeanColour, SmallConvolution
from .public_attexplore import PublicAttEXplore


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
        """Make them of a channels-last model, which is shown an image (1, C, H, W); without a plain one if so asked."""
        other = copy.deepcopy(model).to(memory_format=torch.contiguous_format).requires_grad_(True) if plain else model
        return cls(model, other, fold_batch_norm(model, image).to(memory_format=torch.channels_last))


def build(
    way: Way, case: Case, models: Models, chunk: int, images: Tensor, targets: Tensor, *, warm: bool = False
) -> Call:
    """Build the call that makes the batch's maps, or as many bare passes as ``bare_passes`` says.

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
            diversity=0.0 if case.diversity is False else 0.5,
        )
        return lambda: public.attribute(images, targets)
    if way.method == "grad_cam":
        return repeated(grad_cam(models.best, way.precision, images, targets), way.maps(case))
    return _captum(way, case, _InPrecision(models.best, way.precision), chunk, images, targets)


def grad_cam(model: nn.Module, precision: str, images: Tensor, targets: Tensor) -> Call:
    """Build Grad-CAM as users of pytorch-grad-cam call it: of the last activation, with trainable weights."""
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    layer = find_activations(model, images[:1])[-1]
    module = layer.module()
    assert module is not None
    reshape = None if layer.layout == "nchw" else layer.spatial
    cam = GradCAM(model=_InPrecision(model, precision), target_layers=[module], reshape_transform=reshape)
    last = images.contiguous(memory_format=torch.channels_last)
    wanted = [ClassifierOutputTarget(target) for target in targets.tolist()]
    parameters = list(model.parameters())

    def run() -> Any:
        flags = [parameter.requires_grad for parameter in parameters]
        model.requires_grad_(True)  # the package calls backward(); the other ways do without
        try:
            return cam(input_tensor=last, targets=wanted)
        finally:
            for parameter, flag in zip(parameters, flags, strict=True):
                parameter.requires_grad_(flag)

    return run


def _ours(way: Way, case: Case, model: nn.Module, chunk: int, images: Tensor, targets: Tensor, warm: bool) -> Call:
    from fampe_fast import FAMPE, AttEXplore, warmup

    run: dict[str, Any] = {"precision": way.precision, "compile": way.compile}
    method: FAMPE | AttEXplore
    if way.method in ONE_PASS:
        method = FAMPE(model, passes=1, **run)
    else:  # the path alone: T * N passes
        if case.diversity is not None:
            run["input_diversity"] = case.diversity
        path = {"fampe": FAMPE, "attexplore": AttEXplore}[way.method]
        method = path(model, steps=case.steps, samples=case.samples, views=0, **run)
    if warm:
        size = case.side, case.side
        warmup(method, size, batch=case.batch, target=targets, internal_batch_size=chunk, device=images.device)
    return repeated(lambda: method.attribute(images, targets, internal_batch_size=chunk), way.maps(case))


def repeated(call: Call, count: int) -> Call:
    """Make one call of several."""

    def run() -> None:
        for _ in range(count):
            call()

    return run


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
        """Return float32 logits (float64 of a model in float64)."""
        with autocast(self._precision, pixels.device):  # type: ignore[arg-type]
            found: Tensor = self.model(pixels)
        return found if found.dtype == torch.float64 else found.float()


def bare_passes(case: Case, chunk: int, device: torch.device) -> int:
    """Return how many bare passes of ``chunk`` images are timed at once."""
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


@contextmanager
def failing_uncompiled() -> Iterator[None]:
    """Raise where compilation fails: what then runs uncompiled is no time of compiled code."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "torch.compile failed", FampeWarning)
        yield


def in_precision(call: Call, precision: str, device: torch.device) -> Call:
    """Allow tf32 in a call where the precision is tf32 and nowhere else, for peers and bare passes, too."""

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
    """Count with a model that does so; its random placements are those of the timed run where they depend on a seed.

    The images are small, as their size changes no count: the CPU, which counts, draws all samples.
    """
    case = replace(case, side=min(case.side, 32))
    model = Counted(SmallConvolution() if way.method in ONE_PASS else MeanColour())
    images = torch.rand(case.batch, 3, case.side, case.side, generator=torch.Generator().manual_seed(2))
    targets = torch.zeros(case.batch, dtype=torch.long)
    with torch.random.fork_rng():
        call = build(Way(way.method), case, Models(model, model, model), chunk, images, targets)
        call()  # a model that is new is asked what its output is like first
        model.forward_images.clear()
        model.begun_images.clear()
        torch.manual_seed(0)
        call()
    forward, backward = model.forward_images, model.begun_images
    enlarged = sum(count for (_, width), count in forward.items() if width > case.side)
    total = sum(forward.values())
    maps = case.batch * way.maps(case)
    return Passes(total / maps, sum(backward.values()) / maps, enlarged / max(total, 1))


def load_images(folder: str | None, batch: int, side: int, model: Any) -> Tensor:
    """Return (B, 3, side, side) in [0, 1]: the first B files of a folder, over and over, or noise."""
    if folder is None:
        return torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(0))
    from fampe_fast.images import read_image

    found: list[Tensor] = []
    for path in sorted(Path(folder).iterdir()):
        if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp") and len(found) < batch:
            found.append(model.transform(read_image(path)))
    if not found:
        raise ValueError(f"no images in {folder}")
    images = torch.stack([found[i % len(found)] for i in range(batch)])
    if images.shape[-2:] != (side, side):
        images = torch.nn.functional.interpolate(images, size=(side, side), mode="bilinear", antialias=True)
    return images.clamp(0, 1)
