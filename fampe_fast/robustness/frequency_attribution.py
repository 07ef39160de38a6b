"""Attribute a prediction to the coefficients of the image's spectrum: how much each contributes, and where.

Wang, Yang, Shrivastava, Rawal and Ding, "Towards Frequency-Based Explanation for Robust CNN", arXiv 2005.03141, ask
which frequencies a prediction depends on; here they are found by integrated gradients (Sundararajan, Taly and Yan,
arXiv 1703.01365) with the coefficients as inputs. A straight line of coefficients is also one of pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ..checks import check_bounds, check_choice, check_count, check_flag
from ..engine.request import Request, prepared
from ..engine.targets import Target
from ..frequency.bands import RadialBands
from ..frequency.coefficients import product_per_frequency
from ..progress import progress
from ..runtime.model import Model, check_callable, frozen_parameters
from ..runtime.model_probe import call
from ..runtime.outputs import probabilities, scores
from .occluded_frequency import Score

Kind = Literal["integrated", "gradient"]


@dataclass(frozen=True, eq=False)
class FrequencyEvidence:
    """The evidence for B targets, by frequency, band and place; on the images' device.

    Attributes:
        difference: (B, C, H, W) float32, image minus baseline, whose spectrum gets the attribution.
        gradients: (B, C, H, W) float32, of the target's score at the image, or averaged over the path to it.
        score: (B,) float32, the image's score.
        baseline_score: (B,) float32, the baseline's score.
        target: (B,) int64, the scored class.
    """

    difference: Tensor
    gradients: Tensor
    score: Tensor
    baseline_score: Tensor
    target: Tensor

    def coefficients(self) -> Tensor:
        """Attribute to each coefficient of the half spectrum, (B, H, W//2+1) float64 on the CPU, in units of the score.

        ``m Re(conj(G) D) / (H W)``, summed over the channels, with G and D the spectra of gradients and difference:
        each value includes the conjugate coefficient. Sum it over rings and sectors with their ``sums``.
        """
        return product_per_frequency(self.gradients, self.difference)

    def places(self, bands: RadialBands) -> Tensor:
        """Compute the place of each band's evidence: the difference's component in the band, times the gradient.

        A band's places sum to its coefficients' values, and bands that cover all frequencies add up to the attribution
        in pixels, ``difference * gradients``.

        Args:
            bands: K rings, with DC in the first (otherwise the contribution of the mean is missing).

        Returns:
            (B, K, C, H, W) float32.

        Raises:
            ValueError: bands of another size or number of images, or a band without frequencies.
        """
        held = bands.coefficients()
        if bool((held == 0).any()):
            image, band = (held == 0).nonzero()[0].tolist()
            low, high = bands.edges[image, band : band + 2].tolist()
            raise ValueError(f"band {band}, radii from {low:g} to {high:g}, has no frequency, and so no evidence")
        parts = [bands.project(self.difference, band) * self.gradients for band in range(bands.count)]
        return torch.stack(parts, 1)

    def gap(self) -> Tensor:
        """Compute ``score - baseline_score`` minus the sum of the attributions, (B,) float64 on the CPU.

        For integrated gradients it is the error of the integral; for the gradient, the model's nonlinearity.
        """
        total = (self.gradients.cpu().double() * self.difference.cpu().double()).sum((1, 2, 3))
        return self.score.cpu().double() - self.baseline_score.cpu().double() - total


class FrequencyAttribution:
    """Attribute the target's score to every coefficient of the image's spectrum, with its sign and orientation.

    The baseline is the image's own mean colour, with all coefficients zero except DC, so that the values sum to
    ``score(image) - score(mean colour)``, up to the error of the integral (``FrequencyEvidence.gap``), which is zero
    for a linear model.

    Args:
        model: nn.Module or callable from pixels (B, C, H, W) to logits (B, classes), in evaluation mode; it needs
            gradients.
        kind: ``integrated``: integrated gradients from the baseline to the image; ``gradient``: gradient times
            coefficient at the image, in one pass.
        passes: number of points of the integral, each a forward and a backward pass, at least 1.
        score: score to attribute: ``probability``, the target's, or ``logit``, the target's (or the logarithm of its
            probability if the model returns probabilities).
        include_dc: attribute to DC as well; the baseline is then zero.
        bounds: smallest and largest pixel value.

    Raises:
        TypeError: a model that cannot be called, or a number of passes that is not whole.
        ValueError: an unknown kind or score, fewer than one pass, or bounds that do not ascend.

    Example:
        >>> evidence = FrequencyAttribution(load_classifier("resnet50"))(images, labels)
        >>> octave_bands(224, 224).sums(evidence.coefficients())
    """

    name = "frequency_attribution"

    def __init__(
        self,
        model: Model,
        kind: Kind = "integrated",
        passes: int = 32,
        score: Score = "logit",
        *,
        include_dc: bool = False,
        bounds: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        check_callable(model)
        self.forward_func = model
        self.kind: Kind = check_choice("kind", kind, get_args(Kind))
        self.passes = check_count("passes", passes) if self.kind == "integrated" else 1
        self.score: Score = check_choice("score", score, get_args(Score))
        self.include_dc = check_flag("include_dc", include_dc)
        self.bounds = check_bounds(bounds)

    def __call__(
        self,
        inputs: Tensor,
        target: Target = None,
        *,
        internal_batch_size: int | None = None,
        show_progress: bool = False,
    ) -> FrequencyEvidence:
        """Attribute a batch of images.

        Args:
            inputs: (B, C, H, W), floating-point, values in ``bounds``, at least 8 x 8 pixels.
            target: None for the model's own argmax; an int for all images; a list or a tensor (B,); for models with
                several output dimensions a tuple (class, position...).
            internal_batch_size: images per model pass. Default: 8 on a CPU, 64 on a GPU, or as many as fit.
            show_progress: show a progress bar on standard error.

        Returns:
            ``FrequencyEvidence``.

        Raises:
            TypeError: inputs, target or chunk size of a wrong type.
            torch.OutOfMemoryError: out of memory; the message says what to change.
            ValueError: wrong shape, NaN, values outside the bounds, a model in training mode, on another device or
                without gradients, a target out of range or of wrong length, or a target whose score is not finite
                (naming the image).
        """
        with (
            prepared(
                (self.forward_func,), inputs, target, bounds=self.bounds, internal_batch_size=internal_batch_size
            ) as request,
            frozen_parameters(self.forward_func),
        ):
            images, batch = request.images, len(request.images)
            mean = images.mean((2, 3), keepdim=True)
            difference = images - (torch.zeros_like(mean) if self.include_dc else mean)
            # Both ends are needed for the integral's error, and a target without a score is refused here.
            ends = self._ends(request, images, images - difference)
            places, shares = (part.to(images.device) for part in self._points())
            # In float64, so that the sum does not depend on its division into passes.
            total = torch.zeros_like(images, dtype=torch.float64)

            def gradients(part: slice) -> tuple[Tensor, Tensor]:
                rows = torch.arange(part.start, part.stop, device=images.device)
                image_index, step = rows // self.passes, rows % self.passes
                missing = (1 - places[step]).view(-1, 1, 1, 1)
                points = images[image_index] - missing * difference[image_index]
                with torch.enable_grad():
                    values = self._scores(request, points.requires_grad_(), image_index)
                    (found,) = torch.autograd.grad(values.sum(), points)
                return image_index, found.double() * shares[step].double().view(-1, 1, 1, 1)

            with progress(batch * self.passes, self.name, show_progress) as advance:
                for _, (image_index, found) in request.chunks.each(batch * self.passes, gradients):
                    total.index_add_(0, image_index, found)
                    advance(len(found))
            return FrequencyEvidence(difference, total.float(), ends[0], ends[1], request.targets.classes)

    def _points(self) -> tuple[Tensor, Tensor]:
        """Compute the points of the path from the baseline to the image, in [0, 1], and their weights, both (passes,).

        They are the midpoints of steps that grow from the baseline on, as a classifier's score changes most at low
        contrast. On photographs 32 such steps have a smaller gap than 64 equal ones.
        """
        if self.kind == "gradient":
            return torch.ones(1, device="cpu"), torch.ones(1, device="cpu")
        edges = (torch.arange(self.passes + 1, dtype=torch.float64, device="cpu") / self.passes) ** 2
        return ((edges[1:] + edges[:-1]) / 2).float(), edges.diff().float()

    def _ends(self, request: Request, images: Tensor, baseline: Tensor) -> Tensor:
        """Compute the scores of images and baselines, (2, B).

        Raises:
            ValueError: a score that is NaN or infinite.
        """
        batch, both = len(images), torch.cat([images, baseline])
        found = images.new_zeros(2 * batch)

        def score(part: slice) -> Tensor:
            place = torch.arange(part.start, part.stop, device=images.device) % batch
            return self._scores(request, both[part], place)

        for part, values in request.chunks.each(2 * batch, score):
            found[part] = values
        strange = (~found.isfinite()).nonzero().flatten().tolist()
        if strange:
            of = "" if strange[0] < batch else "the baseline of "
            raise ValueError(
                f"target {request.targets.of(strange[0] % batch)} has no score: the model's output is NaN or infinite "
                f"for {of}image {strange[0] % batch}"
            )
        return found.view(2, batch)

    def _scores(self, request: Request, pixels: Tensor, image_index: Tensor) -> Tensor:
        """Compute the score of each row's target, (P,) float32."""
        output = request.targets.logits(call(self.forward_func, pixels, request.probed[0]), image_index)
        values = (probabilities if self.score == "probability" else scores)(output, request.reading)
        return values.gather(1, request.targets.classes[image_index][:, None])[:, 0].float()
