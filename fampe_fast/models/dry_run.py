"""One pass of one image of noise, to see what a model takes and returns before any work is done with it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ..runtime.tf32 import tensor_float32
from .classifier import Classifier
from .module_state import restored

# Another memory format adds up in another order, and folded weights are rounded once more: some 1e-6 of the largest
# logit. A wrong result differs by far more.
_TOLERANCE = 1e-4


def run_once(classifier: Classifier) -> object:
    """Run one image of noise of the classifier's size (more if ``images_for`` says so), without gradients.

    Raises:
        Exception: whatever the model raises.
    """
    size = (images_for(classifier), classifier.channels, *classifier.input_size)
    noise = torch.rand(size, generator=torch.Generator().manual_seed(0)).to(classifier.mean)
    full = tensor_float32(False) if noise.is_cuda else nullcontext()
    with restored(classifier), torch.no_grad(), full, _without_compiling(classifier):
        return classifier(noise)


def images_for(classifier: Classifier) -> int:
    """Tell how many images a model is tried with: one, or as many as a program was exported for."""
    shape = getattr(classifier.model, "shape", None)
    return int(shape[0]) if isinstance(shape, tuple) and shape and isinstance(shape[0], int) else 1


def number_of_classes(output: object, images: int) -> int | None:
    """Read the number of classes off an output (images, classes); None for every other output."""
    return int(output.shape[1]) if isinstance(output, Tensor) and output.ndim == 2 and len(output) == images else None


def prefer_channels_last(classifier: Classifier, expected: object) -> None:
    """Turn the weights channels-last, the format convolutions are fastest in, if the model's output stays the same.

    Models that use ``view`` on feature maps fail in that format; theirs keep the one they have.

    Args:
        classifier: of a model that this package built or read from a file.
        expected: what ``run_once`` returned for it.
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
    """Tell whether two outputs are equal but for rounding, by the largest of them."""
    if not isinstance(found, Tensor) or not isinstance(expected, Tensor) or found.shape != expected.shape:
        return False
    found, expected = found.float(), expected.float()
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())


def _without_compiling(model: nn.Module) -> AbstractContextManager[Any]:
    """Run a compiled module as it is written: compiling takes minutes, and one pass does not repay it."""
    compiled = any(hasattr(part, "_orig_mod") or part._compiled_call_impl is not None for part in model.modules())
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()
