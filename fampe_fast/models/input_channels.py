"""Find the number of channels of a model's images from its modules."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.parameter import is_lazy


def input_channels(model: nn.Module) -> int | None:
    """Find the input channels of a model's first convolution, in the order of registration.

    Args:
        model: any module; for programs, which may have no modules, the first four-dimensional weight counts.

    Returns:
        The number of channels, or None without a convolution.
    """
    for module in model.modules():
        if "Conv" in str(getattr(module, "original_name", type(module).__name__)):  # a scripted module's own class
            channels, weight = getattr(module, "in_channels", None), getattr(module, "weight", None)
            if isinstance(channels, int) and channels > 0:
                return channels
            if (channels := _of_kernel(weight)) is not None:
                return channels
    found = (_of_kernel(value) for name, value in model.named_parameters() if name.endswith("weight"))
    return next((channels for channels in found if channels is not None), None)


def _of_kernel(weight: object) -> int | None:
    if not isinstance(weight, Tensor) or is_lazy(weight) or weight.ndim != 4:
        return None
    return int(weight.shape[1])
