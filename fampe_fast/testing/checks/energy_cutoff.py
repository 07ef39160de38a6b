"""Check implementations of ``energy_cutoff``."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ...reference.energy_cutoff import shell_energy
from ...reference.radius import squared_radius
from ..arguments import call, makes_arguments, spectra
from ..error_rule import EPSILON, assert_same, assert_true
from ..known_answers import cutoff_ties, wave
from ..primitives import Primitives
from ..registry import check
from ..shapes import Case
from .common import EDGES, LARGE, SMALL, assert_any_strides, assert_fresh, assert_repeatable


@makes_arguments("energy_cutoff")
def _arguments(case: Case) -> dict[str, Any]:
    return {"spectrum": spectra(case), "width": case.width, "tau": 0.9, "include_dc": True}


def assert_cutoffs(got: Tensor, spectrum: Tensor, width: int, tau: float, include_dc: bool) -> None:
    """Assert that cut-offs are the smallest radii with the share ``tau``, to 8 float32 ulp of the whole energy.

    Args:
        got: (B,) float32, the result under test.
        spectrum: (B, C, H, W//2+1), complex, what it was computed from.
        width: W of the images.
        tau: the share.
        include_dc: whether the DC coefficient counts.

    Raises:
        AssertionError: dtype or shape are wrong, or a cut-off is too small or too large.
    """
    assert_true(got.dtype == torch.float32, f"cut-offs are {got.dtype}, expected float32")
    assert_true(
        got.shape == spectrum.shape[:1], f"cut-offs have shape {tuple(got.shape)}, expected {spectrum.shape[:1]}"
    )
    held = shell_energy(spectrum.cpu().to(torch.complex128), width, include_dc).cumsum(1)
    for image, cutoff in enumerate(got.tolist()):
        where = f"image {image}, tau {tau}, include_dc {include_dc}: cut-off {cutoff}"
        assert_true(cutoff >= 1 and cutoff == int(cutoff), f"{where} is not a whole number from 1 on")
        total, slack = held[image, -1].item(), 8 * EPSILON * held[image, -1].item()
        if total == 0:
            assert_true(cutoff == 1, f"{where}, expected 1: no energy")
            continue
        share = held[image, min(int(cutoff), held.shape[1] - 1)].item()
        assert_true(share >= tau * total - slack, f"{where} holds {share / total:.6g} of the energy only")
        share = held[image, int(cutoff) - 1].item() if cutoff <= held.shape[1] else total
        too_large = cutoff > 1 and share > tau * total + slack
        assert_true(not too_large, f"{where}, but the radius before holds {share / total:.6g} of the energy already")


@check(
    "energy_cutoff",
    cases=(
        *SMALL,
        *EDGES,
        Case(40, 70),
        Case(2048, 24, 1, 1),
        Case(24, 2048, 1, 1),
        *LARGE,
        Case(2048, 1536, gpu=True),
    ),
)
def check_energy_cutoff_is_the_smallest_radius(ops: Primitives, device: torch.device, case: Case) -> None:
    """Compare with shells in float64, with and without DC, energy near DC or far out, in poisoned memory."""
    spectrum = spectra(case)
    spectrum[-1] *= 1 + 10 * squared_radius(*case.size)
    for tau, include_dc in ((0.9, True), (0.99, False)):
        changes = {"spectrum": spectrum, "tau": tau, "include_dc": include_dc}
        arguments = _arguments(case, device, **changes)
        got = call(ops.energy_cutoff, arguments)
        assert_cutoffs(got, spectrum, case.width, tau, include_dc)
        assert_fresh(got, arguments, device)


@check("energy_cutoff")
def check_energy_cutoff_is_exact_at_ties(ops: Primitives, device: torch.device, case: Case) -> None:
    """Ask for exactly the share of a disc, which is large enough, and for a hair more, which needs the next."""
    ties = cutoff_ties()
    for tau, expected in ties.expected:
        got = ops.energy_cutoff(ties.spectrum.to(device), ties.width, tau).item()
        assert_true(got == expected, f"tau {tau}: cut-off {got}, expected {expected}")


@check("energy_cutoff", cases=(Case(9, 12), Case(64, 48), Case(512, 512, gpu=True)))
def check_energy_cutoff_adds_whole_energies_without_rounding(ops: Primitives, device: torch.device, case: Case) -> None:
    """Ask for a shell's very share of whole energies far below 2^24, whose float32 sums are exact: that shell.

    Sums in a shorter format (tf32, bfloat16, float16) have no such room.
    """
    generator = torch.Generator().manual_seed(2)
    half = case.width // 2 + 1
    parts = torch.randint(-3, 4, (1, 1, case.height, half, 2), generator=generator).float()
    spectrum = torch.view_as_complex(parts)
    held = shell_energy(spectrum, case.width).cumsum(1)[0].tolist()
    total = held[-1]
    for shell in range(1, len(held), max(1, len(held) // 4)):
        tau = held[shell] / total
        if tau * total > held[shell]:  # the quotient was rounded up
            tau = math.nextafter(tau, 0)
        got = ops.energy_cutoff(spectrum.to(device), case.width, tau).item()
        assert_true(got == shell, f"tau {tau}: cut-off {got}, expected {shell}, which holds exactly that share")
        above = math.nextafter(held[shell], math.inf) / total
        if shell + 1 < len(held) and above * total > held[shell]:
            got = ops.energy_cutoff(spectrum.to(device), case.width, above).item()
            assert_true(got == shell + 1, f"tau {above}: cut-off {got}, expected {shell + 1}")


@check("energy_cutoff", cases=(Case(16, 16), Case(12, 24), Case(24, 12)))
def check_energy_cutoff_finds_a_wave(ops: Primitives, device: torch.device, case: Case) -> None:
    """Find a sine's radius in cycles over the shorter side; a large mean hides it unless DC is left out."""
    down, across = (
        (4, 3 * case.width // case.height) if case.height <= case.width else (4 * case.height // case.width, 3)
    )
    image = wave(*case.size, across, down, offset=10)
    spectrum = torch.fft.rfft2(image).to(device)
    got = [ops.energy_cutoff(spectrum, case.width, 0.9, include_dc).item() for include_dc in (True, False)]
    assert_true(got == [1, 5], f"cut-offs with and without DC {got}, expected [1, 5]")


@check("energy_cutoff")
def check_energy_cutoff_of_no_energy_is_one(ops: Primitives, device: torch.device, case: Case) -> None:
    """Ask for the cut-offs of zero, constant and one-pixel images."""
    for include_dc in (True, False):
        images = torch.stack([torch.zeros(1, 9, 8), torch.full((1, 9, 8), 0.5)])
        got = ops.energy_cutoff(torch.fft.rfft2(images).to(device), 8, 0.9, include_dc).tolist()
        assert_true(got == [1, 1], f"a zero and a constant image: cut-offs {got}, include_dc {include_dc}")
        one_pixel = torch.fft.rfft2(torch.full((1, 1, 1, 1), 0.5)).to(device)
        got = ops.energy_cutoff(one_pixel, 1, 0.9, include_dc).tolist()
        assert_true(got == [1], f"one pixel: cut-off {got}, include_dc {include_dc}")


@check("energy_cutoff", cases=(Case(12, 20, batch=3),))
def check_energy_cutoff_of_nan_is_one_for_its_own_image(ops: Primitives, device: torch.device, case: Case) -> None:
    """See that NaN in one image changes no other."""
    spectrum = spectra(case).to(device)
    clean = ops.energy_cutoff(spectrum, case.width, 0.95, False).tolist()
    spectrum[1, 0, 3, 3] = math.nan
    got = ops.energy_cutoff(spectrum, case.width, 0.95, False).tolist()
    assert_true(got == [clean[0], 1, clean[2]], f"cut-offs {got}, expected {[clean[0], 1, clean[2]]}")


@check("energy_cutoff", cases=(Case(11, 10, batch=3), Case(225, 224, batch=8, channels=3, gpu=True)))
def check_energy_cutoff_depends_on_neither_batch_nor_strides_nor_run(
    ops: Primitives, device: torch.device, case: Case
) -> None:
    """Compare an image's cut-off alone, from any memory layout, in every run; no image gives none."""
    arguments = _arguments(case, device, tau=0.7, include_dc=False)
    whole = ops.energy_cutoff(**arguments)
    alone = ops.energy_cutoff(arguments["spectrum"][1:2], case.width, 0.7, False)
    assert_same(alone, whole[1:2], "cut-off alone")
    assert_any_strides(ops.energy_cutoff, arguments)
    assert_repeatable(ops.energy_cutoff, arguments, device)
    empty = ops.energy_cutoff(arguments["spectrum"][:0], case.width)
    assert_true(tuple(empty.shape) == (0,), f"no images give shape {tuple(empty.shape)}, expected (0,)")
