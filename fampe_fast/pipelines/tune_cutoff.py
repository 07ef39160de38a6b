"""FORGrad's cut-off for a model and a method: the one whose filtered maps are most faithful on a validation set."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from torch import Tensor

from ..frequency.low_pass import filtered_map
from ..metrics import Estimate, insertion_deletion, mean_and_error
from ..model_care import Model, check_count
from ..plots.saving import write_atomically
from ..progress import progress


@dataclass(frozen=True)
class TunedCutoff:
    """The outcome of a search.

    Attributes:
        model: name of the model.
        method: name of the method.
        cutoff: sigma*, the best radius that was tried, in cycles over the shorter side.
        curve: mean faithfulness (insertion minus deletion) with its standard error by radius, ascending: every radius
            that was tried.
        unfiltered: the same of the maps as they are (channel mean, absolute value).
        protocol: of insertion and deletion.
        forward_passes: of the model, per image, that the search took; the maps' own are not counted.
    """

    model: str
    method: str
    cutoff: int
    curve: dict[int, Estimate]
    unfiltered: Estimate
    protocol: str
    forward_passes: int

    def save(self, path: str | Path) -> None:
        """Add to a JSON file, in place of an earlier outcome of the same model and method; the file stays whole."""
        path = Path(path)
        known = _read(path) if path.exists() else {}
        known[_key(self.model, self.method)] = asdict(self)
        write_atomically(path, (json.dumps(known, indent=1) + "\n").encode())

    @classmethod
    def load(cls, path: str | Path, model: str, method: str) -> TunedCutoff:
        """Read the outcome of a model and a method.

        Raises:
            FileNotFoundError: there is no such file.
            KeyError: it knows other models or methods only; the message lists them.
            ValueError: the file is not one of ``save``.
        """
        known = _read(Path(path))
        if _key(model, method) not in known:
            raise KeyError(f"no cut-off for {_key(model, method)!r} in {path}; it has {', '.join(sorted(known))}")
        found = known[_key(model, method)]
        try:
            curve = {int(radius): Estimate(**estimate) for radius, estimate in found.pop("curve").items()}
            return cls(**{**found, "unfiltered": Estimate(**found["unfiltered"])}, curve=curve)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is not a file of tuned cut-offs: {error!r}") from error


def _key(model: str, method: str) -> str:
    return f"{model} | {method}"


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is not a file of tuned cut-offs")
    return found


def tune_cutoff(
    model: Model,
    loader: Iterable[tuple[Tensor, Tensor]],
    method: Any,
    *,
    protocol: str = "rise",
    metric_steps: int = 28,
    mean: float | Sequence[float] | Tensor | None = None,
    model_name: str | None = None,
    method_name: str | None = None,
    internal_batch_size: int | None = None,
    show_progress: bool = False,
) -> TunedCutoff:
    """Search ``sigma*`` by mean faithfulness (arXiv 2307.09591, section 4).

    The maps are computed once and filtered many times. The radii 1, 2, 4... up to half the shorter side are tried
    first, then the gap on either side of the best one is halved until its neighbours are known: about
    ``2 log2(side)`` radii in place of ``side / 2``, enough for a curve with one peak. Every radius that is tried costs
    ``2 (metric_steps + 1)`` forward passes per image, and every one is returned.

    Args:
        model: classifier in pixel space, in evaluation mode.
        loader: batches (images (B, C, H, W), targets (B,)), all images of one size; they and their maps' channel
            means are kept in memory.
        method: gives signed maps, ``attribute(images, target=targets)``.
        protocol: of insertion and deletion.
        metric_steps: steps of insertion and deletion.
        mean: the mean colour that the protocol may need; default: the model's ``mean``.
        model_name: for the record; default: the model's ``name``, or its class.
        method_name: for the record; default: the method's ``name``, or its class.
        internal_batch_size: images per model pass of the metrics.
        show_progress: show a bar of the radii tried on standard error.

    Returns:
        The best radius, the whole curve, and the unfiltered maps' score.

    Raises:
        TypeError: a method without ``attribute``, batches that are not pairs of tensors.
        ValueError: no images, images of different sizes, or metrics that refuse their arguments.
    """
    check_count("metric_steps", metric_steps)
    if not callable(getattr(method, "attribute", None)):
        raise TypeError(f"method must have a method 'attribute', got {type(method).__name__}")
    batches = _explained(loader, method)
    side = min(batches[0][0].shape[-2:])

    def faithfulness(radius: int | None) -> Estimate:
        scores: list[float] = []
        for images, targets, maps in batches:
            shown = maps.abs() if radius is None else filtered_map(maps, radius)
            found = insertion_deletion(
                model,
                images,
                shown.expand_as(images),
                targets,
                protocol=protocol,
                steps=metric_steps,
                mean=mean,
                internal_batch_size=internal_batch_size,
            )
            scores += (found.insertion - found.deletion).tolist()
        return mean_and_error(scores)

    curve: dict[int, Estimate] = {}
    coarse = _coarse_radii(side)
    with progress(1 + len(coarse) + 2 * max(1, len(coarse) - 2), "cut-offs", show_progress) as advance:

        def try_radius(radius: int) -> None:
            curve[radius] = faithfulness(radius)
            advance(1)

        unfiltered = faithfulness(None)
        advance(1)
        for radius in coarse:
            try_radius(radius)
        while (unknown := _next_radii(curve)) != ():
            for radius in unknown:
                try_radius(radius)
    best = _best(curve)
    return TunedCutoff(
        model_name or _name(model),
        method_name or _name(method),
        best,
        dict(sorted(curve.items())),
        unfiltered,
        protocol,
        2 * (metric_steps + 1) * (len(curve) + 1),
    )


def _explained(loader: Iterable[tuple[Tensor, Tensor]], method: Any) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Images, targets, and the channel means (B, 1, H, W) of their maps."""
    batches: list[tuple[Tensor, Tensor, Tensor]] = []
    for batch in loader:
        if not (isinstance(batch, Sequence) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch)):
            raise TypeError(f"the loader must give pairs (images, targets) of tensors, got {type(batch).__name__}")
        images, targets = batch
        if not len(images):
            continue
        if batches and images.shape[1:] != batches[0][0].shape[1:]:
            raise ValueError(
                f"all images must have one size, got {tuple(images.shape[1:])} after {tuple(batches[0][0].shape[1:])}"
            )
        maps = method.attribute(images, target=targets).detach()
        batches.append((images, targets, maps.mean(1, keepdim=True)))
    if not batches:
        raise ValueError("the loader gave no images")
    return batches


def _coarse_radii(side: int) -> list[int]:
    """1, 2, 4... and half the side."""
    most = max(1, side // 2)
    radii = [1]
    while 2 * radii[-1] < most:
        radii.append(2 * radii[-1])
    return radii if radii[-1] == most else [*radii, most]


def _best(curve: dict[int, Estimate]) -> int:
    """The most faithful radius; of equals the largest, which changes the maps least."""
    return max(curve, key=lambda radius: (curve[radius].mean, radius))


def _next_radii(curve: dict[int, Estimate]) -> tuple[int, ...]:
    """The middles of the gaps beside the best radius; none where its neighbours are known."""
    radii = sorted(curve)
    best = _best(curve)
    gaps = [pair for pair in pairwise(radii) if best in pair]
    return tuple((low + high) // 2 for low, high in gaps if high - low > 1)


def _name(thing: object) -> str:
    name = getattr(thing, "name", None)
    return name if isinstance(name, str) else type(thing).__name__
