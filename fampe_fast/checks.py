"""Check arguments before any work: each check returns the plain value or tensor, or raises an error.

NumPy scalars, and arrays and tensors without dimensions, are accepted as numbers; the result is an ``int``, a
``float``, a ``bool`` or a ``str``, so that settings compare equal and can be written as JSON.
"""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

LARGEST = 1e12
"""Limit of sizes in pixel units and factors on a spectrum: float32 holds an image's sum of products of two."""

SMALLEST_CUTOFF, LARGEST_CUTOFF = 1e-15, 1e15
"""Limits of Gaussian radii in cycles over the shorter side: float32 holds their squares and reciprocals."""

LARGEST_ID = 2**32 - 2  # the last number is reserved for the draws of input diversity
SMALLEST_SIDE = 8
# Limits of the kernels' 32-bit indices and exact radii, including the larger frames of input diversity.
LARGEST_SIDE = 16384
LARGEST_IMAGE = 2**30
_T = TypeVar("_T", bound=str)


def check_whole(name: str, value: object, *, unit: str = "") -> int:
    """Check a whole number of any sign; ``unit`` is for the message.

    Raises:
        TypeError: not a whole number, also for a bool or a float.
    """
    number = _index(_plain(value))
    if number is not None:
        return number
    of_what = f" of {unit}s" if unit else ""
    raise TypeError(f"{name} must be a whole number{of_what}, got {_shown(value)}")


def check_count(name: str, value: object, *, at_least: int = 1, unit: str = "") -> int:
    """Check a whole number of at least 1, or another bound.

    Raises:
        TypeError: not a whole number.
        ValueError: below the bound.
    """
    count = check_whole(name, value, unit=unit)
    if count < at_least:
        raise ValueError(f"{name} must be at least {at_least}{unit and f' {unit}'}, got {count}")
    return count


def check_number(
    name: str,
    value: object,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    open_low: bool = False,
    expected: str | None = None,
    kind: str = "a number",
    largest: float = math.inf,
) -> float:
    """Check a finite real number in [low, high].

    Args:
        name: name of the argument.
        value: the given value.
        low: the smallest value.
        high: the largest value.
        open_low: exclude ``low`` itself.
        expected: description of the expected value; default: the interval.
        kind: description of the expected type.
        largest: a limit below ``high`` by float32's range, with its own message.

    Raises:
        TypeError: no real number.
        ValueError: NaN, infinite, or out of range.
    """
    number = _real(value)
    if number is None:
        raise TypeError(f"{name} must be {kind}, got {_shown(value)}")
    inside = (number > low if open_low else number >= low) and number <= high
    if not (inside and math.isfinite(number)):
        interval = f"in {'(' if open_low else '['}{low:g}, {high:g}]" if math.isfinite(number) else "finite"
        raise ValueError(f"{name} must be {expected or interval}, got {_plain(value)!r:.80}")
    if number > largest:
        raise ValueError(f"{name} must be at most {largest:g}, beyond which float32 overflows, got {_plain(value)!r}")
    return number


def check_fraction(name: str, value: object) -> float:
    """Check a number in [0, 1].

    Raises:
        TypeError: no real number.
        ValueError: NaN or out of range.
    """
    return check_number(name, value, 0, 1)


def check_positive(name: str, value: object, **options: Any) -> float:
    """Check a number above 0; ``options`` are those of ``check_number``.

    Raises:
        TypeError: no real number.
        ValueError: NaN, infinite, or not above 0.
    """
    return check_number(name, value, 0, open_low=True, **{"expected": "finite and above 0", **options})


def check_cutoff(name: str, value: object) -> float:
    """Check a radius in cycles over the shorter side, 0 or more.

    Raises:
        TypeError: no real number.
        ValueError: negative, NaN, infinite, or above ``LARGEST_CUTOFF``.
    """
    return check_number(name, value, 0, expected="finite and not negative", largest=LARGEST_CUTOFF)


def check_gaussian_cutoff(name: str, value: object, expected: str | None = "above 0") -> float:
    """Check the radius of a Gaussian band in cycles over the shorter side, above 0.

    Args:
        name: of the argument.
        value: what was given.
        expected: description of the expected value for numbers not above 0; None: the interval.

    Raises:
        TypeError: no real number.
        ValueError: not above 0, NaN, infinite, or outside [``SMALLEST_CUTOFF``, ``LARGEST_CUTOFF``], where float32
            loses its square.
    """
    cutoff = check_number(name, value, 0, open_low=True, expected=expected, largest=LARGEST_CUTOFF)
    if cutoff < SMALLEST_CUTOFF:
        raise ValueError(
            f"{name} must be at least {SMALLEST_CUTOFF:g}, below which float32 loses its square, got {_plain(value)!r}"
        )
    return cutoff


def check_interval(
    name: str, value: object, high: float = math.inf, *, largest: float = math.inf
) -> tuple[float, float]:
    """Check an interval (lowest, highest) of numbers in [0, high], or one number for both.

    Raises:
        TypeError: neither one number nor two.
        ValueError: NaN, infinite, negative, above ``high`` or ``largest``, or the larger number first.
    """
    ends = _pair(value)
    if ends is None:
        ends = (value, value)
    for end in ends:
        if _real(end) is None:
            raise TypeError(f"{name} must be a number or two, got {_shown(value)}")
    expected = "finite and not negative" if high == math.inf else None
    first, last = (check_number(name, end, 0, high, expected=expected, largest=largest) for end in ends)
    if first > last:
        raise ValueError(f"{name} must be (lowest, highest), got {value!r}")
    return first, last


def check_bounds(bounds: object) -> tuple[float, float]:
    """Check the smallest and the largest pixel value.

    Raises:
        TypeError: not two numbers.
        ValueError: not two, not finite, not ascending, or outside float32's range.
    """
    pair = _pair(bounds)
    if pair is None:
        error = ValueError if isinstance(bounds, Sequence) and not isinstance(bounds, str) else TypeError
        raise error(f"bounds must be (lower, upper) with lower < upper, got {bounds!r}")
    lower, upper = (_real(end) for end in pair)
    if lower is None or upper is None:
        raise TypeError(f"bounds must be (lower, upper), two numbers, got {bounds!r}")
    if not (math.isfinite(lower) and math.isfinite(upper) and lower < upper):
        raise ValueError(f"bounds must be (lower, upper) with lower < upper, both finite, got {bounds!r}")
    if max(-lower, upper) > LARGEST:
        raise ValueError(
            f"bounds must lie in [{-LARGEST:g}, {LARGEST:g}], beyond which float32 overflows, got {bounds!r}"
        )
    if np.float32(lower) == np.float32(upper):
        raise ValueError(f"bounds must be (lower, upper) with lower < upper in float32, got {bounds!r}")
    return lower, upper


def check_flag(name: str, value: object) -> bool:
    """Check a bool.

    Raises:
        TypeError: anything else.
    """
    plain = _plain(value)
    if not isinstance(plain, bool):
        raise TypeError(f"{name} must be True or False, got {_shown(value)}")
    return plain


def check_choice(name: str, value: object, choices: Sequence[_T]) -> _T:
    """Check a choice among several words.

    Raises:
        ValueError: another word.
    """
    if isinstance(value, str):
        for choice in choices:
            if value == choice:
                return choice
    raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}")


def check_seed(seed: object, name: str = "seed") -> int:
    """Check a seed, a whole number of 64 bits.

    Raises:
        TypeError: not a whole number.
        ValueError: outside [-2^63, 2^63).
    """
    number = check_whole(name, seed)
    if not -(2**63) <= number < 2**63:
        raise ValueError(f"{name} must fit into 64 bits, got {number}")
    return number


def check_image_ids(image_ids: Sequence[int] | Tensor | None, images: Tensor) -> Tensor:
    """Convert image ids to (B,) int64 on the images' device; None numbers the images from 0.

    Args:
        image_ids: a sequence, an array or a tensor of B whole numbers.
        images: (B, ...), the images.

    Raises:
        TypeError: not integers.
        ValueError: not one per image, or outside [0, 2^32 - 2].
    """
    batch = len(images)
    if image_ids is None:
        return torch.arange(batch, dtype=torch.long, device=images.device)
    given: Any = image_ids
    if isinstance(given, (str, bytes)) or not (hasattr(given, "tolist") or isinstance(given, Sequence)):
        raise TypeError(f"image_ids must be integers, one per image, got {_shown(given)}")
    if hasattr(given, "tolist"):
        shape = tuple(given.shape)
        values = given.tolist() if shape else [given]
    else:
        values = list(given)
        shape = (len(values),)
    if shape != (batch,):
        raise ValueError(f"image_ids must have one entry per image, ({batch},), got shape {shape}")
    try:
        ids = [check_whole("image_ids", value) for value in values]
    except TypeError as error:
        kind = f"{given.dtype}" if hasattr(given, "dtype") else f"{list(values)!r:.80}"
        raise TypeError(f"image_ids must be integers, got {kind}") from error
    if ids and not 0 <= min(ids) <= max(ids) <= LARGEST_ID:
        raise ValueError(f"image_ids must lie in [0, 2^32 - 2], got {min(ids)} to {max(ids)}")
    return torch.tensor(ids, dtype=torch.long, device=images.device)


def check_images(images: object, bounds: tuple[float, float]) -> Tensor:
    """Check images (B, C, H, W), and convert them to contiguous float32.

    Raises:
        TypeError: not a tensor, or not floating-point.
        ValueError: not (B, C, H, W), a side below 8 or above 16384 pixels, more than 2^30 values per image, NaN or
            infinity, or values outside ``bounds``.
    """
    if not isinstance(images, Tensor):
        raise TypeError(f"inputs must be a torch.Tensor (B, C, H, W), got {type(images).__name__}")
    if not images.is_floating_point():
        raise TypeError(
            f"inputs must be floating-point with values in [{bounds[0]:g}, {bounds[1]:g}], got {images.dtype}"
            + (" (divide 8-bit images by 255)" if images.dtype == torch.uint8 else "")
        )
    if images.ndim != 4:
        raise ValueError(f"inputs must be (B, C, H, W), got shape {tuple(images.shape)}")
    if images.shape[1] == 0:
        raise ValueError(f"inputs must have at least one channel, got shape {tuple(images.shape)}")
    check_size(images.shape[1:])
    images = images.as_subclass(Tensor)  # no library's own kind of tensor, whose operators may do something else
    if len(images) == 0:
        return images.detach().float()
    flat = images.detach().flatten(1)
    lowest, highest = flat.amin(1), flat.amax(1)
    # Of NaN, which a NaN pixel makes of both, no comparison is true: one wait for a GPU tells whether all is well.
    inside = (lowest >= bounds[0]) & (highest <= bounds[1])
    if not bool(inside.all()):
        strange = ~(lowest.isfinite() & highest.isfinite())
        if bool(strange.any()):
            raise ValueError(f"inputs hold NaN or infinity in image(s) {_list(strange)}; expected finite values")
        raise ValueError(
            f"inputs must lie in [{bounds[0]:g}, {bounds[1]:g}], got values {_range(lowest, highest, bounds)} "
            f"(image(s) {_list(~inside)}); put normalisation into the model, other ranges into `bounds`"
        )
    checked = images.detach().float().contiguous()
    return checked.clone() if checked.is_inference() else checked


def check_size(shape: Sequence[int]) -> None:
    """Check the size (C, H, W) of an image.

    Raises:
        ValueError: a side below 8 or above 16384 pixels, or more than 2^30 values.
    """
    if min(shape[-2:]) < SMALLEST_SIDE:
        raise ValueError(f"images must be at least {SMALLEST_SIDE} pixels high and wide, got {shape[-2]} x {shape[-1]}")
    if max(shape[-2:]) > LARGEST_SIDE or math.prod(shape) > LARGEST_IMAGE:
        raise ValueError(
            f"images may have at most {LARGEST_SIDE} pixels a side and {LARGEST_IMAGE} values, got "
            f"{tuple(shape)}; explain a smaller version"
        )


def check_unit_images(images: object) -> None:
    """Check images for a metric: floating-point (B, C, H, W), finite, in [0, 1]."""
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a torch.Tensor (B, C, H, W), got {type(images).__name__}")
    if not images.is_floating_point():
        raise TypeError(f"images must be floating-point with values in [0, 1], got {images.dtype}")
    if images.ndim != 4 or 0 in images.shape[1:]:
        raise ValueError(f"images must be (B, C, H, W) with C, H and W at least 1, got shape {tuple(images.shape)}")
    check_finite(images, "images")
    check_range(images, (0.0, 1.0), "put normalisation into the model")


def check_range(images: Tensor, bounds: tuple[float, float], advice: str) -> None:
    """Refuse a batch with values outside the bounds, or NaN; the message ends with the advice."""
    if not images.numel():
        return
    lowest, highest = images.detach().aminmax()
    if not bool((lowest >= bounds[0]) & (highest <= bounds[1])):
        raise ValueError(
            f"images must lie in [{bounds[0]:g}, {bounds[1]:g}], got values {_range(lowest, highest, bounds)}; {advice}"
        )


def _range(lowest: Tensor, highest: Tensor, bounds: tuple[float, float]) -> str:
    """Show a range that leaves the bounds, with as many digits as that takes."""
    low, high = float(lowest.min()), float(highest.max())
    for digits in (6, 9, 17):
        shown = f"{low:.{digits}g}", f"{high:.{digits}g}"
        if not (float(shown[0]) >= bounds[0] and float(shown[1]) <= bounds[1]):
            break
    return f"from {shown[0]} to {shown[1]}"


def check_maps(maps: object, images: Tensor) -> None:
    """Check maps: floating-point, finite, of the images' shape or with one channel."""
    if not isinstance(maps, Tensor):
        raise TypeError(f"maps must be a torch.Tensor (B, C, H, W), got {type(maps).__name__}")
    if not maps.is_floating_point():
        raise TypeError(f"maps must be floating-point, got {maps.dtype}")
    batch, _, height, width = images.shape
    if maps.shape not in (images.shape, (batch, 1, height, width)):
        raise ValueError(
            f"maps must have the images' shape {tuple(images.shape)} or {(batch, 1, height, width)}, "
            f"got {tuple(maps.shape)}"
        )
    check_finite(maps, "maps")


def check_floating(name: str, values: object) -> Tensor:
    """Check a real floating-point tensor.

    Raises:
        TypeError: anything else.
    """
    if isinstance(values, Tensor) and values.is_floating_point():
        return values
    kind = values.dtype if isinstance(values, Tensor) else type(values).__name__
    raise TypeError(f"{name} must be a real floating-point tensor, got {kind}")


def check_batch(name: str, values: object) -> Tensor:
    """Check a real floating-point tensor (B, C, H, W) of any values, where only B may be 0.

    Raises:
        TypeError: not a real floating-point tensor.
        ValueError: another shape.
    """
    batch = check_floating(name, values)
    if batch.ndim != 4 or 0 in batch.shape[1:]:
        empty = " with C, H and W at least 1" if batch.ndim == 4 else ""
        raise ValueError(f"{name} must be (B, C, H, W){empty}, got shape {tuple(batch.shape)}")
    return batch


def check_finite(values: Tensor, what: str) -> None:
    """Refuse NaN and infinity; the message names the images."""
    bad = ~values.isfinite().flatten(1).all(1)
    if bool(bad.any()):
        where = bad.nonzero().flatten().tolist()
        shown = ", ".join(map(str, where[:5])) + (", ..." if len(where) > 5 else "")
        raise ValueError(f"{what} must be finite, got NaN or infinity in image(s) {shown}")


def check_targets(targets: int | Sequence[int] | Tensor, images: Tensor) -> Tensor:
    """Convert targets to (B,) int64 on the images' device; ``check_classes`` compares them with the model's classes."""
    batch = len(images)
    if isinstance(targets, np.ndarray) and targets.dtype.kind in "iu":
        targets = torch.from_numpy(targets.astype(np.int64))
    if not isinstance(targets, Tensor):
        single = not isinstance(targets, Sequence)
        numbers = targets if isinstance(targets, Sequence) else [targets]
        if isinstance(targets, str) or not all(_is_index(number) for number in numbers):
            raise TypeError(
                f"targets must be an int, or a sequence, array or tensor of ints, got {str(targets)[:80]!r}"
            )
        whole = [int(number) for number in numbers]
        for image, number in enumerate(whole):
            if not -(2**63) <= number < 2**63:
                raise ValueError(f"target {number} (image {image}) is out of range: expected the index of a class")
        values = torch.tensor(whole, dtype=torch.long, device="cpu")
    else:
        if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
            raise TypeError(f"targets must hold integers, got a tensor of {targets.dtype}")
        single = targets.ndim == 0
        values = targets.detach().long().reshape(1) if single else targets.detach().long()
    if single:
        values = values.expand(batch)
    if values.shape != (batch,):
        raise ValueError(f"targets must have one entry per image, ({batch},), got shape {tuple(values.shape)}")
    if bool((values < 0).any()):
        image = int((values < 0).nonzero()[0])
        raise ValueError(f"target {int(values[image])} (image {image}) is out of range: expected 0 or more")
    return values.to(images.device)


def check_classes(shape: tuple[int, ...], targets: Tensor) -> None:
    """Check that the output for an image has the shape (classes,), and that every target is one of them."""
    if len(shape) != 1:
        raise ValueError(f"the model's output must be (B, classes); for one image it is {(1, *shape)}")
    (classes,) = shape
    wrong = (targets < 0) | (targets >= classes)
    if bool(wrong.any()):
        image = int(wrong.nonzero()[0])
        raise ValueError(
            f"target {int(targets[image])} (image {image}) is out of range: the model has {classes} classes, "
            f"expected 0 to {classes - 1}"
        )


def _plain(value: object) -> object:
    """Convert a NumPy scalar, or an array or tensor without dimensions, to a Python value; return others unchanged."""
    item = getattr(value, "item", None)
    return item() if callable(item) and getattr(value, "shape", None) == () else value


def _real(value: object) -> float | None:
    """Convert a real number to a float, infinite if it is too large; None for anything else."""
    plain = _plain(value)
    number = plain if isinstance(plain, numbers.Real) and not isinstance(plain, bool) else _index(plain)
    try:
        return None if number is None else float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf  # type: ignore[operator]


def _index(plain: object) -> int | None:
    """Convert an object with ``__index__`` to an int; None for others, bools, and tensors with dimensions."""
    if isinstance(plain, bool) or getattr(plain, "shape", ()) != ():
        return None
    try:
        return operator.index(plain)  # type: ignore[arg-type]
    except TypeError:
        return None


def _pair(value: object) -> tuple[object, object] | None:
    """Return the two entries of a sequence, an array or a tensor; None if there are not two."""
    entries: Any = value
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return (entries[0], entries[1]) if len(entries) == 2 else None
    return (entries[0], entries[1]) if getattr(value, "shape", None) == (2,) else None


def _shown(value: object) -> str:
    return f"{value!r:.80} ({type(value).__name__})"


def _list(flags: Tensor, most: int = 5) -> str:
    where = flags.nonzero().flatten().tolist()
    return ", ".join(str(index) for index in where[:most]) + (", ..." if len(where) > most else "")


def _is_index(value: object) -> bool:
    if isinstance(value, Tensor):  # as in a list of entries of a tensor
        return value.ndim == 0 and not value.is_floating_point() and value.dtype != torch.bool
    if isinstance(value, (bool, np.bool_)):
        return False
    try:
        operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return False
    return True
