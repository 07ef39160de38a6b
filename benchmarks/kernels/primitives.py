"""The table of what is measured. A new kernel takes part with one entry in ``PRIMITIVES``.

An entry says how to make a call's arguments, what the reference looks like in real arithmetic (the fair form for
``torch.compile``, which generates no code for complex numbers), and what the call must move. On the device "meta" the
same arguments serve ahead-of-time compilation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from fampe_fast.ops.backends import OPS
from fampe_fast.reference import accumulate as adding
from fampe_fast.reference import band_mix as mix
from fampe_fast.reference import dct_mix as cosine
from fampe_fast.reference import gradient_step as step
from fampe_fast.reference import pixel_mask as masking
from fampe_fast.reference import radial_mask as masks
from fampe_fast.reference import radius, spectral_noise

from .floors import LaunchWork
from .sizes import Size

Arguments = dict[str, Any]
Trips = Callable[[Mapping[str, Any], Size], tuple[float, ...]]


@dataclass(frozen=True)
class LaunchModel:
    """What is known of a launch beforehand; a launch that has none is too small to count.

    Attributes:
        elements: coefficients or pixels of the result.
        bytes: read and written at least.
        trips: how often the loops run, in the order of the code, given the launch's arguments and constants by name.
        reread: those of the bytes that an earlier launch of the same call has read.
    """

    elements: Callable[[Size], int]
    bytes: Callable[[Size], int]
    trips: Trips
    reread: Callable[[Size], int] = lambda size: 0

    def work(self, kernel: str, size: Size, executed: Mapping[str, float]) -> LaunchWork:
        """With the instructions counted."""
        return LaunchWork(kernel, self.elements(size), self.bytes(size), self.reread(size), executed)


@dataclass(frozen=True)
class RealForm:
    """The reference in real arithmetic.

    Attributes:
        function: for ``torch.compile``.
        prepare: from the primitive's arguments to the function's; not timed.
        finish: from the function's result to the primitive's; timed only where a primitive goes on with the result.
        label: tells several forms of one primitive apart.
    """

    function: Callable[..., Any]
    prepare: Callable[[Arguments, Size], tuple[Any, ...]] = lambda arguments, size: tuple(arguments.values())
    finish: Callable[[Any, Size], Any] = lambda result, size: result
    label: str = ""


@dataclass(frozen=True)
class Primitive:
    """One entry of the table.

    Attributes:
        name: of the kernel's file and function and of their twins in the reference.
        arguments: real ones, random, on a device; on "meta" without values.
        real_forms: for ``torch.compile``; the fastest counts.
        bytes: the fewest a call can move: each input read once, each output written once.
        launches: by kernel's name.
        samples: whether a call draws samples.
        after: what is done to the primitive's result inside the measurement, or None.
        function: name of kernel and reference where it is another than ``name``.
        mutates: the argument that a call changes in place instead of returning a result, or None.
    """

    name: str
    arguments: Callable[[Size, torch.device], Arguments]
    real_forms: Sequence[RealForm]
    bytes: Callable[[Size], int]
    launches: Mapping[str, LaunchModel] = field(default_factory=dict)
    samples: bool = False
    after: Callable[[Any, Size], Any] | None = None
    function: str | None = None
    mutates: str | None = None

    @property
    def implemented_by(self) -> str:
        """The kernel behind it: its own name unless ``function`` says another."""
        return self.function or self.name

    def kernel(self) -> Callable[..., Any]:
        """The Triton host function. Imports triton."""
        return self._from("kernels")

    def reference(self) -> Callable[..., Any]:
        """Its twin in plain PyTorch."""
        return self._from("reference")

    def fresh(self, arguments: Arguments) -> Arguments:
        """The arguments, those that a call changes copied."""
        return arguments if self.mutates is None else {**arguments, self.mutates: arguments[self.mutates].clone()}

    def result(self, function: Callable[..., Any], arguments: Arguments) -> Any:
        """What a call gives, be it returned or written into a copy of an argument."""
        fresh = self.fresh(arguments)
        returned = function(**fresh)
        return returned if self.mutates is None else fresh[self.mutates]

    def _from(self, package: str) -> Callable[..., Any]:
        module = import_module(f"fampe_fast.{package}.{OPS[self.implemented_by]}")
        function: Callable[..., Any] = getattr(module, self.implemented_by)
        return function

    def fitted(self, size: Size) -> Size:
        """The size as this primitive knows it: without samples where it draws none."""
        return size if self.samples else Size(size.images, 0, size.height, size.width, size.channels)


# Arguments ------------------------------------------------------------------------------------------------------------


def _images(size: Size, device: torch.device, count: int | None = None) -> Tensor:
    return torch.rand((size.images if count is None else count, size.channels, size.height, size.width), device=device)


def _spectrum(size: Size, device: torch.device) -> Tensor:
    return torch.fft.rfft2(_images(size, device))


def _cutoffs(size: Size, device: torch.device) -> Tensor:
    return torch.full((size.images,), max(1.0, min(size.height, size.width) / 10), device=device)


def _rows(size: Size, device: torch.device, *, image_fastest: bool) -> tuple[Tensor, Tensor]:
    """Image and sample (or step) of each row, in the order in which the package asks for them."""
    if device.type == "meta":  # no arithmetic: on "meta" some of it imports torch's compiler, which takes seconds
        return torch.empty((2, size.rows), dtype=torch.int64, device=device).unbind()
    row = torch.arange(size.rows, device=device)
    return (row % size.images, row // size.images) if image_fastest else (row // size.samples, row % size.samples)


def radial_mask_arguments(size: Size, device: torch.device) -> Arguments:
    return {"cutoff": _cutoffs(size, device), "height": size.height, "width": size.width}


def energy_cutoff_arguments(size: Size, device: torch.device) -> Arguments:
    return {"spectrum": _spectrum(size, device), "width": size.width, "tau": 0.9, "include_dc": True}


def band_mix_arguments(size: Size, device: torch.device) -> Arguments:
    image_index, samples = _rows(size, device, image_fastest=True)
    weights = torch.tensor([[0.0, 0.1, 0.05, 0.9, 0.45, 16 / 255]]).to(device)
    return {
        "spectrum": _spectrum(size, device),
        "cutoff": _cutoffs(size, device),
        "weights": weights.expand(size.images, -1),
        "image_ids": torch.arange(size.images, device=device),
        "image_index": image_index,
        "samples": samples,
        "seed": torch.tensor(2**40 + 1).to(device),
        "step": torch.tensor(3).to(device),
        "width": size.width,
        "shared_multiplier": False,
    }


def gradient_step_arguments(size: Size, device: torch.device) -> Arguments:
    origin = _images(size, device)
    kernel = torch.exp(-(torch.arange(-3, 4) ** 2) / 2.0)
    noise = [torch.randn(origin.shape, device=device) for _ in range(4)]
    return {
        "images": origin if device.type == "meta" else (origin + 0.05 * noise[0]).clamp(0, 1),
        "origin": origin,
        "gradient_sum": noise[1],
        "momentum": noise[2],
        "attribution": noise[3],
        "kernel": (kernel / kernel.sum()).to(device),
        "samples": 20,
        "decay": 1.0,
        "step_size": 0.1 * 16 / 255,
        "eps": 16 / 255,
        "lower": 0.0,
        "upper": 1.0,
    }


def pixel_mask_arguments(size: Size, device: torch.device) -> Arguments:
    image_index, step = _rows(size, device, image_fastest=False)
    shape = (size.images, size.height, size.width)
    return {
        "start": _images(size, device),
        "finish": _images(size, device),
        "first_step": torch.randint(0, size.samples + 1, shape, device=device, dtype=torch.int32),
        "image_index": image_index,
        "step": step,
    }


def accumulate_arguments(size: Size, device: torch.device) -> Arguments:
    image_index, _ = _rows(size, device, image_fastest=True)
    return {
        "total": _images(size, device),
        "gradient": torch.randn((size.rows, size.channels, size.height, size.width), device=device),
        "image_index": image_index,
    }


def dct_mix_arguments(size: Size, device: torch.device) -> Arguments:
    arguments = band_mix_arguments(size, device)
    weights = torch.tensor([[0.5, 16 / 255]]).to(device).expand(size.images, -1)
    names = ("image_ids", "image_index", "samples", "seed", "step")
    return {"spectrum": _images(size, device), "weights": weights, **{name: arguments[name] for name in names}}


def _frame(size: Size) -> tuple[int, int]:
    return int(1.15 * size.height), int(1.15 * size.width)


def _placements(size: Size, device: torch.device) -> Tensor:
    """One per sample number, as the package draws them: a little larger, somewhere in the frame."""
    if device.type == "meta":
        return torch.empty((size.rows, 4), dtype=torch.int64, device=device)
    sides = torch.tensor([size.height, size.width])
    spare = torch.tensor(_frame(size)) - sides
    share = torch.arange(size.samples)[:, None] % 7 / 7
    larger = (share * spare).long()
    placement = torch.cat([sides + larger, (spare - larger) // 2], 1)
    return placement.repeat_interleave(size.images, 0).to(device)


def diversify_arguments(size: Size, device: torch.device) -> Arguments:
    height, width = _frame(size)
    return {
        "samples": _images(size, device, size.rows),
        "placements": _placements(size, device),
        "frame_height": height,
        "frame_width": width,
        "channels_last": False,
    }


def diversify_adjoint_arguments(size: Size, device: torch.device) -> Arguments:
    gradient = torch.randn((size.rows, size.channels, *_frame(size)), device=device)
    return {
        "gradient": gradient,
        "placements": _placements(size, device),
        "height": size.height,
        "width": size.width,
    }


# The reference in real arithmetic -------------------------------------------------------------------------------------


def radial_mask_real(cutoff: Tensor, height: int, width: int) -> Any:
    return masks.radial_mask(cutoff, height, width)


def energy_cutoff_real(parts: Tensor, shells: Tensor, multiplicity: Tensor, last: int, tau: float) -> Tensor:
    """``reference.energy_cutoff`` on (B, C, H, W//2+1, 2), with the shells of the grid given."""
    power = (parts.double() ** 2).sum(-1).sum(1) * multiplicity
    energy = power.new_zeros(len(power), last + 1).index_add(1, shells.flatten(), power.flatten(1))
    cumulative = energy.cumsum(1)
    return (cumulative >= tau * cumulative[:, -1:]).long().argmax(1).clamp(min=1).float()


def _prepare_energy_cutoff(arguments: Arguments, size: Size) -> tuple[Any, ...]:
    spectrum = arguments["spectrum"]
    shells = radius.shell_index(size.height, size.width, spectrum.device)
    multiplicity = radius.multiplicity(size.width, spectrum.device)
    return torch.view_as_real(spectrum), shells, multiplicity, int(shells.max()), arguments["tau"]


def band_mix_planes(
    parts: Tensor,
    cutoff: Tensor,
    weights: Tensor,
    image_ids: Tensor,
    image_index: Tensor,
    samples: Tensor,
    seed: Tensor,
    step: Tensor,
    grid: tuple[Tensor, Tensor, Tensor],
    height: int,
    width: int,
) -> tuple[Tensor, Tensor]:
    """``reference.band_mix`` on (B, C, K, 2): real and imaginary part as two planes, what a compiler stores best."""
    low, _ = masks.radial_mask(cutoff, height, width)
    planes: tuple[Tensor, Tensor] = mix.mix_rows(
        parts[image_index],
        low.flatten(1)[image_index],
        weights[image_index],
        spectral_noise.HermitianGrid(*grid),
        image_ids[image_index],
        samples,
        seed,
        step,
        False,
    )
    return planes


def band_mix_interleaved(*arguments: Any) -> Tensor:
    """The same, stored as complex numbers are: the inverse transform needs no further copy."""
    return torch.stack(band_mix_planes(*arguments), -1)


def _prepare_band_mix(arguments: Arguments, size: Size) -> tuple[Any, ...]:
    spectrum = arguments["spectrum"]
    names = ("cutoff", "weights", "image_ids", "image_index", "samples", "seed", "step")
    grid = spectral_noise.hermitian_grid(size.height, size.width, spectrum.device)
    parts = torch.view_as_real(spectrum).flatten(2, 3)
    return parts, *(arguments[name] for name in names), tuple(grid), size.height, size.width


def _from_planes(planes: tuple[Tensor, Tensor], size: Size) -> Tensor:
    return torch.complex(*planes).view(-1, size.channels, size.height, size.half)


def _from_interleaved(mixed: Tensor, size: Size) -> Tensor:
    return torch.view_as_complex(mixed).view(-1, size.channels, size.height, size.half)


MIX_FORMS = (
    RealForm(band_mix_planes, _prepare_band_mix, _from_planes, "two planes"),
    RealForm(band_mix_interleaved, _prepare_band_mix, _from_interleaved, "interleaved"),
)


def gradient_step_real(*arguments: Any) -> Any:
    return tuple(step.gradient_step(*arguments))


def pixel_mask_real(*arguments: Any) -> Any:
    return masking.pixel_mask(*arguments)


def accumulate_real(total: Tensor, gradient: Tensor, image_index: Tensor) -> Tensor:
    adding.accumulate(total, gradient, image_index)
    return total


def dct_mix_real(spectrum: Tensor, weights: Tensor, *names: Tensor) -> Tensor:
    return cosine.dct_mix(spectrum, weights, *names)


def _resizing(placements: Tensor, axis: int, source: int, target: int) -> Tensor:
    """What ``diversify`` does along one axis, as a matrix per row: (P, target, source)."""
    resized, offset = placements[:, axis, None], placements[:, 2 + axis, None]
    position = torch.arange(target, device=placements.device) - offset
    exact = ((2 * position + 1) * source / (2 * resized) - 0.5).clamp(min=0)
    first = exact.floor().clamp(max=source - 1)
    weight = exact - first
    columns = torch.arange(source, device=placements.device)
    second = (first + 1).clamp(max=source - 1)
    matrix = (columns == first[..., None]) * (1 - weight)[..., None] + (columns == second[..., None]) * weight[
        ..., None
    ]
    return matrix * ((position >= 0) & (position < resized))[..., None]


def _prepare_resizing(arguments: Arguments, size: Size) -> tuple[Any, ...]:
    values = arguments["samples"] if "samples" in arguments else arguments["gradient"]
    height, width = _frame(size)
    down = _resizing(arguments["placements"], 0, size.height, height)
    return values, down[:, None], _resizing(arguments["placements"], 1, size.width, width)[:, None]


def diversify_matrices(samples: Tensor, down: Tensor, across: Tensor) -> Tensor:
    return down @ samples @ across.transpose(-1, -2)


def diversify_adjoint_matrices(gradient: Tensor, down: Tensor, across: Tensor) -> Tensor:
    return down.transpose(-1, -2) @ gradient @ across


def to_pixels(mixed: Tensor, size: Size) -> Tensor:
    return torch.fft.irfft2(mixed, s=(size.height, size.width))


# How often the kernels' loops run -------------------------------------------------------------------------------------


def _runs(rows: int, run: int) -> float:
    """Rows per program, on the average: the last may have fewer."""
    return rows / max(1, -(-rows // run))


def _tile_trips(launch: Mapping[str, Any], size: Size) -> tuple[float, ...]:
    shells = radius.shell_index(size.height, size.width)
    tiles = [tile for strip in shells.split(int(launch["ROWS"])) for tile in strip.split(int(launch["COLUMNS"]), dim=1)]
    return size.channels, sum(int(tile.max() - tile.min()) + 1 for tile in tiles) / len(tiles)


def _strip_trips(launch: Mapping[str, Any], size: Size) -> tuple[float, ...]:
    slots, reach = launch["SLOTS"], launch["TAPS"] // 2 * 2
    rows = launch["chunks"] * slots - reach
    strips = [min(rows, size.height - top) for top in range(0, size.height, rows)]
    return (sum(-(-(strip + reach) // slots) for strip in strips) / len(strips),)


# The table ------------------------------------------------------------------------------------------------------------


def _mix_bytes(size: Size) -> int:
    return 8 * (size.rows + size.images) * size.channels * size.coefficients


def _diversify_bytes(size: Size) -> int:
    return 4 * size.rows * size.channels * (size.pixels + math.prod(_frame(size)))


def _planes(size: Size) -> int:
    return size.images * size.channels


BAND_MIX = Primitive(
    "band_mix",
    band_mix_arguments,
    MIX_FORMS,
    _mix_bytes,
    {
        "band_mix": LaunchModel(
            lambda size: size.rows * size.channels * size.coefficients,
            _mix_bytes,
            lambda launch, size: (_runs(size.samples, launch["run"]),),
        )
    },
    samples=True,
)

PRIMITIVES = (
    BAND_MIX,
    Primitive(
        "sampling",
        BAND_MIX.arguments,
        BAND_MIX.real_forms,
        lambda size: _mix_bytes(size) + size.rows * size.channels * (8 * size.coefficients + 4 * size.pixels),
        BAND_MIX.launches,
        samples=True,
        after=to_pixels,
        function="band_mix",
    ),
    Primitive(
        "gradient_step",
        gradient_step_arguments,
        (RealForm(gradient_step_real),),
        lambda size: 32 * _planes(size) * size.pixels,
        {
            "magnitude": LaunchModel(
                lambda size: _planes(size) * size.pixels, lambda size: 4 * _planes(size) * size.pixels, _strip_trips
            ),
            "step": LaunchModel(
                lambda size: _planes(size) * size.pixels,
                lambda size: 32 * _planes(size) * size.pixels,
                _strip_trips,
                lambda size: 4 * _planes(size) * size.pixels,
            ),
        },
    ),
    Primitive(
        "accumulate",
        accumulate_arguments,
        (RealForm(accumulate_real),),
        lambda size: 4 * size.channels * size.pixels * (size.rows + 2 * size.images),
        samples=True,
        mutates="total",
    ),
    Primitive(
        "dct_mix",
        dct_mix_arguments,
        (RealForm(dct_mix_real),),
        lambda size: 4 * (size.rows + size.images) * size.channels * size.pixels,
        {
            "dct_mix": LaunchModel(
                lambda size: size.rows * size.channels * size.pixels,
                lambda size: 4 * (size.rows + size.images) * size.channels * size.pixels,
                lambda launch, size: (_runs(size.samples, launch["run"]),),
            )
        },
        samples=True,
    ),
    Primitive(
        "diversify",
        diversify_arguments,
        (RealForm(diversify_matrices, _prepare_resizing),),
        _diversify_bytes,
        samples=True,
    ),
    Primitive(
        "diversify_adjoint",
        diversify_adjoint_arguments,
        (RealForm(diversify_adjoint_matrices, _prepare_resizing),),
        _diversify_bytes,
        samples=True,
    ),
    Primitive(
        "energy_cutoff",
        energy_cutoff_arguments,
        (RealForm(energy_cutoff_real, _prepare_energy_cutoff),),
        lambda size: 8 * _planes(size) * size.coefficients,
        {
            "tile_energy": LaunchModel(
                lambda size: _planes(size) * size.coefficients,
                lambda size: 8 * _planes(size) * size.coefficients,
                _tile_trips,
            )
        },
    ),
    Primitive(
        "pixel_mask",
        pixel_mask_arguments,
        (RealForm(pixel_mask_real),),
        lambda size: 4 * size.pixels * (size.rows * size.channels + size.images * (2 * size.channels + 1)),
        {
            "pixel_mask": LaunchModel(
                lambda size: size.rows * size.channels * size.pixels,
                lambda size: 4 * size.pixels * (size.rows * size.channels + size.images * (2 * size.channels + 1)),
                lambda launch, size: (_runs(size.rows, launch["run"]),),
            )
        },
        samples=True,
    ),
    Primitive(
        "radial_mask",
        radial_mask_arguments,
        (RealForm(radial_mask_real),),
        lambda size: 8 * size.images * size.coefficients,
        {
            "radial_mask": LaunchModel(
                lambda size: size.images * size.coefficients,
                lambda size: 8 * size.images * size.coefficients,
                lambda launch, size: (_runs(size.images, launch["run"]),),
            )
        },
    ),
)


def primitive(name: str) -> Primitive:
    """The entry of that name."""
    return {entry.name: entry for entry in PRIMITIVES}[name]
