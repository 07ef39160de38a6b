"""Tune FORGrad's cut-off for a model and a method: find the most faithful maps on a validation set."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from torch import Tensor

from ..checks import check_count, check_flag
from ..files import MARK, Output, check_outputs, json_content, write_atomically
from ..frequency.low_pass import filtered_map
from ..metrics import Estimate, insertion_deletion, mean_and_error
from ..progress import UpTo, progress
from ..runtime.model import Model

CUTOFFS = "cutoffs"
"""The kind of the JSON files."""


@dataclass(frozen=True)
class TunedCutoff:
    """The result of a search.

    Attributes:
        model: name of the model.
        method: name of the method.
        cutoff: sigma*, the best radius tried, in cycles over the shorter side.
        curve: mean faithfulness (insertion minus deletion) with its standard error for every radius tried, ascending.
        unfiltered: the same for the unfiltered maps (channel mean, absolute value).
        protocol: protocol of insertion and deletion.
        forward_passes: forward passes per image of the search, without those of the maps.
        signed: whether the maps were filtered with their signs (``frequency.filtered_map``); a radius is valid only for
            this filter.
    """

    model: str
    method: str
    cutoff: int
    curve: dict[int, Estimate]
    unfiltered: Estimate
    protocol: str
    forward_passes: int
    signed: bool = False

    def save(self, path: str | Path) -> None:
        """Add the result to a JSON file, atomically, replacing an earlier one of the same names and filter.

        Raises:
            ValueError: there is a file of another kind, or one that this package did not write.
            OSError: the file cannot be written.
        """
        path = Path(path)
        check_outputs([Output(path, CUTOFFS)], [])
        known = read_cutoffs(path) if path.exists() else {}
        known[_key(self.model, self.method, self.signed)] = asdict(self)
        write_atomically(path, (json_content(CUTOFFS, known) + "\n").encode())

    @classmethod
    def load(cls, path: str | Path, model: str, method: str, *, signed: bool = False) -> TunedCutoff:
        """Read the result of a model and a method.

        Args:
            path: a file written by ``save``.
            model: name of the model, as ``tune_cutoff`` recorded it: ``classifier.name``, or ``model_name``.
            method: name of the method: its ``name``, or its class ("FAMPE", whatever its configuration), or
                ``method_name``; the command line's are those of ``--method`` ("fampe").
            signed: the filter of the radius. Entries from before there were two filters are the signed filter's.

        Raises:
            FileNotFoundError: there is no such file.
            KeyError: it has only other models, methods or filters; the message lists them.
            ValueError: the file is not one of ``save``.
        """
        known = read_cutoffs(Path(path))
        key = _key(model, method, signed)
        if key not in known:
            raise KeyError(f"no cut-off for {key!r} in {path}; it has {', '.join(sorted(known))}")
        return _outcome_in(known[key], path)


def _key(model: str, method: str, signed: bool) -> str:
    return f"{model} | {method}{' | signed' if signed else ''}"


def outcomes_in(path: Path) -> list[TunedCutoff]:
    """Read all results in a file, of any model, method and filter.

    Raises:
        ValueError: the file is not one of ``TunedCutoff.save``.
    """
    return [_outcome_in(found, path) for found in read_cutoffs(path).values()]


def _outcome_in(found: dict[str, Any], path: str | Path) -> TunedCutoff:
    try:
        parts = dict(found)
        curve = {int(radius): Estimate(**estimate) for radius, estimate in parts.pop("curve").items()}
        return TunedCutoff(**{**parts, "unfiltered": Estimate(**parts["unfiltered"])}, curve=curve)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is not a file of tuned cut-offs: {error!r}") from error


def read_cutoffs(path: Path) -> dict[str, Any]:
    """Read the results in a file by their names.

    Raises:
        ValueError: the file is not one of ``TunedCutoff.save``.
    """
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is not a file of tuned cut-offs")
    found.pop(MARK, None)
    return _named_by_filter(found)


def _named_by_filter(known: dict[str, Any]) -> dict[str, Any]:
    """Rename the results of a file from before there were two filters: they are the signed filter's."""
    named = {key: found for key, found in known.items() if not isinstance(found, dict) or "signed" in found}
    for found in known.values():
        if isinstance(found, dict) and "signed" not in found and {"model", "method"} <= found.keys():
            named.setdefault(_key(found["model"], found["method"], True), {**found, "signed": True})
    return named


def tune_cutoff(
    model: Model,
    loader: Iterable[tuple[Tensor, Tensor]],
    method: Any,
    *,
    protocol: str = "rise",
    metric_steps: int = 28,
    mean: float | Sequence[float] | Tensor | None = None,
    signed: bool = False,
    model_name: str | None = None,
    method_name: str | None = None,
    internal_batch_size: int | None = None,
    show_progress: bool = False,
) -> TunedCutoff:
    """Search for the radius ``sigma*`` with the best mean faithfulness (arXiv 2307.09591, section 4).

    The maps are computed once and filtered many times. The radii 1, 2, 4... up to half the shorter side are tried
    first, then the gap on either side of the best one is halved until its neighbours are known: about
    ``2 log2(side)`` radii in place of ``side / 2``, enough for a curve with one peak. Every radius takes
    ``2 (metric_steps + 1)`` forward passes per image, and its score is returned.

    Args:
        model: classifier in pixel space, in evaluation mode.
        loader: batches (images (B, C, H, W), targets (B,)), all images of one size; they and their maps' channel
            means are kept in memory.
        method: the method whose maps are filtered, with ``attribute(images, target=targets)``.
        protocol: protocol of insertion and deletion.
        metric_steps: steps of insertion and deletion.
        mean: the mean colour that the protocol may need; default: the model's ``mean``.
        signed: filter the maps' signed mean over channels, not its absolute value (``frequency.filtered_map``).
        model_name: name in the record; default: the model's ``name``, or its class.
        method_name: name in the record; default: the method's ``name``, or its class.
        internal_batch_size: images per model pass of the metrics.
        show_progress: show a progress bar of the radii on standard error.

    Returns:
        The best radius, the whole curve, and the unfiltered maps' score.

    Raises:
        TypeError: a method without ``attribute``, batches that are not pairs of tensors.
        ValueError: no images, images of different sizes, or metrics that refuse their arguments.
    """
    metric_steps = check_count("metric_steps", metric_steps)
    if not callable(getattr(method, "attribute", None)):
        raise TypeError(f"method must have a method 'attribute', got {type(method).__name__}")
    judge = Faithfulness(model, protocol, metric_steps, mean, internal_batch_size, check_flag("signed", signed))
    batches = _explained(loader, method)
    side = min(batches[0][0].shape[-2:])
    tries = expected_tries(side)
    with progress(1 + tries, "cut-offs", show_progress) as advance:
        unfiltered = judge.mean(batches, None)
        advance(1)
        curve = search_radii(partial(judge.mean, batches), side, UpTo(tries, advance))
    return outcome_of(model_name or _name(model), method_name or _name(method), judge, curve, unfiltered)


_Explained = tuple[Tensor, Tensor, Tensor]
"""Images (B, C, H, W), targets (B,), and the channel means (B, 1, H, W) of their maps."""


@dataclass(frozen=True)
class Faithfulness:
    """Scores filtered maps by insertion minus deletion."""

    model: Model
    protocol: str
    steps: int
    mean_colour: float | Sequence[float] | Tensor | None
    internal_batch_size: int | None
    signed: bool

    def __call__(self, images: Tensor, targets: Tensor, maps: Tensor, radius: int | None) -> list[float]:
        """Score every image with its filtered map; a radius of None leaves the map unfiltered."""
        shown = maps.abs() if radius is None else filtered_map(maps, radius, signed=self.signed)
        found = insertion_deletion(
            self.model,
            images,
            shown.expand_as(images),
            targets,
            protocol=self.protocol,
            steps=self.steps,
            mean=self.mean_colour,
            internal_batch_size=self.internal_batch_size,
        )
        scores: list[float] = (found.insertion - found.deletion).tolist()
        return scores

    def mean(self, batches: Sequence[_Explained], radius: int | None) -> Estimate:
        """Average the scores over all images."""
        return mean_and_error([score for batch in batches for score in self(*batch, radius)])


def search_radii(mean: Callable[[int], Estimate], side: int, advance: UpTo) -> dict[int, Estimate]:
    """Search for the best radius: try the coarse radii, then halve the gaps beside the best one.

    Args:
        mean: function that returns the score of a radius.
        side: the images' shorter side, pixels.
        advance: called with every radius tried.

    Returns:
        Every radius tried with its score, ascending.
    """
    curve: dict[int, Estimate] = {}
    unknown: Sequence[int] = _coarse_radii(side)
    while unknown:
        for radius in unknown:
            curve[radius] = mean(radius)
            advance(1)
        unknown = _next_radii(curve)
    advance.finish()
    return dict(sorted(curve.items()))


def outcome_of(
    model: str, method: str, judge: Faithfulness, curve: dict[int, Estimate], unfiltered: Estimate
) -> TunedCutoff:
    """Summarise a search: the best radius, the curve, and the passes it took."""
    passes = 2 * (judge.steps + 1) * (len(curve) + 1)
    return TunedCutoff(model, method, _best(curve), curve, unfiltered, judge.protocol, passes, judge.signed)


def expected_tries(side: int) -> int:
    """Estimate how many radii the search will try."""
    coarse = len(_coarse_radii(side))
    return coarse + 2 * max(1, coarse - 2)


def _explained(loader: Iterable[tuple[Tensor, Tensor]], method: Any) -> list[_Explained]:
    batches: list[_Explained] = []
    for batch in loader:
        if not (isinstance(batch, Sequence) and len(batch) == 2 and all(isinstance(part, Tensor) for part in batch)):
            raise TypeError(f"the loader must yield pairs (images, targets) of tensors, got {type(batch).__name__}")
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
        raise ValueError("the loader yielded no images")
    return batches


def _coarse_radii(side: int) -> list[int]:
    """List 1, 2, 4... and half the side."""
    most = max(1, side // 2)
    radii = [1]
    while 2 * radii[-1] < most:
        radii.append(2 * radii[-1])
    return radii if radii[-1] == most else [*radii, most]


def _best(curve: dict[int, Estimate]) -> int:
    """Choose the most faithful radius, on a tie the largest, which changes the maps least."""
    return max(curve, key=lambda radius: (curve[radius].mean, radius))


def _next_radii(curve: dict[int, Estimate]) -> tuple[int, ...]:
    """List the middles of the gaps beside the best radius; empty if its neighbours are known."""
    radii = sorted(curve)
    best = _best(curve)
    gaps = [pair for pair in pairwise(radii) if best in pair]
    return tuple((low + high) // 2 for low, high in gaps if high - low > 1)


def _name(thing: object) -> str:
    name = getattr(thing, "name", None)
    return name if isinstance(name, str) else type(thing).__name__
