"""Measure which frequency bands a prediction depends on: Occluded Frequency.

Wang, Yang, Shrivastava, Rawal and Ding, "Towards Frequency-Based Explanation for Robust CNN", arXiv 2005.03141.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ..checks import check_bounds, check_choice, check_count, check_flag
from ..engine.request import prepared
from ..engine.targets import Target
from ..frequency.bands import RadialBands, Spacing, check_spacing, equal_energy_bands, equal_width_bands
from ..progress import progress
from ..runtime.model import Model, check_callable
from ..runtime.model_probe import call
from ..runtime.outputs import Reading, probabilities, scores

Score = Literal["probability", "logit"]


@dataclass(frozen=True, eq=False)
class FrequencyOcclusion:
    """The drops of B images' scores without each of K bands; on the images' device, float64 on the CPU.

    Attributes:
        drops: (B, K) float32, score of the image minus score of the image without the band; positive if the band
            supports the target.
        edges: (B, K + 1) float64, the bands' radii in cycles over the shorter side; band k is (edges[k], edges[k+1]].
        base: (B,) float32, score of the image.
        energy: (B, K) float64, each band's share of the energy in all bands (0 for a constant image).
        target: (B,) int64, the scored class.
        score: ``probability`` or ``logit``.
        spacing: ``width`` or ``energy``.
        model_passes: forward passes per image, K + 1.
    """

    drops: Tensor
    edges: Tensor
    base: Tensor
    energy: Tensor
    target: Tensor
    score: Score
    spacing: Spacing
    model_passes: int


class OccludedFrequency:
    """Measure the drop in the target's score when one radial band of frequencies is removed, band by band.

    ``drop_k = s(x) - s(x - P_k x)``, P_k the orthogonal projection onto the frequencies of band k. The remaining image
    may leave the range of pixels because of ringing; by default it is not clipped, as clipping would change all other
    bands as well.

    Args:
        model: nn.Module or callable from pixels (B, C, H, W) to logits (B, classes), in evaluation mode.
        bands: K, the number of bands.
        spacing: ``width``: rings of equal width from DC to the corner of the spectrum, the same for all images of a
            size; ``energy``: rings with equal shares of each image's energy.
        score: score whose drop is measured, the target's ``probability`` or ``logit`` (the logarithm of its probability
            if the model returns probabilities).
        include_dc: include DC, the mean of the image, in the first band; otherwise no band has it.
        clamp: clip the remaining image to ``bounds``, for models that accept nothing else.
        bounds: smallest and largest pixel value.

    Raises:
        TypeError: a model that cannot be called, or a number of bands that is not whole.
        ValueError: an unknown spacing or score, fewer than one band, or bounds that do not ascend.

    Example:
        >>> OccludedFrequency(load_classifier("resnet50"), bands=16)(images, labels).drops.mean(0)
    """

    name = "occluded_frequency"

    def __init__(
        self,
        model: Model,
        bands: int = 16,
        spacing: Spacing = "width",
        score: Score = "probability",
        *,
        include_dc: bool = False,
        clamp: bool = False,
        bounds: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        check_callable(model)
        self.forward_func = model
        self.bands = check_count("bands", bands)
        self.spacing = check_spacing(spacing)
        self.score: Score = check_choice("score", score, get_args(Score))
        self.include_dc = check_flag("include_dc", include_dc)
        self.clamp = check_flag("clamp", clamp)
        self.bounds = check_bounds(bounds)

    def bands_of(self, images: Tensor) -> RadialBands:
        """Compute the bands that are removed from images (B, C, H, W); errors are those of ``frequency.bands``."""
        if self.spacing == "energy":
            return equal_energy_bands(images, self.bands, include_dc=self.include_dc)
        height, width = images.shape[-2:]
        return equal_width_bands(height, width, self.bands, include_dc=self.include_dc, device=images.device)

    def __call__(
        self,
        inputs: Tensor,
        target: Target = None,
        *,
        internal_batch_size: int | None = None,
        show_progress: bool = False,
    ) -> FrequencyOcclusion:
        """Measure a batch of images.

        Args:
            inputs: (B, C, H, W), floating-point, values in ``bounds``, at least 8 x 8 pixels.
            target: None for the model's own argmax; an int for all images; a list or a tensor (B,); for models with
                several output dimensions a tuple (class, position...).
            internal_batch_size: images per model pass. Default: 8 on a CPU, 64 on a GPU; after an out-of-memory error
                halved once, with a warning, and remembered for the model.
            show_progress: show a progress bar on standard error.

        Returns:
            ``FrequencyOcclusion``.

        Raises:
            TypeError: inputs, target or chunk size of a wrong type.
            torch.OutOfMemoryError: out of memory; the message says what to change.
            ValueError: wrong shape, NaN, values outside the bounds, a model in training mode or on another device, a
                target out of range or of wrong length, too many bands for the size, or a model output that is not
                (B, classes) or not finite (naming the image).
        """
        with prepared(
            (self.forward_func,),
            inputs,
            target,
            bounds=self.bounds,
            internal_batch_size=internal_batch_size,
            gradients=False,
        ) as request:
            images, targets, (probed,) = request.images, request.targets, request.probed
            bands = self.bands_of(images)
            batch, count = len(images), self.bands
            every = torch.arange(batch, device=images.device)
            base, drops = images.new_zeros(batch), images.new_zeros(batch * count)

            def score(output: Tensor, image_index: Tensor) -> Tensor:
                found = targets.logits(output, image_index)
                return self._scores(found, targets.classes[image_index], image_index, probed.reading)

            def whole(part: slice) -> Tensor:
                if request.output is not None:
                    return score(request.output[part], every[part])
                return score(call(self.forward_func, images[part], probed), every[part])

            def without_bands(part: slice) -> tuple[Tensor, Tensor]:
                rows = torch.arange(part.start, part.stop, device=images.device)
                image_index, band = rows // count, rows % count
                chosen = images[image_index]
                rest = chosen - bands.of(image_index).project(chosen, band)
                if self.clamp:
                    rest = rest.clamp(*self.bounds)
                return rows, score(call(self.forward_func, rest, probed), image_index)

            chunks = request.chunks
            with progress(batch * (count + 1), "bands removed", show_progress) as advance:
                for part, found in chunks.each(batch, whole):
                    base[part] = found
                    advance(len(found))
                for _, (rows, found) in chunks.each(batch * count, without_bands):
                    drops[rows] = base[rows // count] - found
                    advance(len(rows))
        energy = bands.energy(images)
        total = energy.sum(1, keepdim=True)
        flat = (images.amax((-2, -1)) == images.amin((-2, -1))).all(1).cpu() & (not self.include_dc)
        share = torch.where(flat[:, None] | (total == 0), torch.zeros_like(energy), energy / total.clamp(min=1e-300))
        edges = bands.edges.expand(batch, -1).clone()
        return FrequencyOcclusion(
            drops.view(batch, count),
            edges,
            base,
            share,
            targets.classes,
            self.score,
            self.spacing,
            count + 1,
        )

    def _scores(self, output: Tensor, classes: Tensor, image_index: Tensor, reading: Reading) -> Tensor:
        values = probabilities(output, reading) if self.score == "probability" else scores(output, reading)
        chosen = values.gather(1, classes[:, None])[:, 0]
        strange = ~chosen.isfinite()
        if bool(strange.any()):
            raise ValueError(f"the model's output is NaN or infinite for image {int(image_index[strange][0])}")
        return chosen.float()
