"""Define AttEXplore, the baseline: the same path with its own spectrum simulation."""

from __future__ import annotations

from ..engine.config import AttEXploreConfig
from .base import PathMethod


class AttEXplore(PathMethod[AttEXploreConfig]):
    """Attribution for Explanation with model parameter eXploration (Zhu et al., ICLR 2024, algorithm 1).

    Samples are the image plus white noise, its DCT multiplied by U(1-rho, 1+rho) per coefficient; gradients are
    averaged, smoothed, normalised and accumulated as in its public code, whose softmax-twice loss is
    ``loss="softmax_twice"``. That code's last N passes and its parameter gradients are left out: the map does not use
    them.

    Args:
        model: nn.Module or callable from pixels (B, C, H, W) to logits (B, classes), in evaluation mode.
        config: an ``AttEXploreConfig``.
        explorer: another model of the same classes whose gradients decide the steps, while the map collects this
            model's gradients on the samples met there; doubles the number of passes.
        **overrides: values of single fields of the configuration.

    Raises:
        TypeError: an unknown field, or a value of a wrong type.
        ValueError: a value out of range.
    """

    _config_type = AttEXploreConfig
