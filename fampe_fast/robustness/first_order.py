"""Test how much of a score's change is explained by a low-passed gradient.

After Muzellec, Fel, Boutin, Andéol, VanRullen and Serre, "Saliency strikes back: how filtering out high frequencies
improves white-box explanations", ICML 2024, arXiv 2307.09591, figure 4A: if the high frequencies of a gradient are
noise, the first-order prediction of the score is as good without them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ..checks import check_bounds, check_choice, check_count, check_positive, check_seed
from ..engine.request import Request, prepared
from ..engine.targets import Target
from ..frequency.bands import bands_between
from ..metrics.random_words import Stream, random_words
from ..progress import progress
from ..reference.philox import to_uniform
from ..runtime.model import Model, check_callable, frozen_parameters
from ..runtime.model_probe import call
from ..runtime.outputs import probabilities, scores
from .occluded_frequency import Score

Perturbation = Literal["white", "image"]

PERTURBATIONS: tuple[Perturbation, ...] = get_args(Perturbation)


@dataclass(frozen=True, eq=False)
class FirstOrderFit:
    """The share of the score's changes that low-passed gradients explain, for B images and R radii; on the CPU.

    Attributes:
        radii: (R,) float64, cycles over the shorter side, ascending; the last is the spectrum's corner: the whole
            gradient.
        explained: (B, R) float64, zeta: 1 for all of the change, 0 for none, below 0 for a prediction that is worse
            than none.
        gradient_share: (B, R) float64, the share of the gradient's energy within each radius; 0 for no gradient.
        target: (B,) int64, the scored class.
        model_passes: passes per image: one with a gradient and one forward for each perturbation.
    """

    radii: Tensor
    explained: Tensor
    gradient_share: Tensor
    target: Tensor
    model_passes: int


class FirstOrderTest:
    """Predict the score's change by the low-passed gradient: ``zeta(x, r) = 1 - sum (D_k - <g_r, d_k>)^2 / sum D_k^2``.

    ``D_k = s(x + d_k) - s(x)`` is the change for the k-th perturbation, ``g_r`` the gradient of s at x within radius r.
    For a linear model zeta is 1 if its gradient lies within the radius; for white perturbations its mean is the share
    of the gradient's energy within the radius. For the whole gradient, the difference to 1 is due to curvature.

    Whether high frequencies matter depends on the perturbations. ``white`` ones have equal energy at all frequencies;
    ``image`` ones have the image's own spectrum, with its relations between channels and without DC, and random phases.
    Perturbed images are not clipped to the bounds, as clipping would change all frequencies.

    Args:
        model: nn.Module or callable from pixels (B, C, H, W) to logits (B, classes), in evaluation mode.
        perturbation: kind of perturbation, ``white`` or ``image``.
        samples: number of perturbations per image.
        size: root mean square of a perturbation's values, in pixel units, above 0; small enough for the score to be
            nearly linear, and large compared with the score's rounding.
        score: score whose change is predicted: ``logit``, the target's (or the logarithm of its probability if the
            model returns probabilities), or ``probability``, the target's.
        seed: seed of the perturbations, any 64-bit integer; together with the image's id it determines them.
        radii: the radii, ascending, above 0; the corner is added. Default: 1, 2, 4... and half the shorter side.
        bounds: smallest and largest pixel value.

    Raises:
        TypeError: a model that cannot be called, or a number of a wrong type.
        ValueError: an unknown kind or score, fewer than one sample, or a number out of range.

    Example:
        >>> FirstOrderTest(load_classifier("resnet50"))(images, labels).explained.mean(0)
    """

    def __init__(
        self,
        model: Model,
        perturbation: Perturbation = "white",
        samples: int = 32,
        size: float = 0.25 / 255,
        score: Score = "logit",
        *,
        seed: int = 0,
        radii: Sequence[float] | None = None,
        bounds: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        check_callable(model)
        self.forward_func = model
        self.perturbation: Perturbation = check_choice("perturbation", perturbation, PERTURBATIONS)
        self.samples = check_count("samples", samples)
        self.size = check_positive("size", size)
        self.score: Score = check_choice("score", score, get_args(Score))
        self.seed = check_seed(seed)
        self.radii = radii if radii is None else tuple(radii)
        self.bounds = check_bounds(bounds)

    def __call__(
        self,
        inputs: Tensor,
        target: Target = None,
        *,
        image_ids: Sequence[int] | Tensor | None = None,
        internal_batch_size: int | None = None,
        show_progress: bool = False,
    ) -> FirstOrderFit:
        """Test a batch of images.

        Args:
            inputs: (B, C, H, W), floating-point, values in ``bounds``, at least 8 x 8 pixels.
            target: None for the model's own argmax; an int for all images; a list or a tensor (B,); for models with
                several output dimensions a tuple (class, position...).
            image_ids: (B,) integers that name the images in the random stream; default: their position.
            internal_batch_size: images per model pass. Default: 8 on a CPU, 64 on a GPU.
            show_progress: show a progress bar on standard error.

        Raises:
            TypeError, ValueError: as for an attribution method's inputs, target, ids and chunk size; ValueError also
                for radii that do not ascend, an image of one colour with ``image`` perturbations, a score that is not
                finite, or one that no perturbation changes (naming the image).
        """
        with prepared(
            (self.forward_func,),
            inputs,
            target,
            bounds=self.bounds,
            image_ids=image_ids,
            internal_batch_size=internal_batch_size,
        ) as request:
            images = request.images
            batch, (height, width) = len(images), images.shape[-2:]
            rings = bands_between(height, width, self.radii or doubling_radii(height, width), include_dc=True)
            if self.perturbation == "image":
                _check_spectrum(images)
            gradient, base = torch.empty_like(images), images.new_empty(batch)
            change = images.new_empty(batch * self.samples)
            predicted = torch.empty(batch * self.samples, rings.count, dtype=torch.float64, device="cpu")
            total = batch * (self.samples + 1)
            with progress(total, f"{self.perturbation} perturbations", show_progress) as advance:
                for part, (found, values) in request.chunks.each(batch, lambda part: self._gradient(request, part)):
                    gradient[part], base[part] = found, values
                    advance(len(values))
                for part, (directions, values) in request.chunks.each(
                    len(change), lambda part: self._perturbed(request, part)
                ):
                    rows = torch.arange(part.start, part.stop, device=images.device) // self.samples
                    change[part] = values - base[rows]
                    predicted[part] = rings.products(gradient[rows], directions).cumsum(1)
                    advance(len(values))
        changes = change.cpu().double().view(batch, self.samples, 1)
        unmoved = (changes == 0).all(1)[:, 0]
        if bool(unmoved.any()):
            raise ValueError(
                f"no perturbation of size {self.size:g} changes the {self.score} of image {int(unmoved.nonzero()[0])}: "
                "give a larger size, or the other score"
            )
        errors = (changes - predicted.view(batch, self.samples, -1)).square().sum(1)
        energy = rings.energy(gradient).cumsum(1)
        return FirstOrderFit(
            rings.edges[0, 1:],
            1 - errors / changes.square().sum(1),
            energy / energy[:, -1:].clamp(min=1e-300),
            request.targets.classes.cpu(),
            self.samples + 1,
        )

    def _gradient(self, request: Request, part: slice) -> tuple[Tensor, Tensor]:
        """Compute the gradient of the scores of some images, and the scores."""
        rows = torch.arange(part.start, part.stop, device=request.images.device)
        with frozen_parameters(request.models[0]), torch.enable_grad():
            leaf = request.images[part].clone().requires_grad_(True)
            values = self._scores(request, leaf, rows)
            (gradient,) = torch.autograd.grad(values.sum(), leaf)
        return gradient, values.detach()

    def _perturbed(self, request: Request, part: slice) -> tuple[Tensor, Tensor]:
        """Make perturbations, and compute the scores of images with them."""
        numbers = torch.arange(part.start, part.stop, device=request.images.device)
        rows = numbers // self.samples
        directions = self._directions(request.images[rows], request.image_ids[rows], numbers % self.samples)
        with torch.no_grad():
            return directions, self._scores(request, request.images[rows] + directions, rows)

    def _directions(self, images: Tensor, ids: Tensor, numbers: Tensor) -> Tensor:
        """Draw perturbations of images, (P, C, H, W)."""
        _, channels, height, width = images.shape
        count = channels if self.perturbation == "white" else 1
        words = random_words(Stream.DIRECTIONS, self.seed, ids, numbers, count * height * width)
        noise = to_uniform(words, images.dtype).view(len(images), count, height, width)
        if self.perturbation == "image":
            turn = torch.fft.rfft2(noise).sgn()
            turn[..., 0, 0] = 0
            noise = torch.fft.irfft2(torch.fft.rfft2(images) * turn, s=(height, width))
        scale = noise.square().mean((1, 2, 3), keepdim=True).sqrt()
        return noise * (self.size / scale)

    def _scores(self, request: Request, images: Tensor, rows: Tensor) -> Tensor:
        output = request.targets.logits(call(request.models[0], images, request.probed[0]), rows)
        read = probabilities if self.score == "probability" else scores
        found = read(output, request.reading).gather(1, request.targets.classes[rows][:, None])[:, 0].float()
        strange = ~found.isfinite()
        if bool(strange.any()):
            raise ValueError(f"the model's output is NaN or infinite for image {int(rows[strange][0])}")
        return found


def doubling_radii(height: int, width: int) -> list[float]:
    """List 1, 2, 4... below half the shorter side, and half the shorter side."""
    half = min(height, width) / 2
    return [*(2.0**power for power in range(math.ceil(math.log2(half)))), half]


def _check_spectrum(images: Tensor) -> None:
    flat = (images.amax((-2, -1)) == images.amin((-2, -1))).all(1)
    if bool(flat.any()):
        raise ValueError(
            f"image {int(flat.nonzero()[0])} has only one colour and so no spectrum: use perturbation='white'"
        )
