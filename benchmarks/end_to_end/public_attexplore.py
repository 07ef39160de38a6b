"""Run AttEXplore as its public code does, to time it beside this package; not a method to use.

Written from https://github.com/LMBTough/ATTEXPLORE, ``saliency/core/ampe.py`` (``FGSMGradSSA``, ``AMPE``) and
``generate_attributions.py``, commit 02e70d6. What it costs there it costs here: one pass per sample, one after the
other; a DCT by FFT with its twiddle factors made anew for every sample, forth and back, recorded for a backward pass
that never comes; white noise drawn on the host and copied; parameter gradients computed and accumulated; every step's
images and gradients kept; and, after the last step, one forward pass and N more passes whose result no map uses. The
modules ``dct`` and ``attack_methods`` that it imports are not in the stored tree that this was written from: the DCT is
that of torch-dct, whose functions it calls by name, and the input diversity is ``input_diversity`` of the same file.
Progress bars are left out.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RESIZE_RATE = 1.15


def dct(values: Tensor) -> Tensor:
    """Compute the DCT-II along the last dimension by an FFT, unscaled: 2 * sum of x * cos(pi * (2j+1) * k / 2n)."""
    n = values.shape[-1]
    rows = values.contiguous().view(-1, n)
    folded = torch.cat([rows[:, ::2], rows[:, 1::2].flip([1])], dim=1)
    spectrum = torch.view_as_real(torch.fft.fft(folded, dim=1))
    angle = -torch.arange(n, dtype=values.dtype, device=values.device)[None] * math.pi / (2 * n)
    found = spectrum[..., 0] * torch.cos(angle) - spectrum[..., 1] * torch.sin(angle)
    return 2 * found.view(values.shape)


def idct(values: Tensor) -> Tensor:
    """Invert ``dct``, along the last dimension."""
    n = values.shape[-1]
    real = values.contiguous().view(-1, n) / 2
    angle = torch.arange(n, dtype=values.dtype, device=values.device)[None] * math.pi / (2 * n)
    cosine, sine = torch.cos(angle), torch.sin(angle)
    imaginary = torch.cat([real[:, :1] * 0, -real.flip([1])[:, :-1]], dim=1)
    turned = torch.stack([real * cosine - imaginary * sine, real * sine + imaginary * cosine], dim=2)
    folded = torch.fft.irfft(torch.view_as_complex(turned), n=n, dim=1)
    found = folded.new_zeros(folded.shape)
    found[:, ::2] += folded[:, : n - n // 2]
    found[:, 1::2] += folded.flip([1])[:, : n // 2]
    return found.view(values.shape)


def dct_2d(values: Tensor) -> Tensor:
    """Apply ``dct`` along both last dimensions."""
    return dct(dct(values).transpose(-1, -2)).transpose(-1, -2)


def idct_2d(values: Tensor) -> Tensor:
    """Invert ``dct_2d``."""
    return idct(idct(values).transpose(-1, -2)).transpose(-1, -2)


class PublicAttEXplore:
    """The public code's attribution of a batch of square images.

    Args:
        model: classifier in pixel space that gives logits; that code puts a softmax behind it.
        steps: T.
        samples: N.
        eps: radius of the path, in pixel units.
        rho: half-width of the random multipliers.
        sigma: standard deviation of the white noise, in pixel units.
        diversity: probability of a sample's being shown resized and padded.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        steps: int = 10,
        samples: int = 20,
        eps: float = 16 / 255,
        rho: float = 0.5,
        sigma: float = 16 / 255,
        diversity: float = 0.5,
    ) -> None:
        self.model = nn.Sequential(model, nn.Softmax(dim=-1))
        self.steps, self.samples = steps, samples
        self.eps, self.rho, self.sigma, self.diversity = eps, rho, sigma, diversity

    def attribute(self, images: Tensor, target: Tensor) -> Tensor:
        """Return maps (B, C, H, W), on the CPU, of images in [0, 1] and their classes (B,)."""
        kernel = self._kernel(images)
        current = images.clone().detach().requires_grad_(True)
        momentum: Tensor | int = 0
        visited = [[images[i : i + 1].clone()] for i in range(len(images))]
        gradients: list[list[Tensor]] = [[] for _ in range(len(images))]
        for _ in range(self.steps):
            self.model.zero_grad()
            momentum = self._gradient(current, target, kernel) + momentum
            for i, kept in enumerate(gradients):
                kept.append(momentum[i : i + 1].clone())
            moved = current - self.eps / self.steps * momentum.sign() - images
            current.data = torch.clamp(images + torch.clamp(moved, -self.eps, self.eps), 0, 1).data
            for i, seen in enumerate(visited):
                seen.append(current[i : i + 1].data.clone())
        # From here to the maps: computed there, and used by none.
        current = torch.cat([seen[-1] for seen in visited]).requires_grad_(True)
        self.model(current)
        self.model.zero_grad()
        last = self._gradient(current, target, kernel)
        for i, kept in enumerate(gradients):
            kept.append(last[i : i + 1].clone())
        maps = [self._map(torch.cat(seen), torch.cat(kept)) for seen, kept in zip(visited, gradients, strict=True)]
        return torch.cat(maps)

    def _gradient(self, current: Tensor, target: Tensor, kernel: Tensor) -> Tensor:
        """Return the mean over N samples, smoothed, over its mean absolute value."""
        total: Tensor | int = 0
        for _ in range(self.samples):
            noise = torch.randn(current.shape, dtype=current.dtype) * self.sigma
            spectrum = dct_2d(current + noise.to(current.device))
            mask = torch.rand_like(current) * 2 * self.rho + 1 - self.rho
            sample = idct_2d(spectrum * mask).detach().requires_grad_(True)
            output = F.softmax(self.model(self._diversify(sample)), dim=-1)
            F.cross_entropy(output, target).backward()
            assert sample.grad is not None
            total = total + sample.grad.data
        mean = F.conv2d(torch.as_tensor(total) / self.samples, kernel, padding=3, groups=current.shape[1])
        return (mean / mean.abs().mean([1, 2, 3], keepdim=True)).detach()

    def _diversify(self, sample: Tensor) -> Tensor:
        size = sample.shape[-1]
        full = int(size * RESIZE_RATE)
        side = int(torch.randint(size, full, (1,)))
        resized = F.interpolate(sample, size=[side, side], mode="bilinear", align_corners=False)
        rest = full - side
        top, left = int(torch.randint(0, rest, (1,))), int(torch.randint(0, rest, (1,)))
        padded = F.pad(resized, [left, rest - left, top, rest - top], value=0)
        return padded if bool(torch.rand(1) < self.diversity) else sample

    @staticmethod
    def _kernel(images: Tensor) -> Tensor:
        points = torch.linspace(-3, 3, 7, dtype=torch.float64)
        density = torch.exp(-(points**2) / 2)
        kernel = torch.outer(density, density)
        return (kernel / kernel.sum()).to(images).expand(images.shape[1], 1, 7, 7).contiguous()

    @staticmethod
    def _map(visited: Tensor, gradients: Tensor) -> Tensor:
        return -((visited[1:] - visited[:-1]) * gradients[:-1]).sum(0, keepdim=True).detach().cpu()
