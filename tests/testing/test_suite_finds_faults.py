"""The public suite catches what it is for: backends with one fault each, made of the reference, fail it."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fampe_fast.errors import BackendUnavailableError
from fampe_fast.ops.registration import MUTATED
from fampe_fast.reference import band_mix as mix_file
from fampe_fast.reference import philox as philox_file
from fampe_fast.reference import radial_mask as mask_file
from fampe_fast.reference import spectral_noise as noise_file
from fampe_fast.reference.energy_cutoff import shell_energy
from fampe_fast.reference.gradient_step import StepResult
from fampe_fast.reference.radius import inside_radius, squared_radius
from fampe_fast.testing import (
    Case,
    Primitives,
    assert_as_accurate,
    assert_same,
    load_primitives,
    poisoned_memory,
    registered,
    statistics,
    stride_variants,
)
from fampe_fast.testing.known_answers import PHILOX

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
REFERENCE = load_primitives("reference", CPU)
Fault = Callable[..., Any]


def failures(op: str, function: Fault) -> dict[str, str]:
    """The checks of a primitive that a backend fails, with their messages, on the cases for a CPU."""
    backend = Primitives({**REFERENCE, op: function})
    failed: dict[str, str] = {}
    for check in registered():
        for case in check.cases:
            if case.gpu or op not in check.primitives or check.name in failed:
                continue
            try:
                check.function(backend, CPU, case)
            except AssertionError as error:
                failed[check.name] = str(error)
    return failed


def patched(op: str, owner: Any, name: str, value: Any) -> Fault:
    """The reference of ``op`` with one name of a module replaced while it runs."""

    def run(*args: Any, **kwargs: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(owner, name, value)
            return REFERENCE[op](*args, **kwargs)

    return run


def changed(op: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Fault:
    """The reference of ``op`` on other arguments than it was given."""
    names = REFERENCE[op].__code__.co_varnames

    def run(*args: Any, **kwargs: Any) -> Any:
        return REFERENCE[op](**change({**dict(zip(names, args, strict=False)), **kwargs}))

    return run


def after(op: str, change: Callable[[Tensor], Tensor]) -> Fault:
    """The reference of ``op`` with its result changed, or the changeable ones of its results."""

    def run(*args: Any, **kwargs: Any) -> Any:
        result = REFERENCE[op](*args, **kwargs)
        if isinstance(result, StepResult):
            return StepResult(*map(change, result))
        return change(result) if isinstance(result, Tensor) else tuple(map(change, result))

    return run


# Radii ----------------------------------------------------------------------------------------------------------------


def wrong_fold(height: int, width: int, device: Any = "cpu", dtype: torch.dtype = torch.float32) -> Tensor:
    """Squared radii whose negative frequencies begin a row late: nothing but rows beyond the middle shows it."""
    rows = torch.arange(height)
    rows = torch.where(rows > height // 2 + 1, rows - height, rows)[:, None]
    columns = torch.arange(width // 2 + 1)
    shorter = min(height, width)
    return (rows.to(dtype) * (shorter / height)) ** 2 + (columns.to(dtype) * (shorter / width)) ** 2


def cutoff(reached: Callable[[Tensor, float], Tensor], **changes: Any) -> Fault:
    def run(spectrum: Tensor, width: int, tau: float = 0.9, include_dc: bool = True) -> Tensor:
        held = shell_energy(spectrum, width, changes.get("include_dc", include_dc)).cumsum(1)
        first = reached(held, tau).long().argmax(1) + changes.get("offset", 0)
        return first.clamp(min=1).float()

    return run


def at_least(held: Tensor, tau: float) -> Tensor:
    return held >= tau * held[:, -1:]


def above(held: Tensor, tau: float) -> Tensor:
    last = torch.arange(held.shape[1]) == held.shape[1] - 1
    return (held > tau * held[:, -1:]) | last | (held[:, -1:] == 0)


def short_sums(spectrum: Tensor, width: int, tau: float = 0.9, include_dc: bool = True) -> Tensor:
    held = shell_energy(spectrum, width, include_dc).bfloat16().cumsum(1)
    return at_least(held, tau).long().argmax(1).clamp(min=1).float()


def open_disc(radius: Tensor, height: int, width: int) -> Tensor:
    return inside_radius(torch.nextafter(radius, torch.zeros_like(radius)), height, width)


def rounded_disc(radius: Tensor, height: int, width: int) -> Tensor:
    return squared_radius(height, width) <= radius[:, None, None] ** 2


def butterworth(low: Callable[[Tensor], Tensor]) -> Fault:
    """Masks whose Butterworth is a function of r^2 / c^2."""

    def run(cutoff: Tensor, height: int, width: int, shape: str = "gaussian") -> tuple[Tensor, Tensor]:
        if shape != "butterworth":
            return REFERENCE["radial_mask"](cutoff, height, width, shape)
        mask = low(squared_radius(height, width) / cutoff[:, None, None] ** 2)
        return mask, 1 - mask

    return run


def mix_of(masks: Fault) -> Fault:
    """The mix with other masks."""
    return patched("band_mix", mix_file, "radial_mask", masks)


def shape_ignored(arguments: dict[str, Any]) -> dict[str, Any]:
    return {**arguments, "shape": "gaussian"}


def shapes_exchanged(arguments: dict[str, Any]) -> dict[str, Any]:
    other = {"disc": "butterworth", "butterworth": "disc"}
    return {**arguments, "shape": other.get(arguments.get("shape", "gaussian"), "gaussian")}


# Rounding, order, memory ----------------------------------------------------------------------------------------------


def ten_bits(values: Tensor) -> Tensor:
    """Rounded to the 10 bits of a tf32 mantissa."""
    if values.is_complex():
        return torch.view_as_complex(ten_bits(torch.view_as_real(values).contiguous()))
    if values.dtype != torch.float32:
        return values
    return ((values.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


class Racy:
    """Adds an ulp in every third call, as a sum in another order would."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, values: Tensor) -> Tensor:
        self.calls += 1
        return values * (1 + 2**-22) if self.calls % 3 == 0 else values


def columns_exchanged(pixels: Tensor) -> Tensor:
    """Exchange each even column with the odd one behind it, where the width is even."""
    if pixels.shape[-1] % 2:
        return pixels
    return pixels.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)


def unwritten(dim: int) -> Callable[[Tensor], Tensor]:
    """Fresh memory into which everything but the last slice along a dimension is written."""

    def forget(values: Tensor) -> Tensor:
        if values.ndim < -dim:
            return values
        out = torch.empty_like(values)
        out.narrow(dim, 0, max(values.shape[dim] - 1, 0)).copy_(values.narrow(dim, 0, max(values.shape[dim] - 1, 0)))
        return out

    return forget


# Random numbers -------------------------------------------------------------------------------------------------------


def without_conjugates(*args: Any) -> noise_file.HermitianGrid:
    grid = noise_file.hermitian_grid(*args)
    return grid._replace(scale_im=grid.scale_im.abs())


def without_mirrors(*args: Any) -> noise_file.HermitianGrid:
    grid = noise_file.hermitian_grid(*args)
    return grid._replace(coefficient=torch.arange(len(grid.coefficient)))


def words_in_order(*order: int, rounds: int = philox_file.ROUNDS) -> Callable[..., Any]:
    def generate(counter: Any, key: Any) -> tuple[Tensor, ...]:
        words = philox_file.philox4x32(counter, key, rounds)
        return tuple(words[k] for k in order)

    return generate


def generator(op: str, *order: int, rounds: int = philox_file.ROUNDS) -> Fault:
    return patched(op, noise_file, "philox4x32", words_in_order(*order, rounds=rounds))


def row_for_name(arguments: dict[str, Any]) -> dict[str, Any]:
    """Every row becomes an image of its own, called by its number."""
    index = arguments["image_index"]
    copies = {name: arguments[name][index] for name in ("spectrum", "cutoff", "weights") if name in arguments}
    rows = torch.arange(len(index))
    return {**arguments, **copies, "image_index": rows, "image_ids": rows}


def lower_half(arguments: dict[str, Any]) -> dict[str, Any]:
    return {**arguments, "seed": arguments["seed"] & 0xFFFFFFFF}


# The step -------------------------------------------------------------------------------------------------------------


def one_scale_for_all(**arguments: Any) -> StepResult:
    """The mean magnitude taken over the batch."""
    result = REFERENCE["gradient_step"](**arguments)
    if not len(result.scale):
        return result
    wrong = result.momentum - arguments["decay"] * arguments["momentum"]
    wrong = (
        wrong * (result.scale / result.scale.mean())[:, None, None, None] + arguments["decay"] * arguments["momentum"]
    )
    return result._replace(momentum=wrong)


def in_place(**arguments: Any) -> StepResult:
    result = REFERENCE["gradient_step"](**arguments)
    arguments["momentum"].copy_(result.momentum)
    return result


def half_sum(**arguments: Any) -> StepResult:
    result = REFERENCE["gradient_step"](**arguments)
    magnitude = (arguments["gradient_sum"] / arguments["samples"]).abs().flatten(1)
    running = torch.zeros(len(magnitude), dtype=torch.bfloat16)
    for k in range(magnitude.shape[1]):
        running = running + magnitude[:, k].bfloat16()
    return result._replace(scale=running.float() / max(magnitude.shape[1], 1))


def corners_aligned(*args: Any, **kwargs: Any) -> Tensor:
    """Resized with the corner pixels' centres on each other, as torch can too."""
    resize = torch.nn.functional.interpolate
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            torch.nn.functional,
            "interpolate",
            lambda values, **options: resize(values, **{**options, "align_corners": True}),
        )
        return REFERENCE["diversify"](*args, **kwargs)


def a_row_too_high(arguments: dict[str, Any]) -> dict[str, Any]:
    higher = arguments["placements"] - torch.tensor([0, 0, 1, 0])
    return {**arguments, "placements": higher.clamp(min=0)}


def nearest(gradient: Tensor, placements: Tensor, height: int, width: int) -> Tensor:
    """A transpose that is none: the gradient is resized back, which looks like it."""
    rows = []
    for row, (down, across, top, left) in enumerate(placements.tolist()):
        cut = gradient[row : row + 1, :, top : top + down, left : left + across]
        back = torch.nn.functional.interpolate(cut, size=(height, width), mode="bilinear", align_corners=False)
        rows.append(back * (down * across) / (height * width))
    return torch.cat(rows) if rows else gradient.new_zeros((0, gradient.shape[1], height, width))


def overwritten(total: Tensor, gradient: Tensor, image_index: Tensor) -> None:
    """Two rows of one image at once: one of them is lost."""
    total[image_index] = total[image_index] + gradient


def last_first(total: Tensor, gradient: Tensor, image_index: Tensor) -> None:
    """As atomics may: in another order."""
    total.index_add_(0, image_index.flip(0), gradient.flip(0))


def evidence(formula: Callable[[Tensor, Tensor], Tensor]) -> Fault:
    """Another formula of activation and gradient, in float32 or more."""

    def run(activation: Tensor, gradient: Tensor) -> Tensor:
        dtype = torch.promote_types(torch.promote_types(activation.dtype, gradient.dtype), torch.float32)
        return formula(activation.to(dtype), gradient.to(dtype)).contiguous()

    return run


def grad_cam(activation: Tensor, gradient: Tensor) -> Tensor:
    """Weights that are the gradient's mean over the pixels."""
    return torch.relu(-(gradient.mean((2, 3), keepdim=True) * activation).sum(1))


def half_products(activation: Tensor, gradient: Tensor) -> Tensor:
    """Multiplied in the arguments' own dtype, added in float32."""
    products = gradient * activation
    return torch.relu(-products.to(torch.promote_types(products.dtype, torch.float32)).sum(1)).contiguous()


def half_evidence(activation: Tensor, gradient: Tensor) -> Tensor:
    """Products in float32, but added in the arguments' own dtype."""
    products = gradient * activation
    wide = torch.promote_types(products.dtype, torch.float32)
    total = torch.zeros_like(products[:, 0])
    for channel in range(activation.shape[1]):
        total = (total.to(wide) + gradient[:, channel].to(wide) * activation[:, channel].to(wide)).to(products.dtype)
    return torch.relu(-total.to(wide)).contiguous()


def as_if_contiguous(activation: Tensor, gradient: Tensor) -> Tensor:
    """Memory read in its order, whatever the strides say."""
    shape, strides = activation.shape, torch.empty(activation.shape, device="meta").stride()
    found = [values.as_strided(shape, strides) if values.numel() else values for values in (activation, gradient)]
    result: Tensor = REFERENCE["layer_evidence"](*found)
    return result


def over_mean(level: Tensor) -> Tensor:
    """(B, h, w) over its mean, by float64."""
    mean = level.double().mean((1, 2), keepdim=True)
    return torch.where(mean == 0, 0.0, level.double() / mean).to(level.dtype)


def bilinear(level: Tensor, size: list[int], **options: bool) -> Tensor:
    options = {"align_corners": False, **options}
    return torch.nn.functional.interpolate(level[:, None], size, mode="bilinear", **options)[:, 0]


def as_product(total: Tensor, gate: Tensor, floor: float) -> Tensor:
    return total * (floor + gate)


def combined(
    normalised: Callable[[Tensor], Tensor] = over_mean,
    resized: Callable[[Tensor, list[int]], Tensor] = bilinear,
    gated: Callable[[Tensor, Tensor, float], Tensor] = as_product,
) -> Fault:
    """The formula of ``combine_layers`` with a part of it exchanged."""

    def run(
        pixels: Tensor,
        evidence: Tensor,
        sizes: list[int],
        weights: list[float],
        gates: list[float],
        floor: float,
    ) -> Tensor:
        sides = list(zip(sizes[::2], sizes[1::2], strict=True))
        parts = evidence.split([height * width for height, width in sides], 1) if sides else ()
        levels = [normalised(pixels)]
        for part, side in zip(parts, sides, strict=True):
            levels.append(resized(normalised(part.reshape(-1, *side)), list(pixels.shape[1:])))
        total, gate = (
            sum(number * level for number, level in zip(numbers, levels, strict=True)) for numbers in (weights, gates)
        )
        return gated(total, gate, floor).contiguous()

    return run


def over_mean_once_resized(level: Tensor, size: list[int]) -> Tensor:
    return over_mean(bilinear(level, size))


def with_float32_sums(level: Tensor) -> Tensor:
    """A sum of many large numbers is infinite."""
    mean = level.mean((1, 2), keepdim=True)
    return torch.where(mean == 0, 0.0, level / mean)


def times_the_reciprocal(level: Tensor) -> Tensor:
    """... which is infinite where the mean is tiny."""
    mean = level.double().mean((1, 2), keepdim=True).to(level.dtype)
    return torch.where(mean == 0, 0.0, level * (1 / mean))


def sides_exchanged(arguments: dict[str, Any]) -> dict[str, Any]:
    sizes = arguments["sizes"]
    return {**arguments, "sizes": [side for pair in zip(sizes[1::2], sizes[::2], strict=True) for side in pair]}


def as_the_pixels_lie(**arguments: Any) -> Tensor:
    return torch.empty_like(arguments["pixels"]).copy_(REFERENCE["combine_layers"](**arguments))


def list_reversed(**arguments: Any) -> Tensor:
    """The result is right, but a list of the caller's is not what it was."""
    result: Tensor = REFERENCE["combine_layers"](**arguments)
    arguments["gates"].reverse()
    return result


def into_a_copy(op: str) -> Fault:
    """The reference of ``op`` on copies: what it should change stays as it was."""

    def run(*args: Any, **kwargs: Any) -> Any:
        copies = {name: value.clone() if isinstance(value, Tensor) else value for name, value in kwargs.items()}
        return REFERENCE[op](*(value.clone() if isinstance(value, Tensor) else value for value in args), **copies)

    return run


FAULTS: dict[str, tuple[str, Fault]] = {
    **{f"{op}: last column unwritten": (op, after(op, unwritten(-1))) for op in REFERENCE if op not in MUTATED},
    **{f"{op}: last of the batch unwritten": (op, after(op, unwritten(0))) for op in REFERENCE if op not in MUTATED},
    **{f"{op}: a copy is changed": (op, into_a_copy(op)) for op in MUTATED},
    "mask: negative frequencies begin a row late": (
        "radial_mask",
        patched("radial_mask", mask_file, "squared_radius", wrong_fold),
    ),
    "mask: shape ignored": ("radial_mask", changed("radial_mask", shape_ignored)),
    "mask: disc and Butterworth exchanged": ("radial_mask", changed("radial_mask", shapes_exchanged)),
    "mask: disc with < instead of <=": ("radial_mask", patched("radial_mask", mask_file, "inside_radius", open_disc)),
    "mask: disc in float32": ("radial_mask", patched("radial_mask", mask_file, "inside_radius", rounded_disc)),
    "mask: Butterworth of order 1": ("radial_mask", butterworth(lambda ratio: 1 / (1 + ratio))),
    "mask: Butterworth of half the power": ("radial_mask", butterworth(lambda ratio: (1 + ratio**2).rsqrt())),
    "mask: tf32": ("radial_mask", after("radial_mask", ten_bits)),
    "mask: last row unwritten": ("radial_mask", after("radial_mask", unwritten(-2))),
    "cut-off: radius off by one": ("energy_cutoff", cutoff(at_least, offset=1)),
    "cut-off: radius one short": ("energy_cutoff", cutoff(at_least, offset=-1)),
    "cut-off: DC counted though left out": ("energy_cutoff", cutoff(at_least, include_dc=True)),
    "cut-off: > instead of >=": ("energy_cutoff", cutoff(above)),
    "cut-off: bfloat16 sums": ("energy_cutoff", short_sums),
    "mix: negative frequencies begin a row late": (
        "band_mix",
        patched("band_mix", mask_file, "squared_radius", wrong_fold),
    ),
    "mix: shape ignored": ("band_mix", changed("band_mix", shape_ignored)),
    "mix: disc and Butterworth exchanged": ("band_mix", changed("band_mix", shapes_exchanged)),
    "mix: disc with < instead of <=": ("band_mix", patched("band_mix", mask_file, "inside_radius", open_disc)),
    "mix: Butterworth of order 1": ("band_mix", mix_of(butterworth(lambda ratio: 1 / (1 + ratio)))),
    "mix: no conjugates": ("band_mix", patched("band_mix", mix_file, "hermitian_grid", without_conjugates)),
    "mix: mirrored rows draw their own words": (
        "band_mix",
        patched("band_mix", mix_file, "hermitian_grid", without_mirrors),
    ),
    "mix: words of the bands exchanged": ("band_mix", generator("band_mix", 0, 1, 3, 2)),
    "mix: real and imaginary words exchanged": ("band_mix", generator("band_mix", 1, 0, 2, 3)),
    "mix: words in reverse order": ("band_mix", generator("band_mix", 3, 2, 1, 0)),
    "mix: one word for both bands": ("band_mix", generator("band_mix", 0, 1, 2, 2)),
    "mix: seven rounds": ("band_mix", generator("band_mix", 0, 1, 2, 3, rounds=7)),
    "mix: shared multiplier ignored": (
        "band_mix",
        changed("band_mix", lambda arguments: {**arguments, "shared_multiplier": False}),
    ),
    "mix: row number in place of the image's name": ("band_mix", changed("band_mix", row_for_name)),
    "mix: the seed's upper half ignored": ("band_mix", changed("band_mix", lower_half)),
    "mix: tf32": ("band_mix", after("band_mix", ten_bits)),
    "mix: racy": ("band_mix", after("band_mix", Racy())),
    "mix: last row of coefficients unwritten": ("band_mix", after("band_mix", unwritten(-2))),
    "samples: divided by HW": (
        "band_samples",
        after("band_samples", lambda pixels: pixels / math.prod(pixels.shape[2:])),
    ),
    "samples: even and odd columns exchanged": (
        "band_samples",
        after("band_samples", columns_exchanged),
    ),
    "samples: upside down": ("band_samples", after("band_samples", lambda pixels: pixels.flip(2))),
    "samples: seven rounds": ("band_samples", generator("band_samples", 0, 1, 2, 3, rounds=7)),
    "samples: tf32": ("band_samples", after("band_samples", ten_bits)),
    "samples: racy": ("band_samples", after("band_samples", Racy())),
    "dct: words exchanged": ("dct_mix", generator("dct_mix", 2, 1, 0, 3)),
    "dct: seven rounds": ("dct_mix", generator("dct_mix", 0, 1, 2, 3, rounds=7)),
    "dct: row number in place of the image's name": ("dct_mix", changed("dct_mix", row_for_name)),
    "dct: tf32": ("dct_mix", after("dct_mix", ten_bits)),
    "diversify: corners aligned": ("diversify", corners_aligned),
    "diversify: a row too high": ("diversify", changed("diversify", a_row_too_high)),
    "diversify: tf32": ("diversify", after("diversify", ten_bits)),
    "transpose: resized back": ("diversify_adjoint", nearest),
    "transpose: a row too high": ("diversify_adjoint", changed("diversify_adjoint", a_row_too_high)),
    "transpose: racy": ("diversify_adjoint", after("diversify_adjoint", Racy())),
    "transpose: last row unwritten": ("diversify_adjoint", after("diversify_adjoint", unwritten(-2))),
    "sum: rows lost": ("accumulate", overwritten),
    "sum: another order": ("accumulate", last_first),
    "step: tf32": ("gradient_step", after("gradient_step", ten_bits)),
    "step: racy sum": ("gradient_step", after("gradient_step", Racy())),
    "step: bfloat16 sum": ("gradient_step", half_sum),
    "step: decay applied twice": (
        "gradient_step",
        changed("gradient_step", lambda arguments: {**arguments, "decay": arguments["decay"] ** 2}),
    ),
    "step: smoothing is convolution": (
        "gradient_step",
        changed("gradient_step", lambda arguments: {**arguments, "kernel": arguments["kernel"].flip(0)}),
    ),
    "step: one scale for the batch": ("gradient_step", one_scale_for_all),
    "step: an argument changed in place": ("gradient_step", in_place),
    "step: last row unwritten": ("gradient_step", after("gradient_step", unwritten(-2))),
    "evidence: of the gradient's other sign": (
        "layer_evidence",
        changed("layer_evidence", lambda arguments: {**arguments, "gradient": -arguments["gradient"]}),
    ),
    "evidence: against the target too": ("layer_evidence", evidence(lambda a, g: -(g * a).sum(1))),
    "evidence: absolute": ("layer_evidence", evidence(lambda a, g: (g * a).sum(1).abs())),
    "evidence: only channels that speak for the target": (
        "layer_evidence",
        evidence(lambda a, g: torch.relu(-(g * a)).sum(1)),
    ),
    "evidence: Grad-CAM's weights": ("layer_evidence", evidence(grad_cam)),
    "evidence: the mean of the channels": ("layer_evidence", evidence(lambda a, g: torch.relu(-(g * a).mean(1)))),
    "evidence: last channel left out": (
        "layer_evidence",
        evidence(lambda a, g: torch.relu(-(g * a)[:, : max(a.shape[1] - 1, 1)].sum(1))),
    ),
    "evidence: NaN is none": (
        "layer_evidence",
        evidence(lambda a, g: torch.where((g * a).sum(1) < 0, -(g * a).sum(1), 0.0)),
    ),
    "evidence: products in half precision": ("layer_evidence", half_products),
    "evidence: sums in half precision": ("layer_evidence", half_evidence),
    "evidence: in the activation's dtype": (
        "layer_evidence",
        lambda activation, gradient: REFERENCE["layer_evidence"](activation, gradient).to(activation.dtype),
    ),
    "evidence: tf32": ("layer_evidence", after("layer_evidence", ten_bits)),
    "evidence: racy": ("layer_evidence", after("layer_evidence", Racy())),
    "evidence: strides ignored": ("layer_evidence", as_if_contiguous),
    "evidence: added as the channels lie in memory": (
        "layer_evidence",
        evidence(lambda a, g: torch.relu(-(g * a).sum(1))),
    ),
    "evidence: last row unwritten": ("layer_evidence", after("layer_evidence", unwritten(-2))),
    "layers: not divided by the mean": ("combine_layers", combined(lambda level: level)),
    "layers: over the largest": ("combine_layers", combined(lambda level: level / level.amax((1, 2), keepdim=True))),
    "layers: one mean for the batch": ("combine_layers", combined(lambda level: level / level.mean())),
    "layers: over the mean of what was resized": (
        "combine_layers",
        combined(lambda level: level, over_mean_once_resized),
    ),
    "layers: zero over zero": (
        "combine_layers",
        combined(lambda level: (level.double() / level.double().mean((1, 2), keepdim=True)).to(level.dtype)),
    ),
    "layers: NaN is nothing": ("combine_layers", combined(lambda level: over_mean(level).nan_to_num())),
    "layers: sums in float32": ("combine_layers", combined(with_float32_sums)),
    "layers: times the reciprocal of the mean": ("combine_layers", combined(times_the_reciprocal)),
    "layers: corners aligned": ("combine_layers", combined(resized=partial(bilinear, align_corners=True))),
    "layers: smoothed where they are larger": ("combine_layers", combined(resized=partial(bilinear, antialias=True))),
    "layers: nearest cell": (
        "combine_layers",
        combined(resized=lambda level, size: torch.nn.functional.interpolate(level[:, None], size)[:, 0]),
    ),
    "layers: gate without floor": ("combine_layers", combined(gated=lambda total, gate, floor: total * gate)),
    "layers: gate added": ("combine_layers", combined(gated=lambda total, gate, floor: total + floor + gate)),
    "layers: weights and gates exchanged": (
        "combine_layers",
        changed("combine_layers", lambda a: {**a, "weights": a["gates"], "gates": a["weights"]}),
    ),
    "layers: weights in reverse": (
        "combine_layers",
        changed("combine_layers", lambda a: {**a, "weights": a["weights"][::-1]}),
    ),
    "layers: heights and widths exchanged": ("combine_layers", changed("combine_layers", sides_exchanged)),
    "layers: a list is turned around": ("combine_layers", list_reversed),
    "layers: in the strides of the pixels": ("combine_layers", as_the_pixels_lie),
    "layers: tf32": ("combine_layers", after("combine_layers", ten_bits)),
    "layers: racy": ("combine_layers", after("combine_layers", Racy())),
    "layers: last row unwritten": ("combine_layers", after("combine_layers", unwritten(-2))),
    "pixel mask: < instead of <=": (
        "pixel_mask",
        changed("pixel_mask", lambda arguments: {**arguments, "step": arguments["step"] - 1}),
    ),
    "pixel mask: steps cut to 32 bits": (
        "pixel_mask",
        changed("pixel_mask", lambda arguments: {**arguments, "step": arguments["step"].int()}),
    ),
    "pixel mask: always contiguous": ("pixel_mask", after("pixel_mask", lambda values: values.clone().contiguous())),
}


# The checks made for a fault: they must catch it on their own, whatever others do.
CATCHERS: dict[str, str] = {
    "mask: negative frequencies begin a row late": "radial_mask_falls_to_its_shape_s_values",
    "mask: shape ignored": "radial_mask_falls_to_its_shape_s_values",
    "mask: disc and Butterworth exchanged": "radial_mask_falls_to_its_shape_s_values",
    "mask: disc with < instead of <=": "radial_mask_decides_on_the_edge_of_a_disc_without_rounding",
    "mask: disc in float32": "radial_mask_decides_on_the_edge_of_a_disc_without_rounding",
    "mask: Butterworth of order 1": "radial_mask_falls_to_its_shape_s_values",
    "mask: Butterworth of half the power": "radial_mask_falls_to_its_shape_s_values",
    "mask: tf32": "radial_mask_is_as_accurate_as_the_reference",
    "cut-off: radius off by one": "energy_cutoff_finds_a_wave",
    "cut-off: radius one short": "energy_cutoff_finds_a_wave",
    "cut-off: DC counted though left out": "energy_cutoff_finds_a_wave",
    "cut-off: > instead of >=": "energy_cutoff_is_exact_at_ties",
    "cut-off: bfloat16 sums": "energy_cutoff_adds_whole_energies_without_rounding",
    "mix: shape ignored": "band_mix_without_randomness_is_the_filter",
    "mix: disc and Butterworth exchanged": "band_mix_without_randomness_is_the_filter",
    "mix: disc with < instead of <=": "band_mix_without_randomness_is_the_filter",
    "mix: Butterworth of order 1": "band_mix_without_randomness_is_the_filter",
    "mix: no conjugates": "band_mix_of_nothing_is_the_transform_of_real_noise",
    "mix: mirrored rows draw their own words": "band_mix_of_nothing_is_the_transform_of_real_noise",
    "mix: words of the bands exchanged": "band_mix_draws_the_published_words_at_dc",
    "mix: real and imaginary words exchanged": "band_mix_draws_the_published_words_at_dc",
    "mix: words in reverse order": "band_mix_draws_the_reference_s_words",
    "mix: one word for both bands": "band_mix_multipliers_are_uniform_and_independent",
    "mix: seven rounds": "band_mix_draws_the_published_words_at_dc",
    "mix: shared multiplier ignored": "band_mix_is_as_accurate_as_the_reference",
    "mix: row number in place of the image's name": "band_mix_of_a_row_stands_alone",
    "mix: the seed's upper half ignored": "band_mix_streams_differ",
    "mix: racy": "band_mix_is_repeatable",
    "samples: divided by HW": "band_samples_without_randomness_are_the_images",
    "samples: even and odd columns exchanged": "band_samples_without_randomness_are_the_images",
    "samples: upside down": "band_samples_without_randomness_are_the_images",
    "samples: tf32": "band_samples_are_as_accurate_as_the_reference",
    "samples: racy": "band_samples_depend_on_neither_strides_nor_run",
    "dct: words exchanged": "dct_mix_draws_the_published_words_at_dc",
    "dct: seven rounds": "dct_mix_draws_the_published_words_at_dc",
    "dct: row number in place of the image's name": "dct_mix_of_a_row_stands_alone",
    "diversify: corners aligned": "diversify_is_as_accurate_as_the_reference",
    "transpose: resized back": "diversify_adjoint_is_the_transpose",
    "evidence: of the gradient's other sign": "layer_evidence_adds_products_and_keeps_what_lowers_the_loss",
    "evidence: against the target too": "layer_evidence_adds_products_and_keeps_what_lowers_the_loss",
    "evidence: absolute": "layer_evidence_adds_products_and_keeps_what_lowers_the_loss",
    "evidence: only channels that speak for the target": "layer_evidence_is_as_accurate_as_the_reference",
    "evidence: Grad-CAM's weights": "layer_evidence_adds_products_and_keeps_what_lowers_the_loss",
    "evidence: NaN is none": "layer_evidence_hides_no_nan",
    "evidence: products in half precision": "layer_evidence_adds_halves_in_float32",
    "evidence: sums in half precision": "layer_evidence_adds_halves_in_float32",
    "evidence: in the activation's dtype": "layer_evidence_adds_halves_in_float32",
    "evidence: tf32": "layer_evidence_is_as_accurate_as_the_reference",
    "evidence: racy": "layer_evidence_depends_on_neither_strides_nor_batch_nor_run",
    "evidence: strides ignored": "layer_evidence_depends_on_neither_strides_nor_batch_nor_run",
    "evidence: added as the channels lie in memory": "layer_evidence_depends_on_neither_strides_nor_batch_nor_run",
    "layers: not divided by the mean": "combine_layers_takes_a_level_without_structure_for_one",
    "layers: zero over zero": "combine_layers_leaves_empty_levels_empty_and_hides_no_nan",
    "layers: NaN is nothing": "combine_layers_leaves_empty_levels_empty_and_hides_no_nan",
    "layers: sums in float32": "combine_layers_takes_evidence_of_any_scale",
    "layers: times the reciprocal of the mean": "combine_layers_takes_evidence_of_any_scale",
    "layers: corners aligned": "combine_layers_is_as_accurate_as_the_reference",
    "layers: smoothed where they are larger": "combine_layers_resizes_any_layers",
    "layers: weights and gates exchanged": "combine_layers_is_as_accurate_as_the_reference",
    "layers: in the strides of the pixels": "combine_layers_depends_on_neither_strides_nor_batch_nor_run",
    "layers: racy": "combine_layers_depends_on_neither_strides_nor_batch_nor_run",
    "layers: a list is turned around": "combine_layers_is_as_accurate_as_the_reference",
    "sum: another order": "accumulate_adds_rows_in_their_order",
    "step: racy sum": "gradient_step_depends_on_neither_batch_nor_run",
    "step: bfloat16 sum": "gradient_step_adds_large_sums_in_float32",
    "step: decay applied twice": "gradient_step_known_answers",
    "step: one scale for the batch": "gradient_step_depends_on_neither_batch_nor_run",
}


@pytest.mark.parametrize("op", REFERENCE)
def test_the_reference_passes_every_check(op: str) -> None:
    assert failures(op, REFERENCE[op]) == {}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_caught(fault: str) -> None:
    failed = failures(*FAULTS[fault])
    assert failed
    assert all(failed.values())
    if "unwritten" in fault:
        assert any("not finite" in message or "nan" in message for message in failed.values())
    assert CATCHERS.get(fault, next(iter(failed))) in failed


# The rules themselves -------------------------------------------------------------------------------------------------


def test_the_error_rule_allows_twice_the_reference_s_error_or_a_few_ulp() -> None:
    exact = torch.tensor([[1.0, 0.5]], dtype=torch.float64)
    single = exact + 1e-5
    assert_as_accurate((exact - 1.9e-5), single, exact)
    with pytest.raises(AssertionError, match="allowed 2e-05"):
        assert_as_accurate(exact - 2.1e-5, single, exact)
    assert_as_accurate(exact + 4e-7, exact, exact)  # 4 ulp of 1 are 4.8e-7
    with pytest.raises(AssertionError, match="error 5e-07"):
        assert_as_accurate(exact + 5e-7, exact, exact)
    with pytest.raises(AssertionError, match="1 of 2 values are not finite"):
        assert_as_accurate(torch.tensor([[math.nan, 0.5]]), single, exact)
    with pytest.raises(AssertionError, match="shape"):
        assert_as_accurate(exact[:, :1], single, exact)
    assert_as_accurate(exact[:0], single[:0], exact[:0])


def test_same_means_every_value_and_the_dtype() -> None:
    values = torch.tensor([0.0, math.nan, 1.0])
    assert_same(torch.tensor([-0.0, math.nan, 1.0]), values)
    with pytest.raises(AssertionError, match="1 of 3 values differ"):
        assert_same(torch.tensor([0.0, math.nan, 1.0 + 2**-23]), values)
    with pytest.raises(AssertionError, match="2 of 3"):
        assert_same(torch.zeros(3), values)
    with pytest.raises(AssertionError, match="float64"):
        assert_same(values.double(), values)


def test_poisoned_memory_is_nan_inside_and_leaves_the_switches_alone() -> None:
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    with poisoned_memory():
        for fresh in (torch.empty(3), torch.ones(2).new_empty(3, 2), torch.empty_like(torch.ones(2, 2))):
            assert fresh.isnan().all()
        assert torch.empty(2, dtype=torch.complex64).isnan().all()
        assert (torch.empty(2, dtype=torch.int32) == 2**31 - 1).all()
    after = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    assert after == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64, torch.int64])
def test_stride_variants_hold_the_same_values_in_other_places(dtype: torch.dtype) -> None:
    values = torch.arange(2 * 3 * 4 * 5).view(2, 3, 4, 5).to(dtype) * (1 + 2j if dtype.is_complex else 1)
    variants = stride_variants(values)
    assert len(variants) == 5 + dtype.is_complex
    for name, variant in variants.items():
        assert torch.equal(variant.resolve_conj(), values), name
        moved = variant.stride() != values.stride() or variant.storage_offset() or variant.is_conj()
        assert moved, name


def white(seed: int = 0) -> Tensor:
    return torch.randn(200, 8, 9, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("message", "spoil"),
    [
        ("mean", lambda noise: noise + 0.1),
        ("variance: ", lambda noise: noise * 1.1),
        ("worst pixel", lambda noise: noise * (1 + (torch.arange(72).view(8, 9) == 40) * 0.5)),
        ("correlation", lambda noise: (noise + noise.roll(1, 2) * 0.2) / math.sqrt(1.04)),
        ("kurtosis", lambda noise: noise.sign() * 1.0),
        ("not finite", lambda noise: noise / (noise != noise[0, 0, 0])),
    ],
)
def test_noise_that_is_not_white_and_gaussian_is_told(message: str, spoil: Callable[[Tensor], Tensor]) -> None:
    statistics.assert_white(white())
    with pytest.raises(AssertionError, match=message):
        statistics.assert_white(spoil(white()))


def test_numbers_that_are_not_uniform_or_not_independent_are_told() -> None:
    values = 2 * torch.rand(2, 5000, generator=torch.Generator().manual_seed(1)) - 1
    statistics.assert_uniform(values)
    statistics.assert_independent(*values)
    for wrong in (values * 1.01, values.abs(), values * 0.9, (values * 8).floor() / 8 + 1 / 16):
        with pytest.raises(AssertionError):
            statistics.assert_uniform(wrong)
    with pytest.raises(AssertionError, match="correlation"):
        statistics.assert_independent(values[0], values[0] + values[1])
    with pytest.raises(AssertionError, match="squared"):  # uncorrelated, and yet one decides the other's magnitude
        statistics.assert_independent(values[0], values[0].abs() * values[1].sign())


def test_a_symmetry_that_is_broken_in_one_place_is_told() -> None:
    spectrum = torch.fft.rfft2(torch.rand(6, 8).double())
    spectrum = torch.where(torch.arange(5) % 4 == 0, (spectrum + spectrum.roll(-1, 0).flip(0).conj()) / 2, spectrum)
    statistics.assert_hermitian(spectrum, 8)
    spectrum[2, 4] += 1e-12
    with pytest.raises(AssertionError, match="column 4"):
        statistics.assert_hermitian(spectrum, 8)


def test_the_published_vectors_are_the_reference_s() -> None:
    for vector in PHILOX:
        counter = tuple(torch.tensor([word]) for word in vector.counter)
        key = torch.tensor([vector.key[0]]), torch.tensor([vector.key[1]])
        assert tuple(int(word) for word in philox_file.philox4x32(counter, key, vector.rounds)) == vector.words


def test_cases_have_different_names() -> None:
    for check in registered():
        names = [str(case) for case in check.cases]
        assert len(set(names)) == len(names), check.name
    assert str(Case(8, 9)) == "8x9"
    assert str(Case(8, 9, batch=1, mode="allpass", taps=7)) == "8x9-allpass-batch1-taps7"


# Backends and the command line ----------------------------------------------------------------------------------------


def test_a_backend_is_its_own_functions() -> None:
    assert "band_mix" in load_primitives("reference", "cpu")
    compiled = load_primitives("compiled", "cpu")
    assert {"band_mix", "dct_mix"} <= set(compiled)
    assert "radial_mask" not in compiled
    with pytest.raises(AttributeError, match="'compiled' has no primitive 'radial_mask'"):
        _ = compiled.radial_mask
    with pytest.raises(BackendUnavailableError, match="nonsense"):
        load_primitives("nonsense", "cpu")


@pytest.mark.slow
def test_importing_it_costs_neither_pytest_nor_triton() -> None:
    program = "import sys, fampe_fast.testing; print([m for m in ('pytest', 'triton', 'timm') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.strip() == "[]"


BACKEND = """
import fampe_fast
from fampe_fast.reference.pixel_mask import pixel_mask
from fampe_fast.reference.radial_mask import radial_mask

def registered(name, factor):
    def masks(cutoff, height, width, shape):
        low, high = radial_mask(cutoff, height, width, shape)
        return low, high * factor

    own = {"radial_mask": masks, "pixel_mask": lambda *args, **kw: pixel_mask(*args, **kw)}
    fampe_fast.register_backend(name, own)

registered("mine", 1)
registered("faulty", 1.001)
"""


def pytest_of_a_third_party(folder: Path, *options: str) -> tuple[int, str]:
    (folder / "my_backend.py").write_text(BACKEND)
    command = [sys.executable, "-m", "pytest", "-p", "my_backend", "-p", "fampe_fast.testing.plugin"]
    command += ["-p", "no:cacheprovider", "--pyargs", "fampe_fast.testing.suite", *options]
    path = os.pathsep.join([str(folder), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_a_third_party_runs_the_suite_on_its_backend(tmp_path: Path) -> None:
    options = ("--fampe-backend", "mine,faulty", "--fampe-device", "cpu", "-k", "8x8 or 9x8 or 12x20", "-v")
    code, text = pytest_of_a_third_party(tmp_path, *options)
    assert code == 1, text
    assert not re.search(r"mine-\S+ (FAILED|ERROR)", text), text
    assert "backend mine on cpu, its own: radial_mask, pixel_mask" in text
    assert "mine-radial_mask_is_as_accurate_as_the_reference-8x8] PASSED" in text
    assert "mine-pixel_mask_of_a_row_stands_alone-9x8] PASSED" in text
    assert "-band_mix" not in text  # the reference serves it; nothing of this backend's would be tested
    assert "faulty-radial_mask_is_as_accurate_as_the_reference-8x8] FAILED" in text
    assert "faulty-pixel_mask_of_a_row_stands_alone-9x8] PASSED" in text


@pytest.mark.slow
def test_without_triton_the_suite_says_that_no_kernel_is_tested(tmp_path: Path) -> None:
    (tmp_path / "no_triton.py").write_text("import sys; sys.modules['triton'] = None")
    code, text = pytest_of_a_third_party(tmp_path, "-p", "no_triton", "-k", "triton", "-rs")
    assert code == 0, text
    assert re.search(r"SKIPPED.*the Triton kernels are not tested: .*triton is not installed: pip install", text), text


@pytest.mark.slow
def test_a_backend_that_cannot_be_tested_is_a_usage_error(tmp_path: Path) -> None:
    code, text = pytest_of_a_third_party(tmp_path, "--fampe-backend", "mine,yours")
    assert code == 4, text
    assert "ERROR: --fampe-backend: " in text
    assert "'yours': unknown" in text
