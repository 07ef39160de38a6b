"""FAMPE: the Frequency-Aware Model Parameter Explorer."""

from __future__ import annotations

from typing import Any

from ..engine.config import FAMPEConfig
from ..runtime.model import Model
from .base import PathMethod


class FAMPE(PathMethod[FAMPEConfig]):
    """Attribution by exploring the model around an image with frequency-aware perturbations.

    The low and the high band of the image's spectrum are told apart by a Gaussian whose radius holds the share tau of
    the spectral energy. Each sample is the whole image with white noise, its coefficients multiplied by random numbers
    around 1 that vary with the weights alpha and 1 - alpha of their bands. The averaged, smoothed and normalised loss
    gradients drive T sign steps, the attribution collects step times gradient, and the map joins its peaks with the
    area they lie in (``frequency.two_scale_map``).

    After Yavari et al., "Frequency-Aware Model Parameter Explorer", arXiv 2510.03245, on AttEXplore (Zhu et al., ICLR
    2024). Of FAMPE only N = 20, alpha = 0.1 and tau = 0.9 are known in public; ``FAMPEConfig.published()`` is those
    numbers in a reading of the text, and AttEXplore's path for the rest: some samples are resized, and the map is the
    attribution.

    Args:
        model: nn.Module or callable from pixels (B, C, H, W) to logits (B, classes), in evaluation mode; normalisation
            inside. ``load_classifier`` gives one.
        config: a ``FAMPEConfig``.
        explorer: another model of the same classes whose gradients decide the steps, while the map collects this
            model's gradients on the samples met there; costs as many passes again.
        **overrides: single fields of the configuration, as ``FAMPE(model, alpha=0.3, samples=10)``.

    Raises:
        TypeError: an unknown field, or a value of a wrong type.
        ValueError: a value out of range.

    Example:
        >>> maps = FAMPE(load_classifier("resnet50")).attribute(images, target=labels)
    """

    _config_type = FAMPEConfig

    @classmethod
    def published(cls, model: Model, *, explorer: Model | None = None, **overrides: Any) -> FAMPE:
        """Make FAMPE as its public texts have it: ``FAMPEConfig.published`` with these fields in its place.

        Args and errors are the constructor's.
        """
        return cls(model, FAMPEConfig.published(**overrides), explorer=explorer)
