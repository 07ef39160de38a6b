"""Methods by name, for the command line and for studies."""

from __future__ import annotations

import dataclasses
from typing import Any

from ..checks import check_cutoff
from ..engine.config import AttEXploreConfig, FAMPEConfig
from ..frequency.low_pass import DEFAULT_CUTOFF
from ..runtime.model import Model
from .attexplore import AttEXplore
from .base import AttributionMethod
from .captum_methods import PEER_OPTIONS, CaptumMethod
from .fampe import FAMPE
from .forgrad import FORGrad

_PLAIN = ("fampe", "fampe_published", "attexplore", *PEER_OPTIONS)
_FILTERED, _FILTERED_SIGNED = "forgrad_", "forgrad_signed_"
METHODS = (*_PLAIN, *(prefix + name for prefix in (_FILTERED, _FILTERED_SIGNED) for name in _PLAIN))
"""Every name that ``create_method`` knows: ``fampe_published`` is ``FAMPEConfig.published()``; ``forgrad_`` before a
name filters that method's maps as FORGrad's authors do, ``forgrad_signed_`` filters their signed mean over channels."""

_FAMPE = frozenset({"explorer", *(field.name for field in dataclasses.fields(FAMPEConfig))})
_OPTIONS: dict[str, frozenset[str]] = {
    "fampe": _FAMPE,
    "fampe_published": _FAMPE,
    "attexplore": frozenset({"explorer", *(field.name for field in dataclasses.fields(AttEXploreConfig))}),
    **PEER_OPTIONS,
}


def options_of(name: str) -> frozenset[str]:
    """The options a method takes.

    Raises:
        ValueError: an unknown name.
    """
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}; known are {', '.join(METHODS)}")
    plain, filtered, _ = _parts(name)
    return _OPTIONS[plain] | ({"map_cutoff"} if filtered else set())


def _parts(name: str) -> tuple[str, bool, bool]:
    """The plain method of a name, whether its maps are filtered, and whether with their signs."""
    for prefix in (_FILTERED_SIGNED, _FILTERED):
        if name.startswith(prefix):
            return name.removeprefix(prefix), True, prefix == _FILTERED_SIGNED
    return name, False, False


def create_method(name: str, model: Model, **options: Any) -> AttributionMethod:
    """A method by name.

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
    unknown = sorted(set(options) - options_of(name))
    if unknown:
        raise TypeError(
            f"method {name!r} has no option(s) {', '.join(unknown)}; known: {', '.join(sorted(options_of(name)))}"
        )
    plain, filtered, signed = _parts(name)
    if filtered:
        cutoff = check_cutoff("map_cutoff", options.pop("map_cutoff", DEFAULT_CUTOFF))
        if "absolute" in options_of(plain):
            options.setdefault("absolute", False)  # both filters take the mean over channels with its signs
        return FORGrad(create_method(plain, model, **options), cutoff, signed=signed)
    if name == "fampe":
        return FAMPE(model, **options)
    if name == "fampe_published":
        explorer = options.pop("explorer", None)
        return FAMPE(model, FAMPEConfig.published(**options), explorer=explorer)
    if name == "attexplore":
        return AttEXplore(model, **options)
    return CaptumMethod(model, name, **options)  # type: ignore[arg-type]
