"""Define FAMPE, the Frequency-Aware Model Parameter Explorer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..engine.config import FAMPEConfig
from ..runtime.model import Model
from .base import PathMethod

if TYPE_CHECKING:
    from .calibration import DepthCalibration


class FAMPE(PathMethod[FAMPEConfig]):
    """Attribution by every depth of the model, and by exploring the model with frequency-aware perturbations.

    Depths: one pass of the image gives the evidence at each of the model's resolutions, activation times gradient; fine
    layers locate details, and the last layer selects those of the class (``engine.depth``). A second pass adds the
    mirror image's evidence, which is wrong for a model that distinguishes left from right (digits, text, laterality).

    Path, with more passes: the low and the high band of the image's spectrum are split by a Gaussian whose radius
    contains the share tau of the spectral energy. Each sample is the image with white noise, its coefficients
    multiplied by random numbers around 1 that vary with the weights alpha and 1 - alpha of their bands. The averaged,
    smoothed and normalised loss gradients drive T sign steps, and the attribution accumulates step times gradient. It
    is the pixels' evidence beside the depths or, with ``views=0``, the map itself, combined with its low-pass
    (``frequency.two_scale_map``).

    After Yavari et al., "Frequency-Aware Model Parameter Explorer", arXiv 2510.03245, on AttEXplore (Zhu et al., ICLR
    2024). Only FAMPE's N = 20, alpha = 0.1 and tau = 0.9 are public; ``FAMPEConfig.published()`` has these numbers in
    one reading of the text, and AttEXplore's path for the rest: some samples are resized, and the map is the
    attribution. The depths are this package's addition, and measured (``docs/results/maps.md``).

    Args:
        model: nn.Module or callable from pixels (B, C, H, W) to logits (B, classes), in evaluation mode; normalisation
            inside. ``load_classifier`` gives one.
        config: a ``FAMPEConfig``.
        explorer: another model of the same classes whose gradients decide the steps, while the map collects this
            model's gradients on the samples met there; doubles the number of passes.
        passes: number of forward and backward passes per image, such as 1, 10 or 200, split into views, steps and
            samples (``FAMPEConfig.budget``) unless these are given.
        calibration: weights of the depths that were calibrated for this model, a ``DepthCalibration`` or a file of
            them. They replace those of ``config``, unless single fields are given. Warns (``FampeWarning``) if they
            were found with another number of passes.
        **overrides: values of single fields of the configuration, as in ``FAMPE(model, alpha=0.3, samples=10)``.

    Raises:
        TypeError: an unknown field, or a value of a wrong type.
        ValueError: a value out of range, weights of depths or a calibration with ``views=0``, or a calibration of
            another model or of other layers; from ``attribute`` also a model without spatial activations, which needs
            ``layers`` or ``views=0``.

    Example:
        >>> maps = FAMPE(load_classifier("resnet50")).attribute(images, target=labels)
    """

    _config_type = FAMPEConfig

    def __init__(
        self,
        model: Model,
        config: FAMPEConfig | None = None,
        *,
        explorer: Model | None = None,
        passes: int | None = None,
        calibration: Path | str | DepthCalibration | None = None,
        **overrides: Any,
    ) -> None:
        budget = {} if passes is None else FAMPEConfig.budget(passes)
        super().__init__(model, config, explorer=explorer, **budget | overrides)
        if calibration is not None:
            self.config.check_depths("calibration")
            from .calibration import fitting_calibration  # here, as it imports all model readers

            found = fitting_calibration(calibration, model, self.config.layer_names, self.passes).options
            self.config = replace(self.config, **{name: found[name] for name in found.keys() - overrides.keys()})

    @classmethod
    def published(cls, model: Model, *, explorer: Model | None = None, **overrides: Any) -> FAMPE:
        """Make FAMPE as in its public texts: with ``FAMPEConfig.published`` and these fields.

        Arguments and errors are those of the constructor.
        """
        return cls(model, FAMPEConfig.published(**overrides), explorer=explorer)
