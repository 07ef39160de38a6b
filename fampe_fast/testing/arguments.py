"""Arguments for every primitive, made on the CPU from fixed seeds and moved: the same numbers on every device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .error_rule import assert_same
from .poison import poisoned_memory
from .shapes import Case

ALPHA, RHO, SIGMA = 0.2, 0.5, 16 / 255

MODES: dict[str, tuple[tuple[float, ...], bool]] = {
    "mix": ((0, ALPHA, ALPHA * RHO, 1 - ALPHA, (1 - ALPHA) * RHO, SIGMA), False),
    "modulate": ((1, 0, 2 * ALPHA * RHO, 0, 2 * (1 - ALPHA) * RHO, SIGMA), False),
    "allpass": ((1, 0, RHO, 0, RHO, SIGMA), True),
}
"""The band mix's modes: (g0, aL, bL, aH, bH, sigma), and whether one multiplier serves both bands."""


def random(*shape: int, seed: int = 0) -> Tensor:
    """U(0, 1) on the CPU, float32."""
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def normal(*shape: int, seed: int = 0) -> Tensor:
    """N(0, 1) on the CPU, float32."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def spectra(case: Case) -> Tensor:
    """Unscaled ``rfft2`` of random images in [0, 1], (B, C, H, W//2+1) complex64, on the CPU."""
    spectrum: Tensor = torch.fft.rfft2(random(case.batch, case.channels, *case.size))
    return spectrum


def moved(arguments: Mapping[str, Any], device: torch.device | str) -> dict[str, Any]:
    """The arguments with every tensor on ``device``."""
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in arguments.items()}


def exactly(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments on the CPU with every floating-point and complex tensor in double precision."""

    def double(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        value = value.cpu()
        if value.is_complex():
            return value.to(torch.complex128)
        return value.double() if value.is_floating_point() else value

    return {name: double(value) for name, value in arguments.items()}


def single_and_exact(reference: Callable[..., Any], arguments: Mapping[str, Any]) -> tuple[Any, Any]:
    """A reference's result in the arguments' own precision and in double precision, both computed on the CPU.

    On the CPU, because what a GPU's libraries do to float32 (tf32 by default) would loosen the error rule.
    """
    return reference(**moved(arguments, "cpu")), reference(**exactly(arguments))


def call(function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """Call a primitive in poisoned memory, and see that it left its arguments as they were.

    Raises:
        AssertionError: an argument was changed.
    """
    before = {name: value.clone() for name, value in arguments.items() if isinstance(value, Tensor)}
    with poisoned_memory():
        result = function(**arguments)
    for name, value in before.items():
        assert_same(arguments[name], value, f"argument {name} after the call")
    return result


def rows_of(case: Case, seed: int = 4) -> dict[str, Tensor]:
    """What every row of a mix needs: (image, sample) pairs, the image running fastest, and the images' names.

    The names are not positions, and reach the end of their range, as the sample numbers do; so do seed and step.
    """
    generator = torch.Generator().manual_seed(seed)
    names = torch.randint(0, 2**32, (case.batch + 2,), generator=generator)
    names[:3] = torch.tensor([5, 2**32 - 1, 0])
    return {
        "image_ids": names[: case.batch],
        "image_index": torch.arange(case.rows) % max(case.batch, 1),
        "samples": torch.randint(0, 2**32 // case.channels, (case.rows,), generator=generator),
        "seed": torch.tensor(-(2**62) - 12345),
        "step": torch.tensor(2**32 - 2),
    }


def mix_arguments(case: Case, device: torch.device | str, **changes: Any) -> dict[str, Any]:
    """For ``band_mix``: the spectra of random images in the case's mode, cut-offs 1, 2.5 and 4."""
    numbers, shared = MODES[case.mode]
    arguments = {
        "spectrum": spectra(case),
        "cutoff": torch.tensor([1.0, 2.5, 4.0])[torch.arange(case.batch) % 3],
        "weights": torch.tensor([numbers]).expand(case.batch, -1),
        **rows_of(case),
        "width": case.width,
        "shared_multiplier": shared,
        **changes,
    }
    return moved(arguments, device)


def dct_arguments(case: Case, device: torch.device | str, **changes: Any) -> dict[str, Any]:
    """For ``dct_mix``: normal spectra."""
    arguments = {
        "spectrum": normal(case.batch, case.channels, *case.size),
        "weights": torch.tensor([[RHO, SIGMA]]).expand(case.batch, -1),
        **rows_of(case),
        **changes,
    }
    return moved(arguments, device)


def gaussian(taps: int) -> Tensor:
    """A normalised smoothing kernel with a standard deviation of one pixel, (taps,) float32; empty for 0."""
    kernel = torch.exp(-((torch.arange(taps) - taps // 2) ** 2) / 2.0)
    return kernel / kernel.sum() if taps else kernel


def step_arguments(case: Case, device: torch.device | str, **changes: Any) -> dict[str, Any]:
    """For ``gradient_step``: images off their origin and normal gradients, so that projection and clamp both act."""
    shape = (case.batch, case.channels, *case.size)
    origin = random(*shape, seed=1)
    arguments = {
        "images": (origin + 0.1 * normal(*shape, seed=2)).clamp(0, 1),
        "origin": origin,
        "gradient_sum": normal(*shape, seed=3),
        "momentum": normal(*shape, seed=4),
        "attribution": normal(*shape, seed=5),
        "kernel": gaussian(case.taps),
        "samples": 20,
        "decay": 0.9,
        "step_size": 0.01,
        "eps": 16 / 255,
        "lower": 0.0,
        "upper": 1.0,
        **changes,
    }
    return moved(arguments, device)


def mask_arguments(case: Case, device: torch.device | str, **changes: Any) -> dict[str, Any]:
    """For ``pixel_mask``: three images at least, rows in no order, steps up to the ends of their range."""
    batch = max(case.batch, 3)
    generator = torch.Generator().manual_seed(6)
    arguments = {
        "start": random(batch, case.channels, *case.size, seed=1),
        "finish": random(batch, case.channels, *case.size, seed=2),
        "first_step": torch.randint(0, 9, (batch, *case.size), generator=generator, dtype=torch.int32),
        "image_index": torch.tensor([0, 0, 0, 2, 2, 1, 0]),
        "step": torch.tensor([0, 3, 2**40, 4, -(2**40), 8, 5]),
        **changes,
    }
    return moved(arguments, device)


def diversify_arguments(case: Case, device: torch.device | str, **changes: Any) -> dict[str, Any]:
    """For ``diversify``: random samples, each with a size up to 1.15 times its own and a place inside the frame."""
    generator = torch.Generator().manual_seed(7)
    frame = tuple(int(1.15 * size) + 2 for size in case.size)

    def up_to(most: int) -> int:
        return int(torch.randint(0, most + 1, (), generator=generator))

    placements = []
    for _ in range(case.rows):
        resized = [size + up_to(whole - 2 - size) for size, whole in zip(case.size, frame, strict=True)]
        placements.append([*resized, *(up_to(whole - part) for whole, part in zip(frame, resized, strict=True))])
    arguments = {
        "samples": random(case.rows, case.channels, *case.size, seed=1),
        "placements": torch.tensor(placements).view(-1, 4),
        "frame_height": frame[0],
        "frame_width": frame[1],
        "channels_last": False,
        **changes,
    }
    return moved(arguments, device)


def accumulate_arguments(case: Case, device: torch.device | str, **changes: Any) -> dict[str, Any]:
    """For ``accumulate``: normal gradients of magnitudes from 1e-3 to 1e3, so that the order of addition shows."""
    magnitude = 10 ** (6 * random(case.rows, 1, 1, 1, seed=3) - 3)
    arguments = {
        "total": normal(case.batch, case.channels, *case.size, seed=1),
        "gradient": magnitude * normal(case.rows, case.channels, *case.size, seed=2),
        "image_index": torch.randint(0, case.batch, (case.rows,), generator=torch.Generator().manual_seed(8)),
        **changes,
    }
    return moved(arguments, device)
