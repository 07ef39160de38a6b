"""Make methods by name, for the command line and for studies."""

from __future__ import annotations

from typing import Any

from ..catalog import FILTERS, METHODS, PLAIN_METHODS, load
from ..checks import check_cutoff
from ..frequency.low_pass import DEFAULT_CUTOFF
from ..options import read_options
from ..runtime.model import Model
from .base import AttributionMethod
from .forgrad import FORGrad


def options_of(name: str) -> frozenset[str]:
    """List the options that a method takes.

    Raises:
        ValueError: an unknown name.
    """
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}; known are {', '.join(METHODS)}")
    prefix, plain = _parts(name)
    row = PLAIN_METHODS[plain]
    own = {option.name for option in read_options(row.options, row.only)}
    return frozenset(own | ({"explorer"} if row.explorer else set()) | ({"map_cutoff"} if prefix else set()))


def _parts(name: str) -> tuple[str, str]:
    """Split a name into the filter's prefix, which may be empty, and the plain method."""
    prefix = max((prefix for prefix in FILTERS if name.startswith(prefix)), key=len, default="")
    return prefix, name.removeprefix(prefix)


def create_method(name: str, model: Model, **options: Any) -> AttributionMethod:
    """Make a method by name.

    Args:
        name: one of ``METHODS``.
        model: classifier in pixel space, in evaluation mode.
        **options: of the method: fields of ``FAMPEConfig`` or ``AttEXploreConfig`` and ``explorer``; arguments of
            ``CaptumMethod``; with ``forgrad_`` and ``forgrad_signed_`` also ``map_cutoff``, the radius of the filter.

    Raises:
        ValueError: an unknown name, or a value out of range.
        TypeError: an option the method does not have.
        ImportError: a method of Captum's, which is not installed.
    """
    known = options_of(name)
    unknown = sorted(set(options) - known)
    if unknown:
        raise TypeError(f"method {name!r} has no option(s) {', '.join(unknown)}; known: {', '.join(sorted(known))}")
    prefix, plain = _parts(name)
    if prefix:
        cutoff = check_cutoff("map_cutoff", options.pop("map_cutoff", DEFAULT_CUTOFF))
        if "absolute" in known:
            options.setdefault("absolute", False)  # both filters take the mean over channels with its signs
        return FORGrad(create_method(plain, model, **options), cutoff, **FILTERS[prefix])  # type: ignore[arg-type]
    row = PLAIN_METHODS[name]
    method: AttributionMethod = load(row.home)(model, **row.given, **options)
    return method
