"""Distribute a sum over pixels over the frequencies: Parseval's theorem, coefficient by coefficient."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import check_batch
from ..reference.radius import multiplicity


def product_per_frequency(first: Tensor, second: Tensor) -> Tensor:
    """Distribute the scalar product of two batches of images over their frequencies.

    ``m Re(conj(F) S) / (H W)``, F and S the ``rfft2`` of the two, summed over the channels. A coefficient of the half
    spectrum also represents its conjugate (m = 2), except in the DC and Nyquist columns, which contain both: values are
    real and signed, and sum to ``sum first * second``. For a batch with itself they are the energies.

    Args:
        first: (B, C, H, W), real floating-point, any values.
        second: (B, C, H, W).

    Returns:
        (B, H, W//2+1) float64 on the CPU.

    Raises:
        TypeError: not real floating-point tensors.
        ValueError: not (B, C, H, W), or shapes that differ.
    """
    if check_batch("first", first).shape != check_batch("second", second).shape:
        raise ValueError(f"first and second must have one shape, got {tuple(first.shape)} and {tuple(second.shape)}")
    height, width = first.shape[-2:]
    if not len(first):  # which MKL refuses
        return torch.zeros(0, height, width // 2 + 1, dtype=torch.float64, device="cpu")
    # On the CPU, as some devices have no float64.
    one = torch.fft.rfft2(first.detach().cpu().double())
    other = one if second is first else torch.fft.rfft2(second.detach().cpu().double())
    product: Tensor = (one.real * other.real + one.imag * other.imag).sum(1)
    return product * (multiplicity(width).double() / (height * width))


def centred(values: Tensor, width: int) -> Tensor:
    """Arrange values of a half spectrum on the whole frequency plane, with DC in the middle.

    Conjugates share their value evenly, as do the two ends of an even side, which are the same highest frequency: the
    sum is kept, and rotating an image by 90 degrees rotates its plane.

    Args:
        values: (B, H, W//2+1), as from ``product_per_frequency``.
        width: W, which cannot be derived from the half spectrum.

    Returns:
        (B, 2 (H//2) + 1, 2 (W//2) + 1): row i is the frequency ``i - H//2`` downwards, column j ``j - W//2`` across.

    Raises:
        ValueError: another shape.
    """
    height = values.shape[1] if values.ndim == 3 else 0
    check_half_spectrum(values, (height, width))
    half = values / multiplicity(width, values.device)
    rows = -torch.arange(height, device=values.device) % height
    columns = width - torch.arange(width // 2 + 1, width, device=values.device)
    opposite = half[:, rows][:, :, columns]
    plane: Tensor = torch.fft.fftshift(torch.cat([half, opposite], 2), (1, 2))
    for axis, size in ((1, height), (2, width)):
        if size % 2 == 0:
            end = plane.narrow(axis, 0, 1) / 2
            plane = torch.cat([end, plane.narrow(axis, 1, size - 1), end], axis)
    return plane


def check_half_spectrum(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Check values with one number per coefficient of the half spectrum of images of size (H, W).

    Raises:
        ValueError: not (B, H, W//2+1).
    """
    height, width = size
    if values.ndim != 3 or tuple(values.shape[1:]) != (height, width // 2 + 1):
        raise ValueError(f"values must be (B, {height}, {width // 2 + 1}), got shape {tuple(values.shape)}")
    return values
