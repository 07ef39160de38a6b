"""Describe a plan's model in plain values, so that every process and machine loads the same one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ..models import load_classifier
from ..models.checkpoints import check_trusted
from ..models.classifier import Classifier


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """The arguments of ``load_classifier``, in values for JSON.

    Attributes:
        source: name, absolute path of a file or folder, or "hf-hub:OWNER/NAME".
        weights: absolute path of a local checkpoint.
        model_args: keyword arguments of the model's constructor.
        mean, std, input_size, interpolation, fold_batch_norm, output: as for ``load_classifier``.
        class_names: one per class.
    """

    source: str
    weights: str | None = None
    model_args: Mapping[str, Any] = field(default_factory=dict)
    mean: tuple[float, ...] | float | None = None
    std: tuple[float, ...] | float | None = None
    input_size: tuple[int, int] | int | None = None
    interpolation: str | None = None
    fold_batch_norm: bool | None = None
    output: str | None = None
    class_names: tuple[str, ...] | None = None

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> ModelSpec:
        """Read the values of ``dataclasses.asdict`` from JSON, with lists as tuples."""
        known = {entry.name for entry in fields(cls)}
        arguments: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in known}
        return cls(**arguments)

    def load(self, device: str | None = None, *, trust_model: bool = False) -> Classifier:
        """Load the classifier.

        Args:
            device: device of the classifier.
            trust_model: load the model even if it is a program.

        Raises:
            ValueError: a program that is not trusted, or arguments that ``load_classifier`` refuses.
        """
        check_trusted(self.source, trust_model)
        arguments = {**asdict(self), "model_args": dict(self.model_args)}
        return load_classifier(arguments.pop("source"), device=device, **arguments)
