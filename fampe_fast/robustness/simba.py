"""Attack with queries only, along the cosines of one band: SimBA in the DCT basis.

Guo, Gardner, You, Wilson and Weinberger, "Simple Black-box Adversarial Attacks", ICML 2019, arXiv 1905.07121,
algorithm 1 with the basis of section 3.1, without replacement.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..checks import check_bounds, check_count, check_positive, check_seed
from ..engine.request import Request, prepared
from ..engine.targets import Target
from ..metrics.random_words import Stream, random_words
from ..progress import UpTo, progress
from ..reference.dct_mix import dct_matrix
from ..runtime.model import Model, check_callable
from ..runtime.model_probe import call
from ..runtime.outputs import is_right, log_odds
from .attack_bands import Band, BandLimit, share_inside
from .band_limited import AdversarialImages


@dataclass(frozen=True, kw_only=True)
class SimBAConfig:
    """Hold the options of ``SimBA``.

    Attributes:
        step_size: change of one cosine's coefficient in an accepted step, the paper's epsilon, in pixel units, above 0;
            n steps are a perturbation of Euclidean norm step_size * sqrt(n).
        max_queries: largest number of model passes per image, including that of the original image, at least 1.
        seed: seed of the order of the cosines, any 64-bit integer; together with the image's id it determines the
            order.
        bounds: smallest and largest pixel value.
    """

    step_size: float = 0.2
    max_queries: int = 1000
    seed: int = 0
    bounds: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "step_size", check_positive("step_size", self.step_size))
        object.__setattr__(self, "max_queries", check_count("max_queries", self.max_queries))
        object.__setattr__(self, "seed", check_seed(self.seed))
        object.__setattr__(self, "bounds", check_bounds(self.bounds))


class SimBA:
    """Lower the probability of a class by trying one cosine after the other, using only the model's scores.

    A cosine of the band is added to one channel, or else subtracted; the first of the two that makes the class less
    likely is kept. The cosines, coefficients of the orthonormal DCT-II, are tried once each, in a random order of the
    image's own, until the class is no longer predicted, or queries or cosines are used up. Log-odds are compared, which
    have the order of the probability but do not round to 1 for a confident model.

    A coefficient in row u and column v has the radius ``min(H, W) / 2 * sqrt((u/H)^2 + (v/W)^2)``, in cycles over the
    shorter side as all radii are. Images are clamped to the bounds for the model, and at the end.

    The order and the queries of an image do not depend on the other images, up to the rounding of the model's scores.

    Args:
        model: nn.Module or callable from pixels (B, C, H, W) to logits (B, classes), in evaluation mode; it needs no
            gradients.
        band: ``low``, ``middle``, ``high`` or ``all``, as in ``BandLimit``.
        cutoff: radius where the low band ends, in cycles over the shorter side, 0 or more; has no effect for ``all``.
        config: the options; default: ``SimBAConfig()``.
        upper_cutoff: radius where the high band begins; None is the cut-off.

    Raises:
        TypeError: a model that cannot be called, or a configuration or a number of a wrong type.
        ValueError: an unknown or empty band, or a radius out of range.

    Example:
        >>> found = SimBA(load_classifier("resnet50"), band="low", cutoff=15)(images, labels)
        >>> found.images, found.queries
    """

    def __init__(
        self,
        model: Model,
        band: Band = "all",
        cutoff: float = 30.0,
        config: SimBAConfig | None = None,
        *,
        upper_cutoff: float | None = None,
    ) -> None:
        check_callable(model)
        if config is not None and not isinstance(config, SimBAConfig):
            raise TypeError(f"config must be a SimBAConfig, got {type(config).__name__}")
        self.forward_func = model
        self.limit = BandLimit(band, cutoff, upper_cutoff)
        self.config = config or SimBAConfig()

    def __call__(
        self,
        inputs: Tensor,
        target: Target = None,
        *,
        image_ids: Sequence[int] | Tensor | None = None,
        internal_batch_size: int | None = None,
        show_progress: bool = False,
    ) -> AdversarialImages:
        """Attack a batch of images; images that the model already misclassifies stay unchanged after one query.

        Args:
            inputs: (B, C, H, W), floating-point, values in ``config.bounds``, at least 8 x 8 pixels.
            target: the class whose probability is lowered: None for the model's own argmax; an int for all images; a
                list or a tensor (B,); for models with several output dimensions a tuple (class, position...).
            image_ids: (B,) integers that name the images in the random stream; default: their position.
            internal_batch_size: images per model pass. Default: 8 on a CPU, 64 on a GPU.
            show_progress: show a progress bar of the queries on standard error.

        Returns:
            ``AdversarialImages``, on the inputs' device.

        Raises:
            TypeError, ValueError: as for an attribution method's inputs, target, ids and chunk size; ValueError also
                for a band without cosines for this size, or a score that is NaN (naming the image).
        """
        with prepared(
            (self.forward_func,),
            inputs,
            target,
            bounds=self.config.bounds,
            image_ids=image_ids,
            internal_batch_size=internal_batch_size,
            gradients=False,
        ) as request:
            search = _Search(request, self.config, self._order(request))
            most = len(request.images) * self.config.max_queries
            with torch.no_grad(), progress(most, f"queries, {self.limit.band} band", show_progress) as advance:
                done = UpTo(most, advance)
                while len(rows := search.open_rows()):
                    search.try_next(rows)
                    done(len(rows))
                done.finish()
            share = self.band_share(search.images() - request.images)
            return AdversarialImages(
                search.images(), request.targets.classes, share, self.config.max_queries, search.queries.cpu()
            )

    def check_size(self, height: int, width: int) -> None:
        """Refuse images of H x W pixels if none of their cosines lies in the band.

        Raises:
            ValueError: the band is empty.
        """
        self.limit.check_size(height, width, squared_dct_radius(height, width))

    def band_share(self, perturbation: Tensor) -> Tensor:
        """Compute the share of a perturbation's DCT energy in the band, (B,) float64 on the CPU; 1 for one of zero."""
        values = perturbation.detach().cpu().double()
        height, width = values.shape[-2:]
        down, across = (dct_matrix(size, dtype=torch.float64) for size in (height, width))
        spectrum = down @ values @ across.T
        return share_inside(spectrum * self.limit.holds(squared_dct_radius(height, width)), spectrum)

    def _order(self, request: Request) -> Tensor:
        """Draw each image's order of the band's cosines, (B, n) int64, as indices of (C, H, W).

        At most as many are drawn as there are queries.
        """
        channels, height, width = request.images.shape[1:]
        self.check_size(height, width)
        inside = (
            self.limit.holds(squared_dct_radius(height, width))
            .expand(channels, -1, -1)
            .flatten()
            .nonzero()[:, 0]
            .to(request.images.device)
        )
        ids = request.image_ids
        words = random_words(Stream.COORDINATES, self.config.seed, ids, torch.zeros_like(ids), len(inside))
        return inside[words.argsort(dim=1, stable=True)[:, : self.config.max_queries]]


def squared_dct_radius(height: int, width: int) -> Tensor:
    """Compute the squared radii of DCT-II coefficients in cycles over the shorter side, (H, W) float64 on the CPU."""
    half = min(height, width) / 2
    rows, columns = (torch.arange(size, dtype=torch.float64, device="cpu") / size for size in (height, width))
    return (half * rows[:, None]) ** 2 + (half * columns) ** 2


class _Search:
    """The state of an attack: the position of each image in its order."""

    def __init__(self, request: Request, config: SimBAConfig, order: Tensor) -> None:
        images = request.images
        batch, _, height, width = images.shape
        self._request, self._config, self._order = request, config, order
        self._down, self._across = (dct_matrix(size, images.device) for size in (height, width))
        self._change = torch.zeros_like(images)  # before the clamp
        self._place = torch.zeros(batch, dtype=torch.long, device=images.device)
        self._subtract = torch.zeros(batch, dtype=torch.bool, device=images.device)
        self.queries = torch.ones_like(self._place)
        everyone = torch.arange(batch, device=images.device)
        self._score, self._right = self._ask(images, everyone)

    def images(self) -> Tensor:
        """Return the current images, (B, C, H, W)."""
        return (self._request.images + self._change).clamp(*self._config.bounds)

    def open_rows(self) -> Tensor:
        """List the images that are still classified correctly and have a query and a cosine left, (P,) int64."""
        left = (self.queries < self._config.max_queries) & (self._place < self._order.shape[1])
        return (self._right & left).nonzero()[:, 0]

    def try_next(self, rows: Tensor) -> None:
        """Try one cosine on each of some images, and keep it if it makes the class less likely."""
        sign = torch.where(self._subtract[rows], -1.0, 1.0) * self._config.step_size
        tried = self._change[rows]
        height, width = tried.shape[-2:]
        chosen = self._order[rows, self._place[rows]]
        channel, row, column = chosen // (height * width), chosen // width % height, chosen % width
        cosine = self._down[row][:, :, None] * self._across[column][:, None, :]
        tried[torch.arange(len(rows), device=rows.device), channel] += sign[:, None, None].to(tried.dtype) * cosine
        shown = (self._request.images[rows] + tried).clamp(*self._config.bounds)
        score, right = self._ask(shown, rows)
        self.queries[rows] += 1
        better = score < self._score[rows]
        kept = rows[better]
        self._change[kept], self._score[kept], self._right[kept] = tried[better], score[better], right[better]
        over = better | self._subtract[rows]
        self._place[rows] += over.long()
        self._subtract[rows] = ~over

    def _ask(self, shown: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Score variants of some images: the class's log-odds, (P,), and whether it is predicted."""
        request = self._request
        scores = torch.empty(len(rows), dtype=torch.float32, device=rows.device)
        right = torch.empty(len(rows), dtype=torch.bool, device=rows.device)

        def ask(part: slice) -> tuple[Tensor, Tensor]:
            output = request.targets.logits(call(request.models[0], shown[part], request.probed[0]), rows[part])
            classes = request.targets.classes[rows[part]]
            return log_odds(output, classes, request.reading), is_right(output, classes, request.reading)

        for part, (score, answer) in request.chunks.each(len(rows), ask):
            scores[part], right[part] = score, answer
        strange = scores.isnan()
        if bool(strange.any()):
            raise ValueError(f"the model's score is NaN for image {int(rows[strange][0])}")
        return scores, right
