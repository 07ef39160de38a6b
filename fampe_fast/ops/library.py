"""The primitives as torch custom operators ``fampe_fast::...``: opaque to ``torch.compile``, with shapes and gradients.

Each calls the implementation that the table of backends gives for its tensors' device, when it runs and not when it is
traced. All are functional but ``accumulate``. They are differentiable where their result is a smooth function of its
input: the mixes in the spectrum (they are linear in it), the masks in the cut-off, the masked images in the images.
"""

# No `from __future__ import annotations`: torch reads the operators' schemas from the annotations.

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

from ..reference.pixel_mask import result_format
from ..reference.radius import squared_radius
from ..runtime.tf32 import tensor_float32
from .backends import implementation

NAMESPACE = "fampe_fast"


@custom_op(f"{NAMESPACE}::radial_mask", mutates_args=())
def radial_mask(cutoff: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """L and Hi."""
    low, high = implementation("radial_mask", cutoff.device)(cutoff, height, width)
    return low, high


@custom_op(f"{NAMESPACE}::energy_cutoff", mutates_args=())
def energy_cutoff(spectrum: Tensor, width: int, tau: float, include_dc: bool) -> Tensor:
    """Radius of the disc that holds the share tau."""
    cutoff: Tensor = implementation("energy_cutoff", spectrum.device)(spectrum, width, tau, include_dc)
    return cutoff


@custom_op(f"{NAMESPACE}::band_mix", mutates_args=())
def band_mix(
    spectrum: Tensor,
    cutoff: Tensor,
    weights: Tensor,
    image_ids: Tensor,
    image_index: Tensor,
    samples: Tensor,
    seed: Tensor,
    step: Tensor,
    width: int,
    shared_multiplier: bool,
) -> Tensor:
    """Perturbed half spectra."""
    mixed: Tensor = implementation("band_mix", spectrum.device)(
        spectrum, cutoff, weights, image_ids, image_index, samples, seed, step, width, shared_multiplier
    )
    return mixed


@custom_op(f"{NAMESPACE}::dct_mix", mutates_args=())
def dct_mix(
    spectrum: Tensor,
    weights: Tensor,
    image_ids: Tensor,
    image_index: Tensor,
    samples: Tensor,
    seed: Tensor,
    step: Tensor,
) -> Tensor:
    """Perturbed DCT spectra."""
    mixed: Tensor = implementation("dct_mix", spectrum.device)(
        spectrum, weights, image_ids, image_index, samples, seed, step
    )
    return mixed


@custom_op(f"{NAMESPACE}::diversify", mutates_args=())
def diversify(samples: Tensor, placements: Tensor, frame_height: int, frame_width: int, channels_last: bool) -> Tensor:
    """Resized samples in frames of zeros."""
    shown: Tensor = implementation("diversify", samples.device)(
        samples, placements, frame_height, frame_width, channels_last
    )
    return shown


@custom_op(f"{NAMESPACE}::diversify_adjoint", mutates_args=())
def diversify_adjoint(gradient: Tensor, placements: Tensor, height: int, width: int) -> Tensor:
    """Gradients of the samples from those of the frames."""
    back: Tensor = implementation("diversify_adjoint", gradient.device)(gradient, placements, height, width)
    return back


@custom_op(f"{NAMESPACE}::accumulate", mutates_args=("total",))
def accumulate(total: Tensor, gradient: Tensor, image_index: Tensor) -> None:
    """Adds rows to their images, in place."""
    implementation("accumulate", total.device)(total, gradient, image_index)


@custom_op(f"{NAMESPACE}::gradient_step", mutates_args=())
def gradient_step(
    images: Tensor,
    origin: Tensor,
    gradient_sum: Tensor,
    momentum: Tensor,
    attribution: Tensor,
    kernel: Tensor,
    samples: int,
    decay: float,
    step_size: float,
    eps: float,
    lower: float,
    upper: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Next images, momentum, attribution and the gradient's scale."""
    new_images, new_momentum, new_attribution, scale = implementation("gradient_step", images.device)(
        images, origin, gradient_sum, momentum, attribution, kernel, samples, decay, step_size, eps, lower, upper
    )
    return new_images, new_momentum, new_attribution, scale


@custom_op(f"{NAMESPACE}::pixel_mask", mutates_args=())
def pixel_mask(start: Tensor, finish: Tensor, first_step: Tensor, image_index: Tensor, step: Tensor) -> Tensor:
    """Masked images."""
    masked: Tensor = implementation("pixel_mask", start.device)(start, finish, first_step, image_index, step)
    return masked


@custom_op(f"{NAMESPACE}::separable_transform", mutates_args=())
def separable_transform(values: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Two matrix products in full float32, whatever the process, or an autocast around it, allows its models."""
    exact = tensor_float32(False) if values.is_cuda else nullcontext()
    with exact, torch.autocast(values.device.type, enabled=False):
        return rows @ values @ columns.T


@custom_op(f"{NAMESPACE}::irfft2", mutates_args=())
def irfft2(spectrum: Tensor, width: int) -> Tensor:
    """Images of half spectra; an operator because older torch cannot trace its own with dynamic shapes."""
    images: Tensor = torch.fft.irfft2(spectrum, s=(spectrum.shape[-2], width))
    return images


# Shapes ---------------------------------------------------------------------------------------------------------------


@radial_mask.register_fake
def _(cutoff: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    low = cutoff.new_empty((len(cutoff), height, width // 2 + 1))
    return low, torch.empty_like(low)


@energy_cutoff.register_fake
def _(spectrum: Tensor, width: int, tau: float, include_dc: bool) -> Tensor:
    return spectrum.new_empty((spectrum.shape[0],), dtype=torch.float32)


@band_mix.register_fake
def _(spectrum: Tensor, cutoff: Tensor, weights: Tensor, image_ids: Tensor, image_index: Tensor, *rest: Any) -> Tensor:
    return _rows_like(spectrum, image_index)


@dct_mix.register_fake
def _(spectrum: Tensor, weights: Tensor, image_ids: Tensor, image_index: Tensor, *rest: Any) -> Tensor:
    return _rows_like(spectrum, image_index)


@diversify.register_fake
def _(samples: Tensor, placements: Tensor, frame_height: int, frame_width: int, channels_last: bool) -> Tensor:
    return torch.empty(
        (*samples.shape[:2], frame_height, frame_width),
        dtype=samples.dtype,
        device=samples.device,
        memory_format=torch.channels_last if channels_last else torch.contiguous_format,
    )


@diversify_adjoint.register_fake
def _(gradient: Tensor, placements: Tensor, height: int, width: int) -> Tensor:
    return gradient.new_empty((*gradient.shape[:2], height, width))


@accumulate.register_fake
def _(total: Tensor, gradient: Tensor, image_index: Tensor) -> None:
    return None


@gradient_step.register_fake
def _(images: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    new = [images.new_empty(images.shape) for _ in range(3)]
    return new[0], new[1], new[2], images.new_empty((images.shape[0],))


@pixel_mask.register_fake
def _(start: Tensor, finish: Tensor, first_step: Tensor, image_index: Tensor, step: Tensor) -> Tensor:
    return torch.empty(
        (image_index.shape[0], *start.shape[1:]),
        dtype=start.dtype,
        device=start.device,
        memory_format=result_format(start, finish),
    )


@separable_transform.register_fake
def _(values: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    return values.new_empty((*values.shape[:-2], rows.shape[0], columns.shape[0]))


@irfft2.register_fake
def _(spectrum: Tensor, width: int) -> Tensor:
    return spectrum.new_empty((*spectrum.shape[:-1], width), dtype=spectrum.dtype.to_real())


def _rows_like(spectrum: Tensor, image_index: Tensor) -> Tensor:
    return spectrum.new_empty((image_index.shape[0], *spectrum.shape[1:]))


# Gradients ------------------------------------------------------------------------------------------------------------


def _refuse(ctx: Any, *names: str) -> None:
    """Arguments after the first that ask for a gradient would get none, in silence."""
    wanted = [name for name, needed in zip(names, ctx.needs_input_grad[1:], strict=False) if needed]
    if wanted:
        raise NotImplementedError(
            f"the mix is differentiable in the spectrum, not in {' and '.join(wanted)}: detach it"
        )


def _add_rows(rows: Tensor, image_index: Tensor, batch: int) -> Tensor:
    return rows.new_zeros((batch, *rows.shape[1:])).index_add_(0, image_index, rows)


def _mask_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    cutoff, ctx.height, ctx.width = inputs
    ctx.save_for_backward(cutoff, output[0])


def _mask_backward(ctx: Any, low_gradient: Tensor, high_gradient: Tensor) -> tuple[Tensor, None, None]:
    """``dL/dcutoff = L * r^2 / cutoff^3``, and ``dHi = -dL``."""
    cutoff, low = ctx.saved_tensors
    squared = squared_radius(ctx.height, ctx.width, cutoff.device, cutoff.dtype)
    return ((low_gradient - high_gradient) * low * squared).sum((1, 2)) / cutoff**3, None, None


def _band_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _refuse(ctx, "cutoff", "weights")
    spectrum, *tensors, ctx.width, ctx.shared_multiplier = inputs
    ctx.save_for_backward(spectrum, *tensors)


def _band_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """``dX[b]`` is the sum over the rows of b of gain * dY; the gain is the mix of a spectrum of ones without noise."""
    spectrum, cutoff, weights, image_ids, image_index, samples, seed, step = ctx.saved_tensors
    quiet = torch.cat([weights[:, :5], torch.zeros_like(weights[:, 5:])], 1)
    ones = torch.ones_like(spectrum, memory_format=torch.contiguous_format)
    gain = band_mix(
        ones, cutoff, quiet, image_ids, image_index, samples, seed, step, ctx.width, ctx.shared_multiplier
    ).real
    return (_add_rows(gradient * gain, image_index, len(spectrum)), *[None] * 9)


def _dct_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _refuse(ctx, "weights")
    ctx.save_for_backward(*inputs)


def _dct_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """As for ``band_mix``."""
    spectrum, weights, image_ids, image_index, samples, seed, step = ctx.saved_tensors
    quiet = torch.cat([weights[:, :1], torch.zeros_like(weights[:, 1:])], 1)
    ones = torch.ones_like(spectrum, memory_format=torch.contiguous_format)
    gain = dct_mix(ones, quiet, image_ids, image_index, samples, seed, step)
    return (_add_rows(gradient * gain, image_index, len(spectrum)), *[None] * 6)


def _diversify_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    samples, placements, *_ = inputs
    ctx.size = samples.shape[2:]
    ctx.save_for_backward(placements)


def _diversify_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    (placements,) = ctx.saved_tensors
    return diversify_adjoint(gradient, placements, *ctx.size), None, None, None, None


def _adjoint_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    gradient, placements, *_ = inputs
    ctx.size = gradient.shape[2:]
    ctx.save_for_backward(placements)


def _adjoint_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    (placements,) = ctx.saved_tensors
    return diversify(gradient, placements, *ctx.size, False), None, None, None


def _pixel_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    start, _, *tensors = inputs
    ctx.batch = len(start)
    ctx.save_for_backward(*tensors)


def _pixel_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """A pixel's gradient goes to the image it was taken from."""
    first_step, image_index, step = ctx.saved_tensors
    changed = (first_step[image_index] <= step[:, None, None])[:, None]
    zero = torch.zeros_like(gradient)
    to_start, to_finish = torch.where(changed, zero, gradient), torch.where(changed, gradient, zero)
    sums = [
        _add_rows(rows, image_index, ctx.batch) if wanted else None
        for rows, wanted in zip((to_start, to_finish), ctx.needs_input_grad, strict=False)
    ]
    return (*sums, None, None, None)


radial_mask.register_autograd(_mask_backward, setup_context=_mask_context)
band_mix.register_autograd(_band_backward, setup_context=_band_context)
dct_mix.register_autograd(_dct_backward, setup_context=_dct_context)
diversify.register_autograd(_diversify_backward, setup_context=_diversify_context)
diversify_adjoint.register_autograd(_adjoint_backward, setup_context=_adjoint_context)
pixel_mask.register_autograd(_pixel_backward, setup_context=_pixel_context)
