"""Augment training batches in the frequency domain, a defence that makes a model rely on low frequencies.

After the proposal of Wang et al., "Towards Frequency-Based Explanation for Robust CNN", arXiv 2005.03141: a model that
relies on low frequencies is harder to fool by small distortions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import ops
from ..checks import (
    LARGEST,
    LARGEST_CUTOFF,
    check_batch,
    check_flag,
    check_fraction,
    check_gaussian_cutoff,
    check_interval,
    check_number,
    check_range,
    check_seed,
)
from ..reference.radius import squared_radius


class _FrequencyAugmentation(nn.Module):
    """Base class: augments some images of a batch in train mode only, with draws from its own generator."""

    def __init__(self, probability: float, clamp: bool, seed: int, generator: torch.Generator | None) -> None:
        super().__init__()
        self.probability = check_fraction("probability", probability)
        self.clamp = check_flag("clamp", clamp)
        if generator is not None and generator.device.type != "cpu":
            raise ValueError(f"the generator must be on the CPU, got one on {generator.device}")
        # On the CPU, so that every device draws the same.
        self._generator = torch.Generator("cpu").manual_seed(check_seed(seed)) if generator is None else generator

    def forward(self, images: Tensor) -> Tensor:
        """Augment a batch in train mode; return it unchanged in eval mode.

        Args:
            images: (B, C, H, W) floating-point, values in [0, 1], any device.

        Returns:
            (B, C, H, W) in their dtype; not differentiable.

        Raises:
            TypeError: not a floating-point tensor.
            ValueError: not (B, C, H, W), or values outside [0, 1] that ``clamp`` would cut off.
        """
        images = check_batch("images", images)
        if not self.training or not len(images):
            return images
        if self.clamp:
            check_range(images, (0.0, 1.0), "augment before normalisation, or set clamp=False")
        with torch.no_grad():
            # Drawn for every image, used or not, so that an image's draws do not depend on those of others.
            chosen = self._uniform(len(images)) < self.probability
            numbers = self._draw(len(images))
            rows = chosen.nonzero()[:, 0]
            result = images.detach().clone()
            if len(rows):
                picked = rows.to(images.device)
                changed = self._augmented(result[picked].float(), rows, numbers)
                result[picked] = (changed.clamp(0, 1) if self.clamp else changed).to(images.dtype)
            return result

    def _draw(self, count: int) -> tuple[Tensor, ...]:
        """Draw the random numbers of a batch, on the CPU."""
        raise NotImplementedError

    def _augmented(self, images: Tensor, rows: Tensor, numbers: tuple[Tensor, ...]) -> Tensor:
        """Augment some images of the batch, float32, whose indices are ``rows``, (P,) int64 on the CPU."""
        raise NotImplementedError

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(*shape, dtype=torch.float32, device="cpu", generator=self._generator)

    def _between(self, interval: tuple[float, float], count: int) -> Tensor:
        low, high = interval
        return low + (high - low) * self._uniform(count)


class LowPassAugmentation(_FrequencyAugmentation):
    """Remove the high frequencies of some training images, with a hard disc of random radius.

    Args:
        cutoff: radius in cycles over the shorter side, 0 or more; or (lowest, highest), from which each image draws its
            own, uniformly.
        probability: probability that an image is filtered, in [0, 1].
        clamp: clip the ringing to [0, 1].
        seed: seed of the draws.
        generator: CPU generator of the draws, in place of one with ``seed``.

    Raises:
        TypeError: a number of a wrong type.
        ValueError: a radius that is negative or not finite, an interval that descends, or a probability outside [0, 1].
    """

    def __init__(
        self,
        cutoff: float | tuple[float, float],
        *,
        probability: float = 0.5,
        clamp: bool = True,
        seed: int = 0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(probability, clamp, seed, generator)
        self.cutoff = check_interval("cutoff", cutoff, largest=LARGEST_CUTOFF)

    def _draw(self, count: int) -> tuple[Tensor, ...]:
        return (self._between(self.cutoff, count),)

    def _augmented(self, images: Tensor, rows: Tensor, numbers: tuple[Tensor, ...]) -> Tensor:
        height, width = images.shape[-2:]
        radius = numbers[0][rows].double()
        # On the CPU, in float64 and with a tolerance for its rounding, as in ``frequency.low_pass``.
        inside = squared_radius(height, width, dtype=torch.float64) <= (radius**2 * (1 + 1e-12))[:, None, None]
        spectrum = torch.fft.rfft2(images) * inside.to(images.device)[:, None]
        filtered: Tensor = torch.fft.irfft2(spectrum, s=(height, width))
        return filtered

    def extra_repr(self) -> str:
        """Show the settings in ``repr``."""
        return f"cutoff={self.cutoff}, probability={self.probability}"


class BandMixAugmentation(_FrequencyAugmentation):
    """Weigh the low and the high band of some training images at random, with FAMPE's band mix.

    ``Y = (X + sigma*N) * (L*2*alpha*(1 + rho*xiL) + Hi*2*(1-alpha)*(1 + rho*xiH))``, L a Gaussian of radius ``cutoff``,
    Hi its complement, xi uniform per coefficient and channel, N white noise (``reference.band_mix``). With alpha = 0.5
    and rho = sigma = 0 the image is unchanged; a larger alpha favours the low band.

    Args:
        alpha: weight of the low band in [0, 1]; or (lowest, highest), from which each image draws its own.
        rho: half-width of the random multipliers, in [0, 1].
        sigma: standard deviation of the white noise, in pixel units, 0 or more.
        cutoff: radius of the Gaussian in cycles over the shorter side, above 0; or None: the smallest radius that
            contains the share ``tau`` of each image's energy without DC.
        tau: share of the energy for ``cutoff=None``, in (0, 1].
        keep_mean: keep the mean of every channel, which L would otherwise change most.
        probability: probability that an image is mixed, in [0, 1].
        clamp: clip to [0, 1].
        seed: seed of the draws.
        generator: CPU generator of the draws, in place of one with ``seed``.

    Raises:
        TypeError: a number of a wrong type.
        ValueError: a number out of range.
    """

    def __init__(
        self,
        alpha: float | tuple[float, float] = (0.3, 0.9),
        *,
        rho: float = 0.5,
        sigma: float = 8 / 255,
        cutoff: float | None = None,
        tau: float = 0.9,
        keep_mean: bool = True,
        probability: float = 0.5,
        clamp: bool = True,
        seed: int = 0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(probability, clamp, seed, generator)
        self.alpha = check_interval("alpha", alpha, 1)
        self.rho = check_fraction("rho", rho)
        self.sigma = check_number("sigma", sigma, 0, expected="finite and not negative", largest=LARGEST)
        self.cutoff = None if cutoff is None else check_gaussian_cutoff("cutoff", cutoff)
        self.tau = check_number("tau", tau, 0, 1, open_low=True, expected="above 0 and at most 1")
        self.keep_mean = check_flag("keep_mean", keep_mean)

    def _draw(self, count: int) -> tuple[Tensor, ...]:
        return self._between(self.alpha, count), torch.randint(
            -(2**63), 2**63 - 1, (), device="cpu", generator=self._generator
        )

    def _augmented(self, images: Tensor, rows: Tensor, numbers: tuple[Tensor, ...]) -> Tensor:
        count, width, device = len(images), images.shape[-1], images.device
        alpha = numbers[0][rows]
        low, high, zero = 2 * alpha, 2 * (1 - alpha), torch.zeros(count, dtype=torch.float32, device="cpu")
        weights = torch.stack([zero, low, low * self.rho, high, high * self.rho, zero + self.sigma], 1)
        spectrum = torch.fft.rfft2(images)
        if self.cutoff is None:
            cutoff = ops.energy_cutoff(spectrum, width, self.tau, False)
        else:
            cutoff = torch.full((count,), self.cutoff, dtype=torch.float32, device=device)
        first = torch.zeros((), dtype=torch.long, device=device)
        mixed = ops.band_mix(
            spectrum,
            cutoff,
            weights.to(device),
            rows.to(device),
            torch.arange(count, device=device),
            first.expand(count).contiguous(),
            numbers[1].to(device),
            first,
            width,
        )
        if self.keep_mean:
            mixed[..., 0, 0] = spectrum[..., 0, 0]
        return ops.irfft2(mixed, width)

    def extra_repr(self) -> str:
        """Show the settings in ``repr``."""
        return (
            f"alpha={self.alpha}, rho={self.rho}, sigma={self.sigma}, cutoff={self.cutoff}, tau={self.tau}, "
            f"probability={self.probability}"
        )
