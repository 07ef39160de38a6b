"""Find how many samples a step needs, and whether other sampling schemes need fewer, compared with 200 samples.

Plain sampling is compared with antithetic pairs (every sample with its mirror image), Latin hypercubes (each random
number of N samples from N strata) and a rule that stops when the gradient's standard error is small. One step, so that
the gradient alone is judged; the map is FAMPE's of that step, as collected and as shown.

    python -m benchmarks.quality.sampling PHOTOS --labels labels.json --limit 4 --model ... --out results
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from fampe_fast import FAMPEConfig, ops
from fampe_fast.cli.arguments import add_model
from fampe_fast.engine.aggregation import objective
from fampe_fast.engine.path import smoothing_kernel
from fampe_fast.engine.samplers import BandMixSampler
from fampe_fast.frequency import two_scale_map
from fampe_fast.metrics import mean_and_error
from fampe_fast.plots import save_figure
from fampe_fast.plots.studies import StudyLine, study_figure
from fampe_fast.reference.gradient_step import smooth
from fampe_fast.reference.philox import to_uniform
from fampe_fast.reference.radial_mask import radial_mask
from fampe_fast.reference.spectral_noise import hermitian_grid, spectral_words
from fampe_fast.runtime.model import frozen_parameters

from ..common.results import write
from .photographs import add_photographs, photographs

REFERENCE = 200
COUNTS = (2, 4, 8, 16, 32, 64)
HYPERCUBES = (8, 32)
CHUNK = 8
# Columns of the weights that multiply random numbers: negated, a sample becomes its mirror image.
MIRROR = torch.tensor([1.0, 1.0, -1.0, 1.0, -1.0, -1.0])


class Sampled:
    """The gradients of one image's samples."""

    def __init__(self, model: nn.Module, image: Tensor, target: int, config: FAMPEConfig) -> None:
        self._model, self._target, self._config = model, target, config
        self._sampler = BandMixSampler(config)
        self._spectrum = self._sampler.transform(image)
        self._prepared = self._sampler.prepare(image, self._spectrum)
        self._size = image.shape[-2:]

    def plain(self, first: int, count: int, *, mirrored: bool = False) -> Tensor:
        """Return (count, C, H, W): gradients at the samples first, first + 1, ..."""
        zero = torch.tensor(0)
        weights = self._prepared.weights * MIRROR if mirrored else self._prepared.weights
        found = []
        for numbers in torch.arange(first, first + count).split(CHUNK):
            rows = torch.zeros_like(numbers)
            mixed = ops.band_mix(
                self._spectrum, self._prepared.cutoff, weights, zero[None], rows, numbers, zero, zero, self._size[1]
            )  # fmt: skip
            found.append(self._gradients(mixed))
        return torch.cat(found)

    def hypercube(self, count: int, seed: int) -> Tensor:
        """Return (count, C, H, W): gradients at samples whose random numbers come from a stratum each."""
        height, width = self._size
        grid, channels = hermitian_grid(height, width), self._spectrum.shape[1]
        words = spectral_words(
            grid.coefficient, torch.zeros(count).long(), torch.arange(count) + 10_000, torch.tensor(seed),
            torch.tensor(0), channels,
        )  # fmt: skip
        generator = torch.Generator().manual_seed(seed)
        stratified = []
        for word in words:
            # One permutation per coefficient; conjugate partners share the number, so they share the stratum.
            strata = torch.rand(count, channels, height * (width // 2 + 1), generator=generator).argsort(0).float()
            unit = (strata[..., grid.coefficient] + (to_uniform(word) + 1) / 2) / count
            stratified.append(2 * unit - 1)
        real, imaginary, low, high = stratified
        g0, a_low, b_low, a_high, b_high, sigma = self._prepared.weights[0].tolist()
        mask = radial_mask(self._prepared.cutoff, height, width)[0].flatten(1)
        gain = g0 + mask * (a_low + b_low * low) + (1 - mask) * (a_high + b_high * high)
        noise = torch.complex(real * grid.scale_re, imaginary * grid.scale_im)
        mixed = ((self._spectrum.flatten(2) + sigma * noise) * gain).view(count, channels, height, -1)
        return torch.cat([self._gradients(part) for part in mixed.split(CHUNK)])

    def _gradients(self, mixed: Tensor) -> Tensor:
        samples = ops.irfft2(mixed, self._size[1]).contiguous(memory_format=torch.channels_last).requires_grad_()
        classes = torch.full((len(samples),), self._target)
        loss, _ = objective(self._model(samples), classes, self._config)
        return torch.autograd.grad(loss, samples)[0]


def maps_of(gradient: Tensor) -> dict[str, Tensor]:
    """Make the map of one step, as collected and as shown, from a mean gradient (C, H, W)."""
    collected = smooth(gradient[None], smoothing_kernel(gradient.device)).abs()
    return {"as collected": collected.sum(1).flatten(), "as shown": two_scale_map(collected).flatten()}


def correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1])


def schemes(sampled: Sampled, seed: int) -> Iterator[tuple[str, int, Tensor]]:
    """Yield name, number of samples, mean gradient; the plain samples' numbers are not those of the reference."""
    plain = sampled.plain(REFERENCE, max(COUNTS))
    mirrored = sampled.plain(REFERENCE, max(COUNTS) // 2, mirrored=True)
    for count in COUNTS:
        yield "plain", count, plain[:count].mean(0)
        yield "antithetic", count, torch.cat([plain[: count // 2], mirrored[: count // 2]]).mean(0)
    for count in HYPERCUBES:
        yield "latin hypercube", count, sampled.hypercube(count, seed).mean(0)


def standard_error(sampled: Sampled, count: int = 8) -> float:
    """Estimate that of the mean gradient, relative to its size, as a stopping rule would after a few samples."""
    gradients = sampled.plain(REFERENCE, count)
    mean = gradients.mean(0)
    return float((gradients.var(0).sum() / count).sqrt() / mean.norm())


def main() -> None:
    parser = argparse.ArgumentParser(description="Correlation with the map of 200 samples, by number of samples.")
    add_photographs(parser)
    add_model(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder of sampling.json and sampling.png")
    arguments = parser.parse_args()
    arguments.command = "sampling"
    classifier, paths, each = photographs(arguments)
    config = FAMPEConfig()
    found: dict[str, dict[str, dict[int, list[float]]]] = {}
    errors = []
    with frozen_parameters(classifier):
        for number, (image, target) in enumerate(each):
            sampled = Sampled(classifier, image, target, config)
            reference = maps_of(sampled.plain(0, REFERENCE).mean(0))
            errors.append(standard_error(sampled))
            for name, count, gradient in schemes(sampled, number):
                for kind, shown in maps_of(gradient).items():
                    by_count = found.setdefault(kind, {}).setdefault(name, {})
                    by_count.setdefault(count, []).append(correlation(shown, reference[kind]))
    result = {"images": [path.name for path in paths], "relative_standard_error_of_8": errors, "correlations": found}
    write(result, arguments.out / "sampling.json")
    lines = []
    for name in found["as collected"]:
        points = [
            (float(count), mean_and_error(values), mean_and_error(found["as shown"][name][count]))
            for count, values in found["as collected"][name].items()
        ]
        lines.append(StudyLine("samples", name, points))
        for count, collected, shown in points:
            print(f"{name:16s} {count:3.0f}  as collected {collected}  as shown {shown}")
    print("relative standard error after 8 samples, by image:", ", ".join(f"{error:.2f}" for error in errors))
    figure = study_figure(
        lines, title="Correlation with the map of 200 samples", rows=("attribution as collected", "map as shown")
    )
    save_figure(figure, arguments.out / "sampling.png")


if __name__ == "__main__":
    main()
