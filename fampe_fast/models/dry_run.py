"""Run one image of noise, to find out a model's input and output before any work."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ..runtime.tf32 import tensor_float32
from .classifier import Classifier
from .module_state import restored

# Another memory format sums in another order, and folded weights are rounded once more: about 1e-6 of the largest
# logit. A wrong result differs by far more.
_TOLERANCE = 1e-4


def run_once(classifier: Classifier) -> object:
    """Run one image of noise of the classifier's size (or ``images_for`` images), without gradients.

    Raises:
        Exception: whatever the model raises.
    """
    size = (images_for(classifier), classifier.channels, *classifier.input_size)
    noise = torch.rand(size, generator=torch.Generator().manual_seed(0)).to(classifier.mean)
    full = tensor_float32(False) if noise.is_cuda else nullcontext()
    with restored(classifier), torch.no_grad(), full, _without_compiling(classifier):
        return classifier(noise)


def images_for(classifier: Classifier) -> int:
    """Return the number of images for the dry run: one, or the batch size that a program was exported for."""
    shape = getattr(classifier.model, "shape", None)
    return int(shape[0]) if isinstance(shape, tuple) and shape and isinstance(shape[0], int) else 1


def number_of_classes(output: object, images: int) -> int | None:
    """Read the number of classes from an output (images, classes); None for other outputs."""
    return int(output.shape[1]) if isinstance(output, Tensor) and output.ndim == 2 and len(output) == images else None


def prefer_channels_last(classifier: Classifier, expected: object) -> None:
    """Convert the weights to channels-last, the fastest format of convolutions, if the output stays the same.

    Models that use ``view`` on feature maps fail in that format, and keep their own.

    Args:
        classifier: a classifier whose model this package built or read from a file.
        expected: the output of ``run_once`` for it.
    """
    tensors = [*classifier.model.parameters(), *classifier.model.buffers()]
    if not all(tensor.device.type in ("cpu", "cuda") for tensor in tensors):
        return
    before = [tensor.data for tensor in tensors]
    classifier.model.to(memory_format=torch.channels_last)
    turned = [*classifier.model.parameters(), *classifier.model.buffers()]
    try:
        fine = agree(run_once(classifier), expected)
    except Exception:  # foreign code: view's RuntimeError, an assertion about strides
        fine = False
    if not fine:
        for tensor, values in zip(turned, before, strict=True):
            tensor.data = values


def agree(found: object, expected: object, tolerance: float = _TOLERANCE) -> bool:
    """Tell whether two outputs are equal up to rounding, relative to the largest value."""
    if not isinstance(found, Tensor) or not isinstance(expected, Tensor) or found.shape != expected.shape:
        return False
    found, expected = found.float(), expected.float()
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())


def _without_compiling(model: nn.Module) -> AbstractContextManager[Any]:
    """Run a compiled module uncompiled, as compiling takes minutes and pays off only for many passes."""
    compiled = any(hasattr(part, "_orig_mod") or part._compiled_call_impl is not None for part in model.modules())
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()
