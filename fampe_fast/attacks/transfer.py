"""How often images that were made to fool one model fool another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..metrics import Estimate, mean_and_error
from ..model_care import Model, check_model, chunk_size, input_dtype, memory_format
from .band_limited import AdversarialImages

Attack = Callable[[Tensor, Tensor], AdversarialImages]


@dataclass(frozen=True)
class TransferRates:
    """Fooled shares, from the model an attack was made on to the model it was tried on.

    Attributes:
        rates: ``rates[source][target]``: among the images that the target model classifies correctly, the share that it
            no longer does once attacked, with its standard error; None where it classifies none correctly.
        accuracy: of each model on the images as they are.
        model_passes: of the attack, per image and source.
    """

    rates: dict[str, dict[str, Estimate | None]]
    accuracy: dict[str, Estimate]
    model_passes: int

    def matrix(self) -> Tensor:
        """(sources, targets) float64, the shares; NaN where there is none."""
        rows = [[float("nan") if e is None else e.mean for e in row.values()] for row in self.rates.values()]
        return torch.tensor(rows, dtype=torch.float64)


def transfer_rates(
    models: Mapping[str, Model],
    images: Tensor,
    targets: Sequence[int] | Tensor,
    attack_factory: Callable[[Model], Attack],
    *,
    internal_batch_size: int | None = None,
) -> TransferRates:
    """Attack every model and try what comes of it on every model.

    Args:
        models: by name, in evaluation mode; one alone gives its own fooled share.
        images: (B, C, H, W), B at least 1, in the attacks' bounds.
        targets: (B,) ints, the true classes, for all models alike.
        attack_factory: makes the attack on a model, as ``lambda model: BandLimitedAttack(model, "low", 15)``; it is
            called with (images, targets).
        internal_batch_size: images per model pass when they are tried; the attack has its own.

    Returns:
        ``TransferRates``.

    Raises:
        TypeError: a model that cannot be called, or an attack that does not give ``AdversarialImages``.
        ValueError: no models, no images, or targets of another number.
    """
    if not models:
        raise ValueError("expected at least one model, got none")
    classes = torch.as_tensor(targets, device=images.device)
    if not len(images) or classes.shape != (len(images),):
        raise ValueError(
            f"expected at least one image and a target for each, got {len(images)} images and targets of shape "
            f"{tuple(classes.shape)}"
        )
    for model in models.values():
        check_model(model, images)
    chunk = chunk_size(internal_batch_size, images.device)
    correct = {name: _right(model, images, classes, chunk) for name, model in models.items()}
    rates: dict[str, dict[str, Estimate | None]] = {}
    passes = 0
    for source, attacked in models.items():
        found = attack_factory(attacked)(images, classes)
        if not isinstance(found, AdversarialImages):
            raise TypeError(f"the attack must give AdversarialImages, got {type(found).__name__}")
        passes = found.model_passes
        rates[source] = {}
        for name, model in models.items():
            known = correct[name]
            fooled = ~_right(model, found.images[known.to(images.device)], classes[known.to(images.device)], chunk)
            rates[source][name] = mean_and_error(fooled) if len(fooled) else None
    return TransferRates(rates, {name: mean_and_error(known) for name, known in correct.items()}, passes)


@torch.no_grad()
def _right(model: Model, images: Tensor, classes: Tensor, chunk: int) -> Tensor:
    """(B,) bool on the CPU: whether the model's first choice is the class."""
    parts = [torch.zeros(0, dtype=torch.bool)]
    for start in range(0, len(images), chunk):
        rows = slice(start, start + chunk)
        pixels = images[rows].to(input_dtype(model)).contiguous(memory_format=memory_format(model))
        parts.append((model(pixels).argmax(1) == classes[rows]).cpu())
    return torch.cat(parts)
