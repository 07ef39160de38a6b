"""Define the table of measured primitives: a new kernel is measured through one entry in ``PRIMITIVES``.

An entry says what the reference looks like in real arithmetic (the fair form for ``torch.compile``, which generates no
code for complex numbers), and what the call must move. A call's arguments are the examples of ``fampe_fast.testing``.
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
from fampe_fast.ops.registration import MUTATED
from fampe_fast.reference import accumulate as adding
from fampe_fast.reference import band_mix as mix
from fampe_fast.reference import dct_mix as dct
from fampe_fast.reference import radial_mask as masks
from fampe_fast.reference import radius, spectral_noise
from fampe_fast.testing import Case
from fampe_fast.testing.arguments import example_arguments
from fampe_fast.testing.checks.combine_layers import layers_of
from fampe_fast.testing.checks.diversify import frame_of

from .floors import LaunchWork
from .sizes import Size

Arguments = dict[str, Any]
Trips = Callable[[Mapping[str, Any], Size], tuple[float, ...]]


@dataclass(frozen=True)
class LaunchModel:
    """What is known of a launch beforehand; a launch that has none is too small to count.

    Attributes:
        elements: coefficients or pixels and channels, of the result or of what is summed.
        bytes: read and written at least.
        trips: how often the loops run, in the order of the code, given the launch's arguments and constants by name.
        reread: those of the bytes that an earlier launch of the same call has read.
        begun: how often a loop runs the parts that it can skip.
    """

    elements: Callable[[Size], int]
    bytes: Callable[[Size], int]
    trips: Trips
    reread: Callable[[Size], int] = lambda size: 0
    begun: Callable[[Mapping[str, Any], Size], float] = lambda launch, size: 1

    def work(self, kernel: str, size: Size, executed: Mapping[str, float]) -> LaunchWork:
        """With the instructions counted."""
        return LaunchWork(kernel, self.elements(size), self.bytes(size), self.reread(size), executed)


@dataclass(frozen=True)
class RealForm:
    """The reference in real arithmetic.

    Attributes:
        function: for ``torch.compile``.
        prepare: from the primitive's arguments to the function's; not timed.
        finish: from the function's result to the primitive's; not timed.
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
        bytes: the fewest a call can move: each input read once, each output written once.
        launches: by kernel's name.
        real_forms: for ``torch.compile``, where the reference itself is not the one; the fastest counts.
        samples: whether a call draws samples.
        of_layer: whether a call takes a layer of a network that sees the images.
    """

    name: str
    bytes: Callable[[Size], int]
    launches: Mapping[str, LaunchModel] = field(default_factory=dict)
    real_forms: Sequence[RealForm] = ()
    samples: bool = False
    of_layer: bool = False

    def kernel(self) -> Callable[..., Any]:
        """Find the Triton host function; imports triton."""
        return self._from("kernels")

    def reference(self) -> Callable[..., Any]:
        """Its twin in plain PyTorch."""
        return self._from("reference")

    @property
    def forms(self) -> Sequence[RealForm]:
        """The real forms, or the reference."""
        return self.real_forms or (RealForm(self.reference()),)

    def arguments(self, size: Size, device: torch.device) -> Arguments:
        """Make arguments as the package does, on the device itself; on "meta" without values."""
        case = Case(size.height, size.width, size.images, size.channels, size.rows, taps=7)
        arguments = example_arguments(self.name, case, device, device)
        if "image_index" in arguments:
            arguments["image_index"] = torch.arange(size.rows, device=device) // max(1, size.samples)
        return arguments

    def fresh(self, arguments: Arguments) -> Arguments:
        """Give the arguments, those that a call changes copied."""
        changed = MUTATED.get(self.name, ())
        return {**arguments, **{name: arguments[name].clone() for name in changed}}

    def result(self, function: Callable[..., Any], arguments: Arguments) -> Any:
        """Collect what a call gives, be it returned or written into a copy of an argument."""
        fresh = self.fresh(arguments)
        returned = function(**fresh)
        return [fresh[name] for name in MUTATED[self.name]] if returned is None else returned

    def _from(self, package: str) -> Callable[..., Any]:
        module = import_module(f"fampe_fast.{package}.{OPS[self.name]}")
        function: Callable[..., Any] = getattr(module, self.name)
        return function

    def fitted(self, size: Size) -> Size:
        """Give the size as this primitive knows it: without samples where it draws none, or a layer's."""
        if self.of_layer:
            return size.layer
        return size if self.samples else Size(size.images, 0, size.height, size.width, size.channels)


# The reference in real arithmetic -------------------------------------------------------------------------------------


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
    """Store the same as complex numbers are: the inverse transform needs no further copy."""
    return torch.stack(band_mix_planes(*arguments), -1)


def band_samples_planes(*arguments: Any) -> Tensor:
    """``reference.band_samples``; the compiler leaves complex numbers and the transform to torch."""
    height, width = arguments[-2:]
    mixed = torch.complex(*band_mix_planes(*arguments))
    return torch.fft.irfft2(mixed.view(*mixed.shape[:2], height, -1), s=(height, width), norm="forward")


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


def dct_mix_real(
    spectrum: Tensor,
    weights: Tensor,
    image_ids: Tensor,
    image_index: Tensor,
    samples: Tensor,
    seed: Tensor,
    step: Tensor,
    index: Tensor,
) -> Tensor:
    """``reference.dct_mix`` on (B, C, K), with the coefficients' numbers given.

    Numbers made by ``arange`` become products of 32-bit places with Philox's multipliers in the compiler's code, which
    Triton refuses: "Scalar 3528531795 is out of range for type int32".
    """
    mixed: Tensor = dct.dct_mix_rows(
        spectrum[image_index], weights[image_index], index, image_ids[image_index], samples, seed, step
    )
    return mixed


def _prepare_dct_mix(arguments: Arguments, size: Size) -> tuple[Any, ...]:
    spectrum, *others = arguments.values()
    return spectrum.flatten(2), *others, torch.arange(size.pixels, device=spectrum.device)


def accumulate_real(total: Tensor, gradient: Tensor, image_index: Tensor) -> Tensor:
    adding.accumulate(total, gradient, image_index)
    return total


def layer_evidence_real(activation: Tensor, gradient: Tensor) -> Tensor:
    """``reference.layer_evidence`` with the sum left to the compiler."""
    return torch.relu(-(gradient * activation).sum(1))


def _resizing(placements: Tensor, axis: int, source: int, target: int) -> Tensor:
    """Write what ``diversify`` does along one axis as a matrix per row: (P, target, source)."""
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
    height, width = frame_of(size.height, size.width)
    down = _resizing(arguments["placements"], 0, size.height, height)
    return values, down[:, None], _resizing(arguments["placements"], 1, size.width, width)[:, None]


def diversify_matrices(samples: Tensor, down: Tensor, across: Tensor) -> Tensor:
    return down @ samples @ across.transpose(-1, -2)


def diversify_adjoint_matrices(gradient: Tensor, down: Tensor, across: Tensor) -> Tensor:
    return down.transpose(-1, -2) @ gradient @ across


# How often the kernels' loops run -------------------------------------------------------------------------------------


def _runs(rows: int, run: int) -> float:
    """Rows per program, on the average: the last may have fewer."""
    return rows / max(1, -(-rows // run))


def _images_per_program(launch: Mapping[str, Any], size: Size) -> float:
    """Images that a program's rows show, on the average."""
    run, samples = launch["run"], size.samples
    starts = range(0, size.rows, run)
    return sum((min(first + run, size.rows) - 1) // samples - first // samples + 1 for first in starts) / len(starts)


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
    return 8 * (size.rows + size.shown) * size.channels * size.coefficients


def _samples_bytes(size: Size) -> int:
    """Read spectra, and write others of half as many complex numbers as there are pixels, for the transform."""
    return size.channels * (8 * size.shown * size.coefficients + 4 * size.rows * size.pixels)


def _dct_mix_bytes(size: Size) -> int:
    return 4 * (size.rows + size.shown) * size.channels * size.pixels


def _pixel_mask_bytes(size: Size) -> int:
    return 4 * size.pixels * (size.rows * size.channels + size.shown * (2 * size.channels + 1))


def _diversify_bytes(size: Size) -> int:
    return 4 * size.rows * size.channels * (size.pixels + math.prod(frame_of(size.height, size.width)))


def _planes(size: Size) -> int:
    return size.images * size.channels


def _evidence_bytes(size: Size) -> int:
    return 4 * size.images * size.pixels * (2 * size.channels + 1)


def _levels_bytes(size: Size) -> int:
    """Read once: the pixels' evidence and the layers'."""
    cells = sum(height * width for height, width in layers_of(size.height, size.width))
    return 4 * size.images * (size.pixels + cells)


def _combining_bytes(size: Size) -> int:
    return _levels_bytes(size) + 4 * size.images * size.pixels


def _layer_trips(launch: Mapping[str, Any], size: Size) -> tuple[float, ...]:
    """Stretches of a layer per program: those that sum pixels take none."""
    layers = layers_of(size.height, size.width)
    stretches = sum(-(-height * width // launch["CHUNK"]) for height, width in layers)
    return (stretches / (launch["chunks"] + launch["layers"]),)


BAND_MIX = Primitive(
    "band_mix",
    _mix_bytes,
    {
        "band_mix": LaunchModel(
            lambda size: size.rows * size.channels * size.coefficients,
            _mix_bytes,
            lambda launch, size: (_runs(size.rows, launch["run"]),),
            begun=_images_per_program,
        )
    },
    MIX_FORMS,
    samples=True,
)

PRIMITIVES = (
    BAND_MIX,
    Primitive(
        "band_samples",
        lambda size: _samples_bytes(size) + 8 * size.rows * size.channels * size.pixels,
        {
            **BAND_MIX.launches,  # of odd widths
            "band_samples": LaunchModel(
                lambda size: size.rows * size.channels * size.coefficients,
                _samples_bytes,
                lambda launch, size: (_runs(size.rows, launch["run"]),),
                begun=_images_per_program,
            ),
        },
        (RealForm(band_samples_planes, _prepare_band_mix),),
        samples=True,
    ),
    Primitive(
        "gradient_step",
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
        lambda size: 4 * size.channels * size.pixels * (size.rows + 2 * size.shown),
        real_forms=(RealForm(accumulate_real),),
        samples=True,
    ),
    Primitive(
        "combine_layers",
        _combining_bytes,
        {
            "level_sums": LaunchModel(lambda size: _levels_bytes(size) // 4, _levels_bytes, _layer_trips),
            "combine_layers": LaunchModel(
                lambda size: size.images * size.pixels,
                _combining_bytes,
                lambda launch, size: (launch["layers"],),
                _levels_bytes,
            ),
        },
    ),
    Primitive(
        "dct_mix",
        _dct_mix_bytes,
        {
            "dct_mix": LaunchModel(
                lambda size: size.rows * size.channels * size.pixels,
                _dct_mix_bytes,
                lambda launch, size: (_runs(size.rows, launch["run"]),),
                begun=_images_per_program,
            )
        },
        (RealForm(dct_mix_real, _prepare_dct_mix, lambda mixed, size: mixed.unflatten(-1, (size.height, size.width))),),
        samples=True,
    ),
    Primitive(
        "diversify",
        _diversify_bytes,
        real_forms=(RealForm(diversify_matrices, _prepare_resizing),),
        samples=True,
    ),
    Primitive(
        "diversify_adjoint",
        _diversify_bytes,
        real_forms=(RealForm(diversify_adjoint_matrices, _prepare_resizing),),
        samples=True,
    ),
    Primitive(
        "energy_cutoff",
        lambda size: 8 * _planes(size) * size.coefficients,
        {
            "tile_energy": LaunchModel(
                lambda size: _planes(size) * size.coefficients,
                lambda size: 8 * _planes(size) * size.coefficients,
                _tile_trips,
            )
        },
        (RealForm(energy_cutoff_real, _prepare_energy_cutoff),),
    ),
    Primitive(
        "layer_evidence",
        _evidence_bytes,
        {
            "layer_evidence": LaunchModel(
                lambda size: _planes(size) * size.pixels,
                _evidence_bytes,
                lambda launch, size: (-(-size.channels // launch["SUMS"]) - 1,),
            )
        },
        (RealForm(layer_evidence_real),),
        of_layer=True,
    ),
    Primitive(
        "pixel_mask",
        _pixel_mask_bytes,
        {
            "pixel_mask": LaunchModel(
                lambda size: size.rows * size.channels * size.pixels,
                _pixel_mask_bytes,
                lambda launch, size: (_runs(size.rows, launch["run"]),),
                begun=_images_per_program,
            )
        },
        samples=True,
    ),
    Primitive(
        "radial_mask",
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
    """Find the entry of that name."""
    return {entry.name: entry for entry in PRIMITIVES}[name]
