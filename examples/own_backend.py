"""Write one of the package's primitives anew, let the package use it, and hold it to the public suite.

    python examples/own_backend.py
    cd examples && python -m pytest -p own_backend -p fampe_fast.testing.plugin \\
        --pyargs fampe_fast.testing.suite --fampe-backend exact

The primitive is ``layer_evidence``, by which FAMPE makes a map of each layer. This one adds in float64: slower and more
exact. Importing this file registers it as the backend "exact"; ``FAMPE_FAST_BACKEND=exact`` chooses it. What a backend
leaves out, the reference computes. Prints how far maps by both are apart, and the checks that the backend has passed.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

from fampe_fast import FAMPE, load_embedded_classifier, register_backend
from fampe_fast.images.generated import generate
from fampe_fast.testing import load_primitives, registered


def layer_evidence(activation: Tensor, gradient: Tensor) -> Tensor:
    """Compute ``relu(-sum_c gradient * activation)``, as ``fampe_fast.reference.layer_evidence`` in float64.

    Args:
        activation: (B, C, H, W), float16, bfloat16, float32 or float64; any strides.
        gradient: (B, C, H, W), likewise.

    Returns:
        (B, H, W), contiguous, float64 if an argument is, else float32.
    """
    total = torch.zeros_like(activation[:, 0], dtype=torch.float64, memory_format=torch.contiguous_format)
    for one, other in zip(activation.unbind(1), gradient.unbind(1), strict=True):  # in one order for every layout
        total.addcmul_(one.double(), other.double(), value=-1)
    wide = torch.float64 in (activation.dtype, gradient.dtype)
    return total.relu().to(torch.float64 if wide else torch.float32)


register_backend("exact", {"layer_evidence": layer_evidence})


def main() -> None:
    """Explain by both backends, and run the suite."""
    clf, images = load_embedded_classifier(), generate(4).images
    maps = {}
    for name in ("reference", "exact"):
        os.environ["FAMPE_FAST_BACKEND"] = name
        maps[name] = FAMPE(clf).attribute(images)
    apart = (maps["exact"] - maps["reference"]).abs().max() / maps["reference"].max()
    print(f"maps by both backends differ by {float(apart):.1e} of the largest value")

    primitives = load_primitives("exact", "cpu")
    for check in registered():
        if set(check.primitives) <= set(primitives):
            cases = [case for case in check.cases if not case.gpu]
            for case in cases:
                check.function(primitives, torch.device("cpu"), case)  # AssertionError says what is wrong
            print(f"passed on {len(cases)} cases: {check.name}")


if __name__ == "__main__":
    main()
