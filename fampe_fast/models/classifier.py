"""Define classifiers in pixel space, which contain their normalisation, class names and transform."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Callable, Sequence
from typing import SupportsIndex

import torch
from PIL import Image
from torch import Tensor, nn

from ..checks import check_count, check_whole
from ..runtime.outputs import Output, check_output, logits_in
from .input_channels import input_channels
from .transforms import CHANNELS, PixelTransform, ResizeAndCrop


class Classifier(nn.Module):
    """A model that takes images in pixel space, [0, 1], and normalises them itself.

    ``forward(pixels) = model((pixels - mean) / std)``. Shapes: pixels float (B, C, H, W) in [0, 1]; logits
    (B, classes). The values are not checked here (which would need a synchronisation on every call); the methods of
    this package check their input once.

    Attributes:
        name: name of the model in tables and file names.
        class_names: one name per class, or None if unknown.
        num_classes: the number of classes, or None if unknown.
        input_size: (H, W) in pixels, the size that ``transform`` produces.
        channels: C, the number of channels of the images: 3 for RGB.
        transform: from a PIL image to float32 (C, H, W) in [0, 1]: resize and crop, no normalisation. Apply it to
            images from ``fampe_fast.images.read_image``. For a model of one channel it makes the image grey; for other
            numbers it raises ValueError, as files have no such images: pass your own transform.
        model: the wrapped model; it takes normalised images.
        mean: buffer, float32 (1, C, 1, 1), in pixel units.
        std: buffer, float32 (1, C, 1, 1), in pixel units.
        output: meaning of the model's output, "logits", "probabilities" or "sigmoid"; None if not declared.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: nn.Module,
        *,
        name: str | None = None,
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
        input_size: int | Sequence[int] = (224, 224),
        transform: Callable[[Image.Image], Tensor] | None = None,
        class_names: Sequence[str] | None = None,
        num_classes: int | None = None,
        channels: int | None = None,
        output: Output | None = None,
    ) -> None:
        """Wrap ``model`` without changing its mode, precision or device (``load_classifier`` sets them).

        Args:
            model: takes normalised images (B, C, H, W), and returns (B, classes), or an object that has them as
                ``logits`` (Hugging Face's ``ModelOutput``, a dict).
            name: name of the classifier; default: the model's class name.
            mean: subtracted from the pixels; one number or one per channel, in [0, 1]. Default 0.
            std: divisor; one number or one per channel, above 0. Default 1: with mean 0, no normalisation.
            input_size: (H, W), or one number for a square.
            transform: default: resize so that the centre crop of ``input_size`` covers 7/8 of the shorter side
                (bicubic), then crop.
            class_names: one name per class.
            num_classes: number of classes; default: the number of names, else ``model.num_classes`` if there is one.
            channels: number of channels of the images; default: the number of means or stds if several are given, else
                the input channels of the model's first convolution, else 3.
            output: meaning of the model's output: "logits" of mutually exclusive classes; "probabilities", after a
                softmax or sigmoids; or "sigmoid", logits of independent classes or a single logit. Default: logits;
                outputs that are clearly something else are refused on use, with the value to set.

        Raises:
            TypeError: ``model`` is not an nn.Module, or an argument has the wrong type.
            ValueError: a mean outside [0, 1], a std that is not above 0, another number of values than one or one per
                channel, an input size below 1, another number of names than classes, or an unknown ``output``.
        """
        super().__init__()
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
        self.channels, means, stds = _channel_values(model, channels, *channel_statistics(mean, std))
        first = next((t for t in [*model.parameters(), *model.buffers()]), None)
        device = None if first is None else first.device
        shape = (1, self.channels, 1, 1)
        self.register_buffer("mean", torch.tensor(means, dtype=torch.float32, device=device).reshape(shape))
        self.register_buffer("std", torch.tensor(stds, dtype=torch.float32, device=device).reshape(shape))
        self.model = model
        self.training = bool(getattr(model, "training", False))
        self.name = type(model).__name__ if name is None else name
        self.input_size = check_input_size(input_size)
        self.transform = default_transform(self.input_size, self.channels) if transform is None else transform
        declared = getattr(model, "num_classes", None)
        if num_classes is None and isinstance(declared, int) and declared > 0:
            num_classes = declared
        self.class_names = None if class_names is None else check_class_names(class_names, num_classes)
        self.num_classes = len(self.class_names) if self.class_names is not None else num_classes
        self.output = None if output is None else check_output(output)

    def forward(self, pixels: Tensor) -> Tensor:
        """Classify images.

        Args:
            pixels: float (B, C, H, W) in [0, 1].

        Returns:
            (B, classes), with the meaning in ``output``.

        Raises:
            TypeError: the model returns neither a tensor nor an object that has one as ``logits``.
        """
        return logits_in(self.model((pixels - self.mean) / self.std))

    def class_name(self, index: SupportsIndex) -> str:
        """Return a class's name, or "class 7" if the names are unknown.

        Raises:
            IndexError: the index is negative or not below the number of classes.
        """
        i = operator.index(index)
        if i < 0 or (self.num_classes is not None and i >= self.num_classes):
            known = "" if self.num_classes is None else f" below {self.num_classes}"
            raise IndexError(f"class index {i} is out of range; expected 0 or more{known}")
        return f"class {i}" if self.class_names is None else self.class_names[i]

    def extra_repr(self) -> str:
        """Describe the classifier, beside the wrapped model, for ``repr``."""
        means, stds = ([round(v, 4) for v in buffer.flatten().tolist()] for buffer in (self.mean, self.std))
        shown = f"{self.name}, input_size={self.input_size}, mean={means}, std={stds}, num_classes={self.num_classes}"
        return shown if self.output is None else f"{shown}, output={self.output!r}"


def default_transform(size: tuple[int, int], channels: int, interpolation: str = "bicubic") -> PixelTransform:
    """Make the default transform of a model: a centre crop that covers 7/8 of the shorter side."""
    return PixelTransform(ResizeAndCrop(size, interpolation=interpolation), channels)


def channel_statistics(
    mean: float | Sequence[float], std: float | Sequence[float]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Check mean and standard deviation: see ``Classifier``.

    Returns:
        Both of one length: one number for all channels, or one per channel.
    """
    means, stds = _numbers(mean, "mean"), _numbers(std, "std")
    if not all(0 <= value <= 1 for value in means):
        raise ValueError(f"mean must lie in [0, 1], the units of pixels; got {means}{_byte_hint(means)}")
    if not all(value > 0 for value in stds):
        raise ValueError(f"std must be above 0, got {stds}")
    if len(means) != len(stds) and 1 not in (len(means), len(stds)):
        raise ValueError(f"mean has {len(means)} values and std {len(stds)}; expected one number, or one per channel")
    count = max(len(means), len(stds))
    return _spread(means, count), _spread(stds, count)


def _channel_values(
    model: nn.Module, channels: int | None, means: tuple[float, ...], stds: tuple[float, ...]
) -> tuple[int, tuple[float, ...], tuple[float, ...]]:
    """Find the number of channels, and each channel's mean and std."""
    given, first = len(means), input_channels(model)
    expected = (first or CHANNELS) if channels is None else check_count("channels", channels)
    if channels is None and given > 1 and (first is None or given in (first, CHANNELS)):
        expected = given  # also where the first convolution is an inner one, of greyscale made from RGB
    if given not in (1, expected):
        raise ValueError(
            f"mean and std must be one number or {expected}, one per channel; got {given}: {means}, {stds}"
        )
    return expected, _spread(means, expected), _spread(stds, expected)


def _spread(values: tuple[float, ...], count: int) -> tuple[float, ...]:
    return values * count if len(values) == 1 else values


def _numbers(value: float | Sequence[float], what: str) -> tuple[float, ...]:
    if isinstance(value, str | bytes):
        raise TypeError(f"{what} must be a number or a sequence of numbers, one per channel, got {value!r}")
    try:
        found = tuple(float(v) for v in ([value] if _is_single(value) else value))  # type: ignore[arg-type, union-attr]
    except (TypeError, ValueError) as error:
        raise TypeError(f"{what} must be a number or a sequence of numbers, one per channel, got {value!r}") from error
    if not found:
        raise ValueError(f"{what} is empty; expected one number, or one per channel")
    if not all(math.isfinite(number) for number in found):
        raise ValueError(f"{what} must be finite, got {found}")
    return found


def _is_single(value: object) -> bool:
    """Tell whether a value is one number: Python's, NumPy's, or an array or tensor without dimensions."""
    return isinstance(value, numbers.Real) or getattr(value, "shape", None) == ()


def _byte_hint(means: tuple[float, ...]) -> str:
    if all(0 <= value <= 255 for value in means):
        return ". If they are for bytes, 0 to 255, divide mean and std by 255"
    return ""


def check_input_size(size: int | Sequence[int]) -> tuple[int, int]:
    """Convert one or two numbers to (H, W).

    Raises:
        TypeError: not an integer or two integers.
        ValueError: a side below 1, or another number of values than 1 or 2.
    """
    try:
        sides = [check_whole("input_size", side) for side in ([size] if _is_single(size) else size)]  # type: ignore[union-attr]
    except TypeError as error:
        raise TypeError(f"input_size must be an integer or (H, W), got {size!r}") from error
    if len(sides) not in (1, 2) or min(sides) < 1:
        raise ValueError(f"input_size must be one or two integers of at least 1, got {size!r}")
    return sides[0], sides[-1]


def check_class_names(names: Sequence[str], num_classes: int | None) -> tuple[str, ...]:
    """Check class names and convert them to a tuple.

    Raises:
        TypeError: ``names`` is not a sequence of str.
        ValueError: there are none, or another number of them than classes.
    """
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"class_names must be a sequence of str, one per class, got {names!r:.100}")
    if len(names) == 0:
        raise ValueError("class_names is empty; expected one name per class")
    if num_classes is not None and len(names) != num_classes:
        raise ValueError(f"{len(names)} class_names were given for a model of {num_classes} classes")
    return tuple(names)
