"""Tune FORGrad's cut-off for a model and a method: find the one with the most faithful maps on a validation set."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..checks import check_count, check_flag
from ..files import FIGURE, FOLDER, MARK, Output, check_outputs, json_content, remove_leftovers, write_atomically
from ..frequency.low_pass import filtered_map
from ..methods.base import AttributionMethod
from ..metrics import Estimate, insertion_deletion, mean_and_error
from ..metrics.protocols import resolve_protocol
from ..models.classifier import Classifier
from ..models.identity import identity_of
from ..plots.saving import save_figure
from ..plots.studies import CutoffCurve, cutoffs_figure
from ..progress import UpTo, progress
from ..runtime.model import Model
from .batches import Batch, Failure, Group, check_run_ids, groups_of, targets_of_batch
from .map_store import MapStore
from .records import RECORDS, Item, Records
from .settings import everything_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CUTOFFS = "cutoffs"
"""The kind of the JSON files."""


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
        signed: whether the maps were filtered with their signs (``frequency.filtered_map``); a radius serves the filter
            that it was found for.
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
        """Add to a JSON file, in place of an earlier outcome of the same names and filter; the file stays whole.

        Raises:
            ValueError: there is a file of another kind, or one that this package did not write.
            OSError: it cannot be written.
        """
        path = Path(path)
        check_outputs([Output(path, CUTOFFS)], [])
        known = _read(path) if path.exists() else {}
        known[_key(self.model, self.method, self.signed)] = asdict(self)
        write_atomically(path, (json_content(CUTOFFS, known) + "\n").encode())

    @classmethod
    def load(cls, path: str | Path, model: str, method: str, *, signed: bool = False) -> TunedCutoff:
        """Read the outcome of a model and a method.

        Args:
            path: what ``save`` wrote.
            model: name of the model, as ``tune_cutoff`` recorded it: ``classifier.name``, or ``model_name``.
            method: name of the method: its ``name``, or its class ("FAMPE", whatever its configuration), or
                ``method_name``; the command line's are those of ``--method`` ("fampe").
            signed: which filter the radius is for. What was written before there were two is the signed filter's.

        Raises:
            FileNotFoundError: there is no such file.
            KeyError: it knows other models, methods or filters only; the message lists them.
            ValueError: the file is not one of ``save``.
        """
        known = _read(Path(path))
        key = _key(model, method, signed)
        if key not in known:
            raise KeyError(f"no cut-off for {key!r} in {path}; it has {', '.join(sorted(known))}")
        found = known[key]
        try:
            curve = {int(radius): Estimate(**estimate) for radius, estimate in found.pop("curve").items()}
            return cls(**{**found, "unfiltered": Estimate(**found["unfiltered"])}, curve=curve)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is not a file of tuned cut-offs: {error!r}") from error


def _key(model: str, method: str, signed: bool) -> str:
    return f"{model} | {method}{' | signed' if signed else ''}"


def _read(path: Path) -> dict[str, Any]:
    """The outcomes in a file by their names."""
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is not a file of tuned cut-offs")
    found.pop(MARK, None)
    return _named_by_filter(found)


def _named_by_filter(known: dict[str, Any]) -> dict[str, Any]:
    """Call the outcomes of a file from before there were two filters what they are: the signed filter's."""
    named = {key: found for key, found in known.items() if not isinstance(found, dict) or "signed" in found}
    for found in known.values():
        if isinstance(found, dict) and "signed" not in found and {"model", "method"} <= found.keys():
            named.setdefault(_key(found["model"], found["method"], True), {**found, "signed": True})
    return named


def tuning_outputs(out: Path) -> list[Output]:
    """List what ``tune_files`` writes.

    Raises:
        ValueError: ``cutoffs.json`` is there and holds something else.
    """
    if (out / "cutoffs.json").exists():
        _read(out / "cutoffs.json")
    return [
        Output(out, FOLDER),
        Output(out / "cutoffs.json", CUTOFFS),
        Output(out / "cutoffs.png", FIGURE),
        Output(out / "cutoffs.jsonl", RECORDS),
        Output(out / "maps", FOLDER),
    ]


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
    """Search ``sigma*`` by mean faithfulness (arXiv 2307.09591, section 4).

    The maps are computed once and filtered many times. The radii 1, 2, 4... up to half the shorter side are tried
    first, then the gap on either side of the best one is halved until its neighbours are known: about
    ``2 log2(side)`` radii in place of ``side / 2``, enough for a curve with one peak. Every radius that is tried costs
    ``2 (metric_steps + 1)`` forward passes per image, and every one is returned.

    Args:
        model: classifier in pixel space, in evaluation mode.
        loader: batches (images (B, C, H, W), targets (B,)), all images of one size; they and their maps' channel
            means are kept in memory.
        method: whose maps are filtered, ``attribute(images, target=targets)``.
        protocol: of insertion and deletion.
        metric_steps: steps of insertion and deletion.
        mean: the mean colour that the protocol may need; default: the model's ``mean``.
        signed: filter the maps' signed mean over channels, not its absolute value (``frequency.filtered_map``).
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
    metric_steps = check_count("metric_steps", metric_steps)
    if not callable(getattr(method, "attribute", None)):
        raise TypeError(f"method must have a method 'attribute', got {type(method).__name__}")
    judge = _Faithfulness(model, protocol, metric_steps, mean, internal_batch_size, check_flag("signed", signed))
    batches = _explained(loader, method)
    side = min(batches[0][0].shape[-2:])
    tries = _tries(side)
    with progress(1 + tries, "cut-offs", show_progress) as advance:
        unfiltered = judge.mean(batches, None)
        advance(1)
        curve = _search(partial(judge.mean, batches), side, UpTo(tries, advance))
    return _outcome(model_name or _name(model), method_name or _name(method), judge, curve, unfiltered)


@dataclass
class Tuning:
    """The outcomes of a search over files.

    Attributes:
        results: by method, those that are finished.
        failures: images left out, of all methods or of the one that is named.
    """

    results: dict[str, TunedCutoff] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)


def tune_files(
    classifier: Classifier,
    methods: Mapping[str, AttributionMethod],
    paths: Sequence[Path],
    out: Path,
    *,
    targets: Sequence[int] | None = None,
    image_ids: Sequence[int] | None = None,
    protocol: str = "rise",
    metric_steps: int = 28,
    signed: bool = False,
    batch_size: int = 8,
    internal_batch_size: int | None = None,
    on_stage: Callable[[str, int], None] = lambda stage, total: None,
    on_done: Callable[[int], None] = lambda count: None,
    on_failure: Callable[[Failure], None] = lambda failure: None,
) -> Tuning:
    """Tune the cut-off of several methods over image files; ``out/cutoffs.json``, with the curves in ``cutoffs.png``.

    A method's outcome is written as soon as it is found: an interrupt costs the methods that are not. Maps (in
    ``out/maps``, until the method's outcome is found) and scores (``out/cutoffs.jsonl``) are on disk as soon as a batch
    has them, and are not computed again for the same image, id, target, model and settings. An image that a method
    fails on is left out of that method's curve.

    Args:
        classifier: the model.
        methods: by name, made for this classifier.
        paths: image files; all that can be read are kept in memory.
        out: folder, made if missing; earlier outcomes in its ``cutoffs.json`` stay.
        targets: the class of each file; None takes the model's own choice.
        image_ids: what names each file in the random stream, unique, 0 to 2^32 - 2; default: its place in ``paths``.
        protocol: of insertion and deletion, by name.
        metric_steps: steps of insertion and deletion.
        signed: filter the maps' signed mean over channels, not its absolute value.
        batch_size: images explained together.
        internal_batch_size: samples per model pass.
        on_stage: called with what begins and about how many units it has.
        on_done: called with the number of units just finished.
        on_failure: called for an image left out.

    Returns:
        The ``Tuning``.

    Raises:
        ValueError: a file of another content, an unknown protocol, too few steps, image ids that are not unique or out
            of range, or an output would replace an image or a file of another's.
        OSError: the results cannot be written.
    """
    metric_steps = check_count("metric_steps", metric_steps)
    resolve_protocol(protocol)
    check_outputs(tuning_outputs(out), paths)
    image_ids = check_run_ids(paths, image_ids)
    for folder in (out, out / "maps"):
        remove_leftovers(folder)
    tuning = Tuning()

    def failed(failure: Failure) -> None:
        tuning.failures.append(failure)
        on_failure(failure)
        on_done(1)

    judge = _Faithfulness(classifier, protocol, metric_steps, None, internal_batch_size, check_flag("signed", signed))
    on_stage("images", len(paths))
    groups = []
    for group in groups_of(classifier, paths, targets, batch_size, failed, image_ids):
        group.batch()
        if group.items:
            groups.append(group)
            on_done(len(group.items))
    store = MapStore(out / "maps")
    with Records(out / "cutoffs.jsonl", "tune") as records:
        for name, method in methods.items():
            context = records.context(
                {
                    **identity_of(classifier),
                    "maps": everything_of(method, classifier),
                    "protocol": protocol,
                    "metric_steps": metric_steps,
                    "signed": signed,
                }
            )
            search = _SearchOverFiles(method, classifier, targets, judge, records, context, store, internal_batch_size)

            def without(failure: Failure, name: str = name) -> None:
                failed(Failure(failure.path, f"{name}: {failure.reason}"))

            on_stage(f"{name}: maps", sum(len(group.items) for group in groups))
            explained = []
            for group in groups:
                part = group.again(without)
                search.explain(part)
                if part.items:
                    explained.append(part)
                    on_done(len(part.items))
            curve: dict[int, Estimate] | None = None
            while curve is None and explained:
                first = explained[0].batch()
                assert first is not None
                side = min(first.images.shape[-2:])
                tries = _tries(side)
                on_stage(f"{name}: cut-offs", tries)
                try:
                    curve = _search(partial(search.mean, explained), side, UpTo(tries, on_done))
                except _ImagesLostError:  # every radius is judged by the same images: once more without them
                    explained = [part for part in explained if part.items]
            if curve is None:
                continue
            items = [item for part in explained for item in part.items]
            tuned = _outcome(classifier.name, name, judge, curve, mean_and_error(search.unfiltered(items)))
            tuned.save(out / "cutoffs.json")
            tuning.results[name] = tuned
            save_figure(_figure(tuning), out / "cutoffs.png")
            store.remove(context, items)
    return tuning


class _ImagesLostError(Exception):
    """Images failed at a radius, and are no longer among those of the search."""


@dataclass(frozen=True)
class _SearchOverFiles:
    """Maps and scores of one method, on disk as soon as a batch has them."""

    method: AttributionMethod
    classifier: Classifier
    targets: Sequence[int] | None
    judge: _Faithfulness
    records: Records
    context: str
    store: MapStore
    internal_batch_size: int | None

    def explain(self, group: Group) -> None:
        """Find the maps of a group's images, and the scores of the maps as they are."""

        def work(batch: Batch) -> tuple[Tensor, list[dict[str, Any]]]:
            chosen = targets_of_batch(self.classifier, batch, self.targets)
            maps = self._maps(batch, chosen)
            scores = self.judge(batch.images, chosen, maps, None)
            return maps, [
                {"target": target, "unfiltered": score} for target, score in zip(chosen.tolist(), scores, strict=True)
            ]

        def keep(batch: Batch, items: list[Item], found: tuple[Tensor, list[dict[str, Any]]]) -> None:
            maps, results = found
            for item, shown in zip(items, maps, strict=True):
                self.store.save(self.context, item, shown)
            self.records.add(self.context, items, results)

        group.settle(lambda item: self.records.get(self.context, item) is not None, work, keep)

    def unfiltered(self, items: Sequence[Item]) -> list[float]:
        """The scores of the maps as they are."""
        return [float(self._found(item)["unfiltered"]) for item in items]

    def mean(self, groups: Sequence[Group], radius: int) -> Estimate:
        """The score of the maps filtered with a radius; ``_ImagesLostError`` where images fail, which are then gone."""
        part = f"radius {radius}"
        before = sum(len(group.items) for group in groups)
        for group in groups:
            items = {item.position: item for item in group.items}

            def work(batch: Batch, items: dict[int, Item] = items) -> list[dict[str, Any]]:
                scores = self._scores(batch, [items[position] for position in batch.positions], radius)
                return [{"score": score} for score in scores]

            group.settle_in(self.records, self.context, work, part)
        if sum(len(group.items) for group in groups) < before:
            raise _ImagesLostError
        return mean_and_error([float(self._found(item, part)["score"]) for group in groups for item in group.items])

    def _scores(self, batch: Batch, items: list[Item], radius: int) -> list[float]:
        chosen = torch.tensor([self._found(item)["target"] for item in items], device=batch.images.device)
        if all(self.store.holds(self.context, item) for item in items):
            maps = torch.stack([self.store.load(self.context, item) for item in items]).to(batch.images.device)
        else:  # removed once the outcome was found, which more images may have made another one
            maps = self._maps(batch, chosen)
        return self.judge(batch.images, chosen, maps, radius)

    def _maps(self, batch: Batch, chosen: Tensor) -> Tensor:
        maps = self.method.attribute(
            batch.images, chosen, image_ids=batch.ids, internal_batch_size=self.internal_batch_size
        )
        return maps.detach().mean(1, keepdim=True)

    def _found(self, item: Item, part: str = "") -> dict[str, Any]:
        found = self.records.get(self.context, item, part)
        assert found is not None  # settled before
        return found


_Explained = tuple[Tensor, Tensor, Tensor]
"""Images (B, C, H, W), targets (B,), and the channel means (B, 1, H, W) of their maps."""


@dataclass(frozen=True)
class _Faithfulness:
    """Insertion minus deletion of filtered maps."""

    model: Model
    protocol: str
    steps: int
    mean_colour: float | Sequence[float] | Tensor | None
    internal_batch_size: int | None
    signed: bool

    def __call__(self, images: Tensor, targets: Tensor, maps: Tensor, radius: int | None) -> list[float]:
        """Of every image, its map filtered; None leaves it as it is."""
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
        """Of all images."""
        return mean_and_error([score for batch in batches for score in self(*batch, radius)])


def _search(mean: Callable[[int], Estimate], side: int, advance: UpTo) -> dict[int, Estimate]:
    """The curve, ascending by radius: the coarse radii, then the gaps beside the best one halved."""
    curve: dict[int, Estimate] = {}
    unknown: Sequence[int] = _coarse_radii(side)
    while unknown:
        for radius in unknown:
            curve[radius] = mean(radius)
            advance(1)
        unknown = _next_radii(curve)
    advance.finish()
    return dict(sorted(curve.items()))


def _outcome(
    model: str, method: str, judge: _Faithfulness, curve: dict[int, Estimate], unfiltered: Estimate
) -> TunedCutoff:
    passes = 2 * (judge.steps + 1) * (len(curve) + 1)
    return TunedCutoff(model, method, _best(curve), curve, unfiltered, judge.protocol, passes, judge.signed)


def _tries(side: int) -> int:
    """About how many radii the search will try."""
    coarse = len(_coarse_radii(side))
    return coarse + 2 * max(1, coarse - 2)


def _figure(tuning: Tuning) -> Figure:
    results = tuning.results
    first = next(iter(results.values()))
    filtered = "the signed filter's" if first.signed else "FORGrad's"
    return cutoffs_figure(
        {name: CutoffCurve(found.curve, found.unfiltered, found.cutoff) for name, found in results.items()},
        title=f"{first.model}: {filtered} cut-off, {max(found.unfiltered.n for found in results.values())} images",
        score=f"insertion − deletion ({first.protocol})",
    )


def _explained(loader: Iterable[tuple[Tensor, Tensor]], method: Any) -> list[_Explained]:
    batches: list[_Explained] = []
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
