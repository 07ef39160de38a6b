"""Store the weights of depths that were found for models, by the models' fingerprints."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import warn
from ..files import MARK, Output, check_outputs, json_content, read_text, write_atomically
from ..metrics.summary import Estimate
from ..models.identity import identity_of
from ..runtime.model import Model

CALIBRATIONS = "calibrations"
"""The kind of the JSON files."""


@dataclass(frozen=True)
class DepthCalibration:
    """The result of ``calibrate_depths``.

    Attributes:
        model: name of the model.
        fingerprint: fingerprint of the model (``models.identity``).
        layers: names of the layers, from fine to coarse.
        pixel_weight: weight of the pixels' evidence.
        layer_weights: weight of each layer.
        gate_floor: floor of the gate.
        score: mean faithfulness (insertion minus deletion) with its standard error on the images that it was fitted on.
        default_score: the same for the weights that the search started from.
        held_out: paired gain over ``default_score`` on unseen images: each half of the images with the weights that fit
            the other half. None if it was not measured.
        protocol: protocol of insertion and deletion.
        images: number of images it was fitted on.
        evaluations: number of combinations of weights that were scored, some on only one half of the images.
        passes: forward and backward passes of the method per image.
    """

    model: str
    fingerprint: str
    layers: tuple[str, ...]
    pixel_weight: float
    layer_weights: tuple[float, ...]
    gate_floor: float
    score: Estimate
    default_score: Estimate
    held_out: Estimate | None
    protocol: str
    images: int
    evaluations: int
    passes: int

    def __post_init__(self) -> None:
        if len(self.layers) != len(self.layer_weights):
            raise ValueError(
                f"layer_weights must be one number for each of the layers {', '.join(self.layers)}; got "
                f"{len(self.layer_weights)}"
            )

    @property
    def options(self) -> dict[str, Any]:
        """Options for a path method: ``FAMPE(model, **calibration.options)``."""
        return {
            "layers": self.layers,
            "pixel_weight": self.pixel_weight,
            "layer_weights": self.layer_weights,
            "gate_floor": self.gate_floor,
        }

    def save(self, path: str | Path) -> None:
        """Add the calibration to a JSON file, atomically, replacing an earlier one of the same model.

        Raises:
            ValueError: there is a file of another kind, or one that this package did not write.
            OSError: the file cannot be written.
        """
        path = Path(path)
        check_outputs([Output(path, CALIBRATIONS)], [])
        known = read_calibrations(path) if path.exists() else {}
        known[self.fingerprint] = self
        content = {fingerprint: asdict(found) for fingerprint, found in known.items()}
        write_atomically(path, (json_content(CALIBRATIONS, content) + "\n").encode())

    @classmethod
    def load(cls, path: str | Path, model: Model) -> DepthCalibration:
        """Read the calibration of a model from a file, by the model's fingerprint, whatever its name.

        Raises:
            ValueError: there is no such file, it is not one of ``save``, or it is of other models only; the message
                lists them.
        """
        known = read_calibrations(Path(path))
        own = identity_of(model)
        if own["fingerprint"] not in known:
            listed = ", ".join(f"{found.model} ({found.fingerprint})" for found in known.values())
            raise ValueError(
                f"no calibration for {own['model']} ({own['fingerprint']}) in {path}; it has {listed or 'none'}"
            )
        return known[str(own["fingerprint"])]


def read_calibrations(path: Path) -> dict[str, DepthCalibration]:
    """Read all calibrations in a file, by their models' fingerprints.

    Raises:
        ValueError: there is no such file, or it is not one of ``DepthCalibration.save``.
    """
    text = read_text(path, "calibrations")
    try:
        found = json.loads(text)
        if not isinstance(found, dict) or found.pop(MARK, None) != CALIBRATIONS:
            raise TypeError("it does not have the kind of one")
        return {fingerprint: _read(entry) for fingerprint, entry in found.items()}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a file of calibrations: {error}") from error


def fitting_calibration(
    calibration: str | Path | DepthCalibration, model: Model, layers: Sequence[str] = (), passes: int | None = None
) -> DepthCalibration:
    """Return the calibration of a model.

    Warns (``FampeWarning``) if it was found with another number of passes.

    Args:
        calibration: a calibration, or a file that contains it.
        model: the model that is explained.
        layers: names of the layers that the caller chose; empty to use the calibration's.
        passes: number of passes of the method that will use it; None if unknown.

    Raises:
        TypeError: ``calibration`` is of another type.
        ValueError: as ``DepthCalibration.load``; or the calibration is another model's, or of other layers.
    """
    if not isinstance(calibration, str | Path | DepthCalibration):
        raise TypeError(f"calibration must be a file or a DepthCalibration, got {type(calibration).__name__}")
    if isinstance(calibration, DepthCalibration):
        found, own = calibration, identity_of(model)
        if found.fingerprint != own["fingerprint"]:
            raise ValueError(
                f"the calibration is of {found.model} ({found.fingerprint}), but the model is {own['model']} "
                f"({own['fingerprint']})"
            )
    else:
        found = DepthCalibration.load(calibration, model)
    if layers and set(layers) != set(found.layers):
        raise ValueError(
            f"the calibration is of the layers {', '.join(found.layers)}, but the chosen layers are {', '.join(layers)}"
        )
    if passes not in (None, found.passes):
        warn(
            f"the calibration was found with {found.passes} pass(es) per image but is used with {passes}: a path's "
            "pixels need another weight than a plain gradient's, so calibrate with the same number of passes"
        )
    return found


def _read(entry: dict[str, Any]) -> DepthCalibration:
    estimates = {
        name: None if entry[name] is None else Estimate(**entry[name])
        for name in ("score", "default_score", "held_out")
    }
    layers = {name: tuple(entry[name]) for name in ("layers", "layer_weights")}
    return DepthCalibration(**{**entry, **estimates, **layers})
