"""Time the primitives on the CPU: the plain reference beside what ``fampe_fast.ops`` runs there.

    python -m pytest benchmarks/test_speed.py --benchmark-only

``extra_info`` of each entry gives the floor: the bytes that a call must move, each input read once and each output
written once, and the arithmetic operations counted in the formula (multiplications, additions, comparisons and logic;
a Philox round is two multiplications and four exclusive ors). The reference is compiled after some tens of millions of
values (``fampe_fast.ops.compiled``), so the entries through ``ops`` first run until that has happened.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from fampe_fast import ops
from fampe_fast.ops import compiled

from .kernels.primitives import primitive
from .kernels.sizes import Size

SIZE = Size(1, 4, 224, 224)

# Operations per element of the result.
OPERATIONS: dict[str, tuple[Callable[[Size], int], int]] = {
    # Philox 10 rounds of 6; four conversions of 4; gain 8, noise 4, product 2, mask's share left out.
    "band_mix": (lambda size: size.rows * size.channels * size.coefficients, 10 * 6 + 4 * 4 + 14),
    # Philox 10 rounds of 6; two conversions of 4; noise 2, gain 2, product 1.
    "dct_mix": (lambda size: size.rows * size.channels * size.pixels, 10 * 6 + 2 * 4 + 5),
    # Four weights and as many multiply-adds, per pixel of the frame and of the sample.
    "diversify": (lambda size: int(1.15**2 * size.rows * size.channels * size.pixels), 12),
    "diversify_adjoint": (lambda size: int(1.15**2 * size.rows * size.channels * size.pixels), 12),
    # Two squares, a sum, the channel's and the shell's.
    "energy_cutoff": (lambda size: size.images * size.channels * size.coefficients, 5),
    # 14 multiply-adds of smoothing as two operations each; mean 2, momentum 2, sign step 3, projection 4, map 3.
    "gradient_step": (lambda size: size.images * size.channels * size.pixels, 2 * 14 + 14),
    # A product and a sum per channel.
    "layer_evidence": (lambda size: size.images * size.channels * size.pixels, 2),
    # A comparison and a choice.
    "pixel_mask": (lambda size: size.rows * size.channels * size.pixels, 2),
    # Radius 5, exponential 3, complement 1.
    "radial_mask": (lambda size: size.images * size.coefficients, 9),
}


@pytest.mark.parametrize("provider", ["reference", "ops"])
@pytest.mark.parametrize("name", list(OPERATIONS))
def test_primitive(name: str, provider: str, benchmark: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAMPE_FAST_BACKEND", "auto")
    entry = primitive(name)
    size = entry.fitted(SIZE)
    arguments = entry.arguments(size, torch.device("cpu"))
    function = entry.reference() if provider == "reference" else getattr(ops, name)
    elements, operations = OPERATIONS[name]
    benchmark.group = f"{name} {size}"
    benchmark.extra_info.update(
        bytes=entry.bytes(size), operations=operations * elements(size), threads=torch.get_num_threads()
    )
    with torch.no_grad():
        expected = entry.reference()(**arguments)
        if provider == "ops":
            monkeypatch.setattr(compiled, "COMPILE_AFTER", 0)
        function(**arguments)
        got = benchmark(lambda: function(**arguments))
    for a, b in zip(_flat(got), _flat(expected), strict=True):
        torch.testing.assert_close(a, b)


def _flat(result: Any) -> list[torch.Tensor]:
    return list(result) if isinstance(result, (tuple, list)) else [result]
