"""Define the protocols of insertion and deletion: the order, step and substrates of the changes.

Scores of one protocol are not comparable with another's. All colours are in pixel space, [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

import torch
from torch import Tensor

from ..catalog import PROTOCOLS as _HOMES
from ..catalog import load
from ..checks import check_count, check_number, check_positive, check_whole

__all__ = ["PROTOCOLS", "GaussianBlur", "Protocol", "SolidColour", "Substrate", "resolve_protocol"]

Ranking = Literal["pixel", "channel_union", "element"]


@dataclass(frozen=True)
class SolidColour:
    """A substrate of one colour for the whole image.

    Attributes:
        value: in [0, 1]: one number for all channels, or one per channel; None is the model's mean colour, which its
            normalisation maps to zero.
    """

    value: float | tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.value is None:
            return
        kind, several = "a number, a tuple of numbers or None", isinstance(self.value, tuple)
        if several and not self.value:
            raise TypeError(f"a colour must be {kind}, got ()")
        numbers = [
            check_number("a colour", number, kind=kind)
            for number in (self.value if isinstance(self.value, tuple) else (self.value,))
        ]
        if not all(0 <= number <= 1 for number in numbers):
            raise ValueError(f"a colour must lie in [0, 1], the units of pixels, got {self.value!r}")
        object.__setattr__(self, "value", tuple(numbers) if several else numbers[0])

    @property
    def needs_mean(self) -> bool:
        """Whether the model's mean colour is needed."""
        return self.value is None

    def __call__(self, images: Tensor, mean: Tensor | None = None) -> Tensor:
        """Fill (B, C, H, W) with the colour, expanded, not copied; `mean` is (C,), needed if `needs_mean`."""
        if self.value is None:
            if mean is None:
                raise ValueError("the mean colour is not known")
            colour = mean.to(images)
        else:
            colour = torch.as_tensor(self.value, dtype=images.dtype, device=images.device).reshape(-1)
        if colour.numel() not in (1, images.shape[1]):
            raise ValueError(f"the colour {colour.tolist()} does not fit images of {images.shape[1]} channel(s)")
        return colour.reshape(1, -1, 1, 1).expand_as(images)


@dataclass(frozen=True)
class GaussianBlur:
    """A substrate, the blurred image of RISE's public code: an 11 x 11 kernel, sigma 5, padded with the mean colour.

    The kernel is `scipy.ndimage.gaussian_filter` of an impulse in a window of `kernel_size` pixels: values outside the
    window are reflected back into it, so the kernel is flatter than a truncated Gaussian. The public code blurs
    normalised images with zero padding; the kernel sums to one, so in pixel space this is padding with the mean.

    Attributes:
        kernel_size: odd, in pixels.
        sigma: standard deviation in pixels, above 0.
        padding: the colour beyond the borders.
    """

    kernel_size: int = 11
    sigma: float = 5.0
    padding: SolidColour = SolidColour()

    def __post_init__(self) -> None:
        size = check_whole("kernel_size", self.kernel_size)
        if size < 1 or size % 2 == 0:
            raise ValueError(f"kernel_size must be odd and at least 1, got {size}")
        object.__setattr__(self, "kernel_size", size)
        object.__setattr__(self, "sigma", check_positive("sigma", self.sigma))

    @property
    def needs_mean(self) -> bool:
        """Whether the model's mean colour is needed."""
        return self.padding.needs_mean

    def kernel(self) -> list[float]:
        """Compute the `kernel_size` weights along one axis; they sum to one and are symmetric."""
        size, centre, reach = self.kernel_size, self.kernel_size // 2, int(4 * self.sigma + 0.5)
        gaussian = {offset: math.exp(-0.5 * (offset / self.sigma) ** 2) for offset in range(-reach, reach + 1)}
        total = sum(gaussian.values())
        weights = [0.0] * size
        for offset, value in gaussian.items():
            place = (centre + offset) % (2 * size)  # reflection about the edges has period twice the window
            weights[min(place, 2 * size - 1 - place)] += value / total
        return weights

    def __call__(self, images: Tensor, mean: Tensor | None = None) -> Tensor:
        """Blur images (B, C, H, W); `mean` is (C,), needed if `needs_mean`."""
        fill = self.padding(images, mean)[:1, :, :1, :1]
        blurred, reach = images - fill, self.kernel_size // 2
        # Sums of shifted images in fp32 on every device, as cuDNN would compute a convolution in TF32.
        for dim, pad in ((2, (0, 0, reach, reach)), (3, (reach, reach, 0, 0))):
            padded = torch.nn.functional.pad(blurred, pad)
            blurred = torch.zeros_like(blurred)
            for shift, weight in enumerate(self.kernel()):
                blurred += weight * padded.narrow(dim, shift, images.shape[dim])
        return blurred + fill


Substrate = SolidColour | GaussianBlur | Callable[[Tensor], Tensor]
"""Replacement of changed pixels; a custom function maps images (B, C, H, W) to images of the same shape."""


@dataclass(frozen=True)
class Protocol:
    """A protocol of insertion and deletion.

    Attributes:
        name: name in tables.
        ranking: "pixel": one rank per pixel, by the sum of the map over the channels; every step changes the next
            `step` pixels. "channel_union": one rank per pixel and channel; every step changes, in all channels, the
            union of the channels' next `step` pixels, so most steps change more than `step` of them and the last ones
            few or none; if all channels have one order it equals "pixel", and cannot be compared with maps whose
            channels differ. "element": one rank for every value of the map, all channels in one order; every step
            changes the next `step` times C values, each in its own channel, so pixels take colours that are neither the
            image's nor the substrate's; for a map that is equal in all channels this is "pixel" except for ties. In
            all, the highest values come first, and ties are in the order of the index (channel by channel, row by row).
        insertion_substrate: start of insertion.
        deletion_substrate: end of deletion.
        step: pixels per step, for "element" that many pixels' values; None is the image's width. The last step has the
            remaining pixels.
    """

    name: str
    ranking: Ranking
    insertion_substrate: Substrate
    deletion_substrate: Substrate
    step: int | None = None

    def __post_init__(self) -> None:
        if self.ranking not in get_args(Ranking):
            raise ValueError(f"ranking must be one of {list(get_args(Ranking))}, got {self.ranking!r}")
        for field in ("insertion_substrate", "deletion_substrate"):
            if not callable(getattr(self, field)):
                raise TypeError(
                    f"{field} must be a SolidColour, a GaussianBlur or a function of images, "
                    f"got {type(getattr(self, field)).__name__}"
                )
        if self.step is None:
            return
        object.__setattr__(self, "step", check_count("step", self.step, unit="pixel"))

    @property
    def needs_mean(self) -> bool:
        """Whether a substrate needs the model's mean colour."""
        substrates = (self.insertion_substrate, self.deletion_substrate)
        return any(isinstance(s, (SolidColour, GaussianBlur)) and s.needs_mean for s in substrates)


_BLACK = SolidColour(0.0)

# Petsiuk et al., BMVC 2018 (arXiv 1806.07421), section 4.1, and the authors' public code (eclique/RISE, evaluation.py
# and Evaluation.ipynb): it deletes to zeros of the normalised tensor, the mean colour here.
RISE = Protocol("rise", "pixel", GaussianBlur(), SolidColour())
# Zhu et al., ICLR 2024, public code (LMBTough/ATTEXPLORE, utils.py CausalMetric.evaluate, and eval.py).
ATTEXPLORE = Protocol("attexplore", "channel_union", _BLACK, _BLACK)
PER_PIXEL = Protocol("per_pixel", "pixel", _BLACK, _BLACK)
# The same group's later public code (LMBTough/LA, evaluation.py CausalMetric.evaluate, and eval.py): 3 * 224 values per
# step. There the scored class is the model's prediction; here it is the target.
PER_ELEMENT = Protocol("per_element", "element", _BLACK, _BLACK)

PROTOCOLS: Mapping[str, Protocol] = MappingProxyType({name: load(home) for name, home in _HOMES.items()})


def resolve_protocol(protocol: str | Protocol) -> Protocol:
    """Look up a protocol by its name, or return the given one.

    Raises:
        TypeError: neither a name nor a Protocol.
        ValueError: an unknown name.
    """
    if isinstance(protocol, Protocol):
        return protocol
    if not isinstance(protocol, str):
        raise TypeError(f"protocol must be a name or a Protocol, got {type(protocol).__name__}")
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}; known are {', '.join(PROTOCOLS)}")
    return PROTOCOLS[protocol]


def mean_colour(mean: float | Sequence[float] | Tensor, channels: int) -> Tensor:
    """Check a mean colour, and return it as (channels,).

    Raises:
        TypeError: not a number, nor a sequence or tensor of numbers.
        ValueError: neither 1 nor `channels` values, or values outside [0, 1].
    """
    try:
        colour = mean.detach() if isinstance(mean, Tensor) else torch.as_tensor(mean, dtype=torch.float64, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"mean must be a number, a sequence of numbers or a tensor, got {mean!r}") from error
    colour = colour.flatten()
    if colour.numel() not in (1, channels):
        raise ValueError(f"mean must be one number or {channels}, one per channel; got {colour.numel()}")
    if not bool(((colour >= 0) & (colour <= 1)).all()):
        raise ValueError(f"mean must lie in [0, 1], the units of pixels, got {colour.tolist()}")
    return colour.expand(channels)
