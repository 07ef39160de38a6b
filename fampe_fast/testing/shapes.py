"""Choose the sizes and memory layouts on which a kernel is tested."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SIZES: tuple[tuple[int, int], ...] = ((8, 8), (9, 9), (12, 20), (21, 10), (9, 8), (15, 16))
"""(H, W), cheap enough for an interpreter on the CPU: square, odd, wide, tall; 12 x 20 has its Nyquist coefficients in
row and column; 9 x 8 and 15 x 16 have an odd number of coefficients, H * (W//2+1), so every other plane of a
spectrum starts off the widest access's boundary."""

EDGE_SIZES: tuple[tuple[int, int], ...] = ((1, 1), (1, 9), (8, 1), (2, 2))
"""(H, W) where one axis or both have no frequencies but DC, or DC and Nyquist alone."""

LARGE_SIZES: tuple[tuple[int, int], ...] = ((224, 224), (299, 224), (225, 225), (512, 512))
"""(H, W) for a GPU: the usual input sizes, an odd number of rows, odd sides, and more than one wave of programs."""


@dataclass(frozen=True)
class Case:
    """Size and mode of a check's run; a check may ignore fields.

    Attributes:
        height: H, pixels.
        width: W, pixels.
        batch: B, images.
        channels: C.
        rows: P, of the primitives that take (image, sample) or (image, step) pairs.
        mode: of the band mix, a key of ``fampe_fast.testing.arguments.MODES``.
        mask: the radial mask's shape.
        taps: length of the smoothing kernel, 0 for none.
        gpu: too large for a CPU, or for an interpreter.
    """

    height: int = 9
    width: int = 12
    batch: int = 2
    channels: int = 2
    rows: int = 3
    mode: str = "mix"
    mask: str = "gaussian"
    taps: int = 0
    gpu: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """Return (H, W)."""
        return self.height, self.width

    def __str__(self) -> str:
        """Name the case, for test names: the size, and what differs from the defaults."""
        plain = Case()
        extra = [
            f"{name}{value}"
            for name in ("batch", "channels", "rows", "taps")
            if (value := getattr(self, name)) != getattr(plain, name)
        ]
        words = [word for word, usual in ((self.mode, plain.mode), (self.mask, plain.mask)) if word != usual]
        return "-".join([f"{self.height}x{self.width}", *words, *extra])


def stride_variants(tensor: Tensor) -> dict[str, Tensor]:
    """Copy values to other memory layouts, by name.

    Args:
        tensor: any shape, any dtype, any device.

    Returns:
        Tensors equal to ``tensor``: with gaps along the last dimension, starting one element after an allocation's
        beginning, with the last two dimensions exchanged in memory, with the first two exchanged, channels-last, and
        lazily conjugated where it is complex; those that the number of dimensions allows.
    """
    values = tensor.resolve_conj()
    spaced = values.new_zeros((*values.shape, 2))
    spaced[..., 0] = values
    shifted = values.new_zeros(values.numel() + 1)[1:].view(values.shape)
    variants = {"with gaps": spaced[..., 0], "one element off": shifted.copy_(values)}
    if values.ndim >= 2:
        variants["last two exchanged"] = values.transpose(-1, -2).contiguous().transpose(-1, -2)
    if values.ndim >= 3:
        variants["first two exchanged"] = values.transpose(0, 1).contiguous().transpose(0, 1)
    if values.ndim == 4:
        variants["channels last"] = values.contiguous(memory_format=torch.channels_last)
    if values.is_complex():
        variants["lazily conjugated"] = values.conj().resolve_conj().conj()
    return variants
