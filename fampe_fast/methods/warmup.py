"""Compile methods ahead of their first use."""

from __future__ import annotations

import copy
import dataclasses
import time
import warnings
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from ..checks import check_count
from ..engine.config import PathConfig
from ..engine.placements import draw_placements
from ..engine.targets import Target
from ..errors import FampeWarning
from ..ops import backends
from ..runtime.compilation import compiled_graphs, resolve_compile
from ..runtime.decisions import collected_decisions, decided_at_once
from ..runtime.model import chunk_size
from ..runtime.parts import parts_of
from .base import PathMethod
from .fampe import FAMPE
from .forgrad import FORGrad

__all__ = ["WarmUp", "warmup"]


@dataclass(frozen=True)
class WarmUp:
    """The result of ``warmup``.

    Attributes:
        graphs: number of graphs that ``torch.compile`` made: of the loop over the samples with the model inside, and on
            a CPU of the random number generator.
        kernels: sorted names of the Triton kernels that were compiled or loaded.
        steps: number of steps of the path that were run for it.
        seconds: duration.
        note: the reason why nothing was compiled, or empty.
        decisions: what ``auto`` decided, one sentence each: whether CUDA graphs are used, for example.
    """

    graphs: int
    kernels: tuple[str, ...]
    steps: int
    seconds: float
    note: str = ""
    decisions: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Tell whether anything was compiled."""
        return bool(self.graphs or self.kernels)

    def __str__(self) -> str:
        if not self:
            return f"nothing compiled in {self.seconds:.1f} s: {self.note}"
        parts = [f"{self.graphs} graph{'s' if self.graphs > 1 else ''}"] * bool(self.graphs)
        parts += [f"kernels {', '.join(self.kernels)}"] * bool(self.kernels)
        return f"compiled {' and '.join(parts)} in {self.seconds:.1f} s"


def warmup(
    method: Any,
    image_size: int | Sequence[int] | None = None,
    *,
    batch: int = 1,
    channels: int = 3,
    target: Target = 0,
    internal_batch_size: int | None = None,
    device: torch.device | str | None = None,
) -> WarmUp:
    """Compile a method's loop and kernels for one image size, so that its first map is as fast as the others.

    It explains noise, with the fewest steps that have every kind of sample (all steps where CUDA graphs may be used,
    which are captured for each chunk size). With ``compile="auto"`` the passes on a GPU are compiled from then on, a
    single pass of a few images is captured in a CUDA graph, and what else waits for a long run is decided now. The
    compiled code is used by all methods with that model and all later calls with images of that size. With
    ``compile="on"`` one warm-up suffices for all batch and chunk sizes; with ``graphs`` pass the sizes that will be
    used. If the method was called before with the same sizes, nothing is compiled. The compilers also cache their
    results on disk (torch in ``TORCHINDUCTOR_CACHE_DIR``, Triton in ``TRITON_CACHE_DIR``): a process that finds them
    there warms up in a fraction of the time.

    Args:
        method: the method to compile: ``FAMPE``, ``AttEXplore``, or ``FORGrad`` around one of them; or a model, for
            ``FAMPE`` with its defaults. For other methods nothing is compiled.
        image_size: (H, W) in pixels, or one number for a square; None for the model's own ``input_size``.
        batch: images per call.
        channels: channels per image.
        target: as for ``attribute``; any valid class.
        internal_batch_size: as for ``attribute``.
        device: device of the images; None for the model's device.

    Returns:
        A ``WarmUp``; it is false, with a note of the reason, if there was nothing to compile, as on a CPU with
        ``compile="off"`` and without a C++ compiler.

    Raises:
        TypeError: neither a method nor a model, or sizes that are not whole numbers.
        ValueError: sizes that are too small or unknown, or a model that ``attribute`` refuses.

    Example:
        >>> print(warmup(FAMPE(classifier), (224, 224), batch=8))
        compiled 2 graphs and kernels accumulate, band_mix, ... in 41.3 s
    """
    path = _path_method(method)
    if path is None:
        return WarmUp(0, (), 0, 0.0, f"{type(method).__name__} compiles nothing")
    height, width = _size(path.forward_func, image_size)
    where = torch.device(device) if device is not None else _device_of(path.forward_func)
    shape = (check_count("batch", batch), check_count("channels", channels), height, width)
    captures = where.type == "cuda" and path.config.compile == "auto"
    steps = path.config.steps if captures else _steps_needed(path.config, shape, chunk_size(internal_batch_size, where))
    # A copy, so that the method keeps its number of steps; compiled code is cached by model and kind, not by method.
    twin = copy.copy(path)
    twin.config = dataclasses.replace(path.config, steps=steps)
    lower, upper = path.config.bounds
    noise = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * (upper - lower) + lower
    graphs, kernels = compiled_graphs(), backends.compiled_kernels()
    start = time.perf_counter()
    with _mixes(where), decided_at_once(), collected_decisions() as decisions, warnings.catch_warnings():
        # Noise may have no gradient, which is no reason to warn; failures of torch.compile are still reported.
        warnings.filterwarnings("ignore", "the (gradient|evidence) of image", FampeWarning)
        twin.attribute(noise.to(where), target, internal_batch_size=internal_batch_size)
    if where.type == "cuda":
        torch.cuda.current_stream(where).synchronize()
    seconds = time.perf_counter() - start
    new_kernels = tuple(
        sorted(name for name, count in backends.compiled_kernels().items() if count > kernels.get(name, 0))
    )
    found = WarmUp(compiled_graphs() - graphs, new_kernels, steps, seconds, decisions=tuple(decisions))
    return found if found else dataclasses.replace(found, note=_why_nothing(path, where))


def _path_method(method: Any) -> PathMethod[Any] | None:
    while isinstance(method, FORGrad):
        method = method.method
    if isinstance(method, PathMethod):
        return method
    if callable(getattr(method, "attribute", None)):
        return None
    if callable(method):
        return FAMPE(method)
    raise TypeError(f"method must be an attribution method or a model, got {type(method).__name__}")


def _size(model: Any, image_size: int | Sequence[int] | None) -> tuple[int, int]:
    if image_size is None:
        image_size = getattr(model, "input_size", None)
        if image_size is None:
            raise ValueError("image_size is not given, and the model has no input_size: give (height, width)")
    sizes = tuple(image_size) if isinstance(image_size, Iterable) else (image_size, image_size)
    if len(sizes) != 2:
        raise ValueError(f"image_size must be (height, width) or one number, got {image_size!r}")
    return check_count("image_size", sizes[0]), check_count("image_size", sizes[1])


def _device_of(model: Any) -> torch.device:
    return next((tensor.device for _, tensor in parts_of(model).tensors), torch.device("cpu"))


def _steps_needed(config: PathConfig, shape: tuple[int, int, int, int], chunk: int) -> int:
    """Count the steps needed to get plain and diversified samples, at least two of each in a pass.

    A chunk size of one leaves no choice, and a chunk of one row is what it compiles.
    """
    if config.compile == "graphs":
        return config.steps
    batch, _, height, width = shape
    missing = {False, True} if config.input_diversity else {False}
    drawn = draw_placements(config.seed, config.steps, config.samples, height, width) if config.input_diversity else []
    for step in range(config.steps):
        plain = sum(placement is None for placement in drawn[step]) if drawn else config.samples
        rows = {False: plain * batch, True: (config.samples - plain) * batch}
        missing -= {kind for kind, count in rows.items() if count >= min(2, chunk)}
        if not missing:
            return step + 1
    return config.steps


def _mixes(device: torch.device) -> AbstractContextManager[None]:
    """Compile the random mix at once on a CPU, where it is otherwise compiled after enough calls."""
    if device.type != "cpu" or backends.choice(device)[0] != "compiled":
        return nullcontext()
    from ..ops.compiled import compiled_at_once

    return compiled_at_once()


def _why_nothing(method: PathMethod[Any], device: torch.device) -> str:
    wanted = method.config.compile
    backend, _ = backends.choice(device)
    if backend == "reference" and resolve_compile(wanted, device) == "off":
        return f"compile={wanted!r} on {device.type}, where the reference runs, which needs no compiler"
    return "everything was compiled already"
