"""Methods by name, for the command line and for studies."""

from __future__ import annotations

import dataclasses
from typing import Any, get_args

from ..engine.config import AttEXploreConfig, FAMPEConfig
from ..model_care import Model
from .attexplore import AttEXplore
from .base import AttributionMethod
from .fampe import FAMPE
from .peers import CaptumMethod, PeerName

METHODS = ("fampe", "attexplore", *get_args(PeerName))
"""Every name that ``create_method`` knows."""

_OPTIONS = {
    "fampe": frozenset(field.name for field in dataclasses.fields(FAMPEConfig)),
    "attexplore": frozenset(field.name for field in dataclasses.fields(AttEXploreConfig)),
}
_PEER_OPTIONS = frozenset({"passes", "noise", "seed", "bounds"})


def options_of(name: str) -> frozenset[str]:
    """The options a method takes.

    Raises:
        ValueError: an unknown name.
    """
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}; known are {', '.join(METHODS)}")
    return _OPTIONS.get(name, _PEER_OPTIONS)


def create_method(name: str, model: Model, **options: Any) -> AttributionMethod:
    """A method by name.

    Args:
        name: one of ``METHODS``.
        model: classifier in pixel space, in evaluation mode.
        **options: of the method: fields of ``FAMPEConfig`` or ``AttEXploreConfig``, arguments of ``CaptumMethod``.

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
    if name == "fampe":
        return FAMPE(model, **options)
    if name == "attexplore":
        return AttEXplore(model, **options)
    return CaptumMethod(model, name, **options)  # type: ignore[arg-type]
