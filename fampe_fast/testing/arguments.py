"""Make example arguments of every primitive, for any case and device, for tests and benchmarks.

A check module of ``checks`` says how its primitive's are made. By default they are made on the CPU from fixed seeds and
moved: the same numbers on every device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .error_rule import assert_same, assert_true
from .poison import poisoned_memory
from .shapes import Case

ALPHA, RHO, SIGMA = 0.2, 0.5, 16 / 255

MODES: dict[str, tuple[tuple[float, ...], bool]] = {
    "mix": ((0, ALPHA, ALPHA * RHO, 1 - ALPHA, (1 - ALPHA) * RHO, SIGMA), False),
    "modulate": ((1, 0, 2 * ALPHA * RHO, 0, 2 * (1 - ALPHA) * RHO, SIGMA), False),
    "allpass": ((1, 0, RHO, 0, RHO, SIGMA), True),
}
"""The band mix's modes: (g0, aL, bL, aH, bH, sigma), and whether one multiplier serves both bands."""

Maker = Callable[[Case], dict[str, Any]]
_MAKERS: dict[str, Maker] = {}


def makes_arguments(primitive: str) -> Callable[[Maker], Callable[..., dict[str, Any]]]:
    """Register the decorated function as the maker of a primitive's example arguments, in the order of its signature.

    It makes tensors on torch's default device, without looking at their values, so that "meta" will do. What it
    becomes is ``example_arguments`` of that primitive.
    """

    def add(maker: Maker) -> Callable[..., dict[str, Any]]:
        _MAKERS[primitive] = maker
        return partial(example_arguments, primitive)

    return add


def example_arguments(
    primitive: str,
    case: Case,
    device: torch.device | str,
    made_on: torch.device | str = "cpu",
    /,
    **changes: Any,
) -> dict[str, Any]:
    """Make arguments like those of the package's own calls of a primitive.

    Args:
        primitive: its name.
        case: the size; a primitive that takes rows gets ``case.rows`` of them.
        device: where the tensors will be.
        made_on: where they are made: on the device itself many numbers take less time, and are others.
        changes: arguments in place of the example's, by name.

    Returns:
        The arguments by name, in the order of the signature.
    """
    with torch.device(made_on):
        arguments = _MAKERS[primitive](case)
    return moved({**arguments, **changes}, device)


def _generator(seed: int) -> torch.Generator | None:
    device = torch.empty(0).device
    return None if device.type == "meta" else torch.Generator(device).manual_seed(seed)


def random(*shape: int, seed: int = 0) -> Tensor:
    """Draw U(0, 1), float32, on the default device."""
    return torch.rand(*shape, generator=_generator(seed))


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Draw N(0, 1), float32, on the default device."""
    return torch.randn(*shape, generator=_generator(seed))


def whole(low: int, high: int, *shape: int, seed: int = 0, dtype: torch.dtype = torch.int64) -> Tensor:
    """Draw whole numbers from ``low`` to ``high - 1`` on the default device."""
    return torch.randint(low, high, shape, generator=_generator(seed), dtype=dtype)


def spectra(case: Case) -> Tensor:
    """Transform random images in [0, 1]: unscaled ``rfft2``, (B, C, H, W//2+1) complex64, on the default device."""
    spectrum: Tensor = torch.fft.rfft2(random(case.batch, case.channels, *case.size))
    return spectrum


def cutoffs(case: Case) -> Tensor:
    """Make the cut-offs 1, 2.5 and 4 in turn, (B,) float32."""
    return torch.tensor([1.0, 2.5, 4.0])[torch.arange(case.batch) % 3]


def moved(arguments: Mapping[str, Any], device: torch.device | str) -> dict[str, Any]:
    """Move every tensor of the arguments to ``device``."""
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in arguments.items()}


def exactly(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Move the arguments to the CPU, every floating-point and complex tensor in double precision."""

    def double(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        value = value.cpu()
        if value.is_complex():
            return value.to(torch.complex128)
        return value.double() if value.is_floating_point() else value

    return {name: double(value) for name, value in arguments.items()}


def single_and_exact(
    reference: Callable[..., Any], arguments: Mapping[str, Any], device: torch.device | str = "cpu"
) -> tuple[Any, Any]:
    """Compute a reference's result in the arguments' own precision, and in double precision on the CPU.

    Args:
        reference: of the primitive under test.
        arguments: of the call.
        device: where the first is computed. The CPU, because what a GPU's libraries do to float32 (tf32 by default)
            would loosen the error rule; or the device under test, if the primitive calls its library, too, for
            something that is always done in full precision, such as a Fourier transform.
    """
    return reference(**moved(arguments, device)), reference(**exactly(arguments))


def call(function: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """Call a primitive in poisoned memory, and check that it did not change its arguments.

    Raises:
        AssertionError: an argument was changed.
    """
    before = {name: value.clone() if isinstance(value, Tensor) else copy(value) for name, value in arguments.items()}
    with poisoned_memory():
        result = function(**arguments)
    for name, value in before.items():
        now = arguments[name]
        if isinstance(value, Tensor):
            assert_same(now, value, f"argument {name} after the call")
        else:
            assert_true(now == value, f"argument {name} after the call: {now!r}, expected {value!r}")
    return result


def rows_of(case: Case) -> dict[str, Tensor]:
    """Make the row arguments of a mix: (image, sample) pairs, the image running fastest, and the images' ids.

    The names are not positions, and reach the end of their range, as the sample numbers do; so do seed and step.
    """
    names = whole(0, 2**32, case.batch + 2, seed=4)
    names[:3] = torch.tensor([5, 2**32 - 1, 0])[: case.batch + 2]
    return {
        "image_ids": names[: case.batch],
        "image_index": torch.arange(case.rows) % max(case.batch, 1),
        "samples": whole(0, 2**32 // case.channels, case.rows, seed=5),
        "seed": torch.tensor(-(2**62) - 12345),
        "step": torch.tensor(2**32 - 2),
    }
