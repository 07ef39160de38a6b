"""List the primitives in a table of references, fake shapes and gradients.

All except ``accumulate`` are functional. They are differentiable in inputs of which the result is a smooth function:
the mixes in the spectrum (they are linear in it), the masks in the cut-off, the masked images in the images.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from ..reference.accumulate import accumulate as _accumulate
from ..reference.band_mix import band_mix as _band_mix
from ..reference.band_samples import band_samples as _band_samples
from ..reference.combine_layers import combine_layers as _combine_layers
from ..reference.dct_mix import dct_mix as _dct_mix
from ..reference.diversify import diversify as _diversify
from ..reference.diversify import diversify_adjoint as _diversify_adjoint
from ..reference.energy_cutoff import energy_cutoff as _energy_cutoff
from ..reference.gradient_step import StepResult
from ..reference.gradient_step import gradient_step as _gradient_step
from ..reference.layer_evidence import evidence_dtype
from ..reference.layer_evidence import layer_evidence as _layer_evidence
from ..reference.pixel_mask import pixel_mask as _pixel_mask
from ..reference.pixel_mask import result_format
from ..reference.radial_mask import radial_mask as _radial_mask
from ..reference.radius import squared_radius
from ..runtime.tf32 import tensor_float32
from .registration import operator, primitive

__all__ = [
    "StepResult",
    "accumulate",
    "band_mix",
    "band_samples",
    "combine_layers",
    "dct_mix",
    "diversify",
    "diversify_adjoint",
    "energy_cutoff",
    "gradient_step",
    "irfft2",
    "layer_evidence",
    "pixel_mask",
    "radial_mask",
    "separable_transform",
]

Saved = dict[str, Any]
"""A call's arguments by name, as ``registration.primitive`` hands them to a gradient."""

# Shapes and gradients -------------------------------------------------------------------------------------------------


def _rows_like(source: Tensor, image_index: Tensor, memory_format: torch.memory_format) -> Tensor:
    shape = (image_index.shape[0], *source.shape[1:])
    return torch.empty(shape, dtype=source.dtype, device=source.device, memory_format=memory_format)


def _add_rows(rows: Tensor, image_index: Tensor, shape: torch.Size) -> Tensor:
    """Add the gradients of all rows of an image."""
    return rows.new_zeros(shape).index_add_(0, image_index, rows)


def _mask_gradient(saved: Saved, shape: torch.Size, low_gradient: Tensor, high_gradient: Tensor) -> Tensor:
    """Apply ``dL/dcutoff = L * r^2 / cutoff^3``, of Butterworth ``4 L (1-L) / cutoff``, 0 of a disc; ``dHi = -dL``."""
    cutoff: Tensor = saved["cutoff"]
    if saved["shape"] == "disc":
        return torch.zeros_like(cutoff)
    low, high = radial_mask(cutoff, saved["height"], saved["width"], saved["shape"])
    change = low_gradient - high_gradient
    if saved["shape"] == "butterworth":
        return 4 * (change * low * high).sum((1, 2)) / cutoff
    squared = squared_radius(saved["height"], saved["width"], cutoff.device, cutoff.dtype)
    return (change * low * squared).sum((1, 2)) / cutoff**3


def _band_gradient(saved: Saved, shape: torch.Size, gradient: Tensor) -> Tensor:
    """Sum gain * dY over the rows of an image; the gain is the mix of a spectrum of ones without noise."""
    weights: Tensor = saved["weights"]
    quiet = torch.cat([weights[:, :5], torch.zeros_like(weights[:, 5:])], 1)
    gain = band_mix(gradient.new_ones(shape), **{**saved, "weights": quiet}).real
    return _add_rows(gradient * gain, saved["image_index"], shape)


def _dct_gradient(saved: Saved, shape: torch.Size, gradient: Tensor) -> Tensor:
    """Sum gain * dY over the rows of an image, as for ``band_mix``."""
    weights: Tensor = saved["weights"]
    quiet = torch.cat([weights[:, :1], torch.zeros_like(weights[:, 1:])], 1)
    gain = dct_mix(gradient.new_ones(shape), **{**saved, "weights": quiet})
    return _add_rows(gradient * gain, saved["image_index"], shape)


def _samples_gradient(saved: Saved, shape: torch.Size, gradient: Tensor) -> Tensor:
    return diversify_adjoint(gradient, saved["placements"], *shape[2:])


def _start_gradient(saved: Saved, shape: torch.Size, gradient: Tensor) -> Tensor:
    """Pass a pixel's gradient to the image it was taken from."""
    return _add_rows(gradient.masked_fill(_changed(saved), 0), saved["image_index"], shape)


def _finish_gradient(saved: Saved, shape: torch.Size, gradient: Tensor) -> Tensor:
    return _add_rows(gradient.masked_fill(~_changed(saved), 0), saved["image_index"], shape)


def _changed(saved: Saved) -> Tensor:
    changed: Tensor = saved["first_step"][saved["image_index"]] <= saved["step"][:, None, None]
    return changed[:, None]


# The table ------------------------------------------------------------------------------------------------------------

radial_mask = primitive(
    _radial_mask,
    lambda cutoff, height, width, **_: tuple(cutoff.new_empty((len(cutoff), height, width // 2 + 1)) for _ in range(2)),
    gradients={"cutoff": _mask_gradient},
    saves=("cutoff",),
)

energy_cutoff = primitive(
    _energy_cutoff, lambda spectrum, **_: spectrum.new_empty((spectrum.shape[0],), dtype=torch.float32), float64=True
)

band_mix = primitive(
    _band_mix,
    lambda spectrum, image_index, **_: _rows_like(spectrum, image_index, torch.contiguous_format),
    gradients={"spectrum": _band_gradient},
)

band_samples = primitive(
    _band_samples,
    lambda spectrum, image_index, width, **_: spectrum.new_empty(
        (image_index.shape[0], *spectrum.shape[1:3], width), dtype=spectrum.dtype.to_real()
    ),
)

dct_mix = primitive(
    _dct_mix,
    lambda spectrum, image_index, **_: _rows_like(spectrum, image_index, torch.contiguous_format),
    gradients={"spectrum": _dct_gradient},
)

diversify = primitive(
    _diversify,
    lambda samples, frame_height, frame_width, channels_last, **_: torch.empty(
        (*samples.shape[:2], frame_height, frame_width),
        dtype=samples.dtype,
        device=samples.device,
        memory_format=torch.channels_last if channels_last else torch.contiguous_format,
    ),
    gradients={"samples": _samples_gradient},
)

diversify_adjoint = primitive(
    _diversify_adjoint,
    lambda gradient, height, width, **_: gradient.new_empty((*gradient.shape[:2], height, width)),
    gradients={"gradient": lambda saved, shape, gradient: diversify(gradient, saved["placements"], *shape[2:])},
)

accumulate = primitive(_accumulate, lambda **_: None, mutates=("total",))

gradient_step = primitive(
    _gradient_step,
    lambda images, **_: (*(images.new_empty(images.shape) for _ in range(3)), images.new_empty((images.shape[0],))),
    float64=True,
)

pixel_mask = primitive(
    _pixel_mask,
    lambda start, finish, image_index, **_: _rows_like(start, image_index, result_format(start, finish)),
    gradients={"start": _start_gradient, "finish": _finish_gradient},
)

layer_evidence = primitive(
    _layer_evidence,
    lambda activation, gradient: activation.new_empty(
        (activation.shape[0], *activation.shape[2:]), dtype=evidence_dtype(activation, gradient)
    ),
)

combine_layers = primitive(_combine_layers, lambda pixels, **_: pixels.new_empty(pixels.shape), float64=True)


# Operators without backends -------------------------------------------------------------------------------------------


@operator(lambda values, rows, columns: values.new_empty((*values.shape[:-2], rows.shape[0], columns.shape[0])))
def separable_transform(values: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Compute ``rows @ values @ columns.T`` in full float32, whatever precision the process or autocast allows.

    Args:
        values: (..., H, W).
        rows: (H', H).
        columns: (W', W).

    Returns:
        (..., H', W').
    """
    exact = tensor_float32(False) if values.is_cuda else nullcontext()
    with exact, torch.autocast(values.device.type, enabled=False):
        return rows @ values @ columns.T


@operator(lambda spectrum, width: spectrum.new_empty((*spectrum.shape[:-1], width), dtype=spectrum.dtype.to_real()))
def irfft2(spectrum: Tensor, width: int) -> Tensor:
    """Transform half spectra (..., H, W//2+1), complex, back to images (..., H, W); not differentiable.

    ``torch.fft.irfft2`` as an operator, because older torch cannot trace its own with dynamic shapes.
    """
    images: Tensor = torch.fft.irfft2(spectrum, s=(spectrum.shape[-2], width))
    return images
