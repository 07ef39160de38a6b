"""Make methods by name, for the command line and for studies."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from ..catalog import FILTERS, PLAIN_METHODS, load, method_options, parts_of
from ..checks import check_cutoff
from ..frequency.low_pass import DEFAULT_CUTOFF
from ..runtime.model import Model
from .base import AttributionMethod
from .forgrad import FORGrad


def options_of(name: str) -> frozenset[str]:
    """List the options that a method takes.

    Raises:
        ValueError: an unknown name.
    """
    own = {option.name for option in method_options(name)}
    return frozenset(own | {"explorer"} if PLAIN_METHODS[parts_of(name)[1]].explorer else own)


def check_options(name: str, **options: Any) -> None:
    """Refuse invalid options of a method, as far as that is possible without a model.

    Raises:
        ValueError: an unknown name, or a value out of range.
        TypeError: an option the method does not have, or a value of a wrong type.
    """
    known = options_of(name)
    unknown = sorted(set(options) - known)
    if unknown:
        raise TypeError(f"method {name!r} has no option(s) {', '.join(unknown)}; known: {', '.join(sorted(known))}")
    if "map_cutoff" in options:
        check_cutoff("map_cutoff", options["map_cutoff"])
    if isinstance(options.get("calibration"), str | Path):
        from .calibration import read_calibrations  # imported here, as it imports all model readers

        read_calibrations(Path(options["calibration"]))
    row = PLAIN_METHODS[parts_of(name)[1]]
    configuration = load(row.options)
    if dataclasses.is_dataclass(configuration):
        own = {key: value for key, value in options.items() if key not in ("map_cutoff", "explorer", *row.own)}
        split = {key: own.pop(key) for key in row.split if own.get(key) is not None}
        kind: Any = configuration
        config = kind(**({**kind.budget(**split), **own} if split else own))
        if options.get("calibration") is not None:
            config.check_depths("calibration")


def create_method(name: str, model: Model, **options: Any) -> AttributionMethod:
    """Make a method by name.

    Args:
        name: one of ``METHODS``.
        model: classifier in pixel space, in evaluation mode.
        **options: options of the method (``catalog.method_options``): fields of its configuration, such as
            ``FAMPEConfig``, or arguments of its class, such as ``CaptumMethod``; ``explorer``; with ``forgrad_`` and
            ``forgrad_signed_`` also ``map_cutoff``, the radius of the filter.

    Raises:
        ValueError: an unknown name, or a value out of range.
        TypeError: an option the method does not have.
        ImportError: a method of Captum's or pytorch-grad-cam's, which is not installed.
    """
    check_options(name, **options)
    prefix, plain = parts_of(name)
    if prefix:
        cutoff = options.pop("map_cutoff", DEFAULT_CUTOFF)
        if "absolute" in options_of(name):
            options.setdefault("absolute", False)  # both filters take the mean over channels with its signs
        return FORGrad(create_method(plain, model, **options), cutoff, **FILTERS[prefix])  # type: ignore[arg-type]
    row = PLAIN_METHODS[name]
    method: AttributionMethod = load(row.home)(model, **row.given, **options)
    return method
