"""Find how few model passes give the areas of insertion and deletion: schemes against curves of every step.

Full curves are measured once, for several methods, and kept with ``--curves``; every scheme then reads from them the
steps it would have measured, so that a study of many schemes costs no further pass. Uniform grids and grids that are
denser where curves begin, with the trapezoid rule or a monotone cubic (Fritsch and Carlson 1980, as scipy's
``PchipInterpolator``), and the package's own refinement, by budget and by tolerance. Errors of areas are given per
image and curve; those of means are the largest over methods and the two curves; differences are those of insertion
minus deletion between two methods, image by image and in the mean. ``--half`` judges by every other image alone, so
that what was chosen on one half can be confirmed on the other.

    python -m benchmarks.quality.metric_passes PHOTOS --labels labels.json --limit 16 --model ... --out results
    python -m benchmarks.quality.metric_passes --curves results/curves.pt --half second --out results
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fampe_fast.cli.arguments import add_model, positive
from fampe_fast.methods import create_method
from fampe_fast.methods.registry import options_of
from fampe_fast.metrics import PROTOCOLS, insertion_deletion
from fampe_fast.metrics.refinement import refine

from ..common.results import table, write
from .photographs import add_photographs, photographs

METHODS = ("fampe", "saliency", "attexplore")
BUDGETS = (9, 17, 25, 33, 49, 65)
TOLERANCES = (0.02, 0.01, 0.005, 0.0025)


class Approximation(NamedTuple):
    """N curves as a scheme approximates them."""

    curves: Tensor
    passes: Tensor
    error: Tensor | None = None


Scheme = Callable[[Tensor], Approximation]


@dataclass(frozen=True)
class Judgement:
    """A scheme's errors, of areas in [0, 1].

    Attributes:
        scheme: its name.
        passes: measured steps per curve, in the mean.
        bias: mean error of an image's area.
        rms: root mean square of it.
        largest: of its absolute values.
        mean: largest error of a method's mean area over the images.
        difference_rms: of the difference between two methods, image by image.
        difference_mean: largest error of its mean over the images.
        estimate: the mean of the scheme's own estimates, where it makes any.
        covered: the share of the areas whose error is at most the estimate.
    """

    scheme: str
    passes: float
    bias: float
    rms: float
    largest: float
    mean: float
    difference_rms: float
    difference_mean: float
    estimate: float | None = None
    covered: float | None = None


def area(curves: Tensor) -> Tensor:
    return (curves[..., 1:] + curves[..., :-1]).mean(-1) / 2


def fixed_grid(count: int, power: float = 1.0, *, cubic: bool = False) -> Scheme:
    """Measure the same steps of all curves: ``count`` of them at ``K * u^power``, u uniform."""

    def scheme(curves: Tensor) -> Approximation:
        last = curves.shape[1] - 1
        grid = (torch.linspace(0, 1, count, dtype=torch.float64) ** power * last).round().long().unique()  # type: ignore[no-untyped-call]
        number = torch.arange(last + 1)
        if cubic:
            from scipy.interpolate import PchipInterpolator  # type: ignore[import-untyped]

            found = torch.from_numpy(PchipInterpolator(grid.numpy(), curves[:, grid].double().numpy(), axis=1)(number))
        else:
            right = torch.searchsorted(grid, number).clamp(min=1)
            low, high = grid[right - 1], grid[right]
            share = (number - low).double() / (high - low)
            found = torch.lerp(curves[:, low].double(), curves[:, high].double(), share)
        return Approximation(found, torch.full((len(curves),), len(grid)))

    return scheme


def refined(passes: int | None = None, tolerance: float | None = None) -> Scheme:
    """Measure as the package does."""

    def scheme(curves: Tensor) -> Approximation:
        every = torch.arange(curves.shape[1]).expand(curves.shape)
        found = refine(lambda wanted: curves, every, passes=passes, tolerance=tolerance)
        return Approximation(found.curves, found.measured.sum(1), found.error)

    return scheme


def schemes() -> Iterator[tuple[str, Scheme]]:
    for count in BUDGETS:
        yield f"uniform, trapezoid, {count}", fixed_grid(count)
        yield f"uniform, monotone cubic, {count}", fixed_grid(count, cubic=True)
        yield f"u^1.5, trapezoid, {count}", fixed_grid(count, 1.5)
        yield f"u^1.5, monotone cubic, {count}", fixed_grid(count, 1.5, cubic=True)
        yield f"u^2, monotone cubic, {count}", fixed_grid(count, 2.0, cubic=True)
        yield f"passes={count}", refined(count)
    for tolerance in TOLERANCES:
        yield f"tolerance={tolerance:g}", refined(tolerance=tolerance)


def judge(name: str, scheme: Scheme, full: Tensor) -> Judgement:
    """Compare a scheme with the full curves.

    Args:
        name: of the scheme.
        scheme: makes curves of curves.
        full: (M, N, 2, K + 1): methods, images, insertion and deletion, steps.
    """
    made = scheme(full.flatten(0, 2).double())
    error = (area(made.curves) - area(full.flatten(0, 2).double())).reshape(full.shape[:3])
    faithfulness = error[..., 0] - error[..., 1]
    pairs = [faithfulness[a] - faithfulness[b] for a, b in combinations(range(len(full)), 2)]
    differences = torch.stack(pairs) if pairs else faithfulness.new_zeros((1, 1))
    covered = None if made.error is None else float((error.flatten().abs() <= made.error).double().mean())
    return Judgement(
        name,
        float(made.passes.double().mean()),
        float(error.mean()),
        float(error.square().mean().sqrt()),
        float(error.abs().max()),
        float(error.mean(1).abs().max()),
        float(differences.square().mean().sqrt()),
        float(differences.mean(1).abs().max()),
        None if made.error is None else float(made.error.mean()),
        covered,
    )


def collect(model: nn.Module, image: Tensor, target: int, number: int, found: argparse.Namespace) -> Tensor:
    """Measure an image's (1, C, H, W) full curves, (M, 1, 2, K + 1), with the random numbers of its ``number``."""
    curves = []
    for name in found.methods:
        given = {"steps": found.steps, "samples": found.samples}
        method = create_method(name, model, **{k: v for k, v in given.items() if k in options_of(name)})
        maps = method.attribute(image, target=target, image_ids=torch.tensor([number]))
        areas = insertion_deletion(
            model, image, maps, target, protocol=found.protocol, internal_batch_size=found.internal_batch_size
        )
        curves.append(torch.stack([areas.insertion_curves, areas.deletion_curves], 1).cpu())
    return torch.stack(curves)


def measured(arguments: argparse.Namespace) -> Tensor:
    """Measure the full curves of all images, (M, N, 2, K + 1)."""
    classifier, _, found = photographs(arguments)
    parts = [collect(classifier, image, target, number, arguments) for number, (image, target) in enumerate(found)]
    return torch.cat(parts, 1)


def markdown(rows: list[Judgement], images: int, methods: int, protocol: str) -> str:
    """Tabulate errors in thousandths."""
    titles = ["scheme", "passes per curve", "bias", "RMS", "largest", "of a mean", "of a difference (RMS)"]
    titles += ["of a mean difference", "own estimate", "covers"]
    cells = []
    for row in rows:
        numbers = (row.bias, row.rms, row.largest, row.mean, row.difference_rms, row.difference_mean)
        own = ["", ""]
        if row.estimate is not None and row.covered is not None:
            own = [f"{1e3 * row.estimate:.2f}", f"{row.covered:.0%}"]
        cells.append([row.scheme, f"{row.passes:.1f}", *(f"{1e3 * value:.2f}" for value in numbers), *own])
    about = f"Errors in thousandths of an area in [0, 1]; {images} images, {methods} methods, protocol `{protocol}`."
    return "\n".join([about, "", *table(titles, cells)]) + "\n"


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description="Errors of insertion and deletion by number of model passes.")
    add_photographs(found, optional=True)  # unless --curves is given
    add_model(found)
    found.add_argument("--methods", nargs="+", default=list(METHODS), help="names of the methods (%(default)s)")
    found.add_argument("--steps", type=positive, default=5, help="steps of the path methods (%(default)s)")
    found.add_argument("--samples", type=positive, default=8, help="samples of the path methods (%(default)s)")
    found.add_argument("--protocol", choices=list(PROTOCOLS), default="rise")
    found.add_argument("--internal-batch-size", type=positive, help="images per model pass")
    found.add_argument("--curves", type=Path, help="read the curves of an earlier run, and measure none")
    found.add_argument(
        "--half", choices=("first", "second"), help="use only every other image, from the first or the second on"
    )
    found.add_argument("--out", type=Path, required=True, help="folder of metric_passes.json, .md and curves.pt")
    return found


def main(given: list[str] | None = None) -> None:
    command = parser()
    arguments = command.parse_args(given)
    arguments.command = "metric_passes"
    if arguments.curves is None and arguments.images is None:
        command.error("give a folder of images, or --curves")
    if arguments.curves is not None:
        kept = torch.load(arguments.curves, weights_only=True)
    else:
        kept = {"curves": measured(arguments), "methods": arguments.methods, "protocol": arguments.protocol}
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.save(kept, arguments.out / "curves.pt")
    full = kept["curves"]
    if arguments.half is not None:
        full = full[:, arguments.half == "second" :: 2]
    rows = [judge(name, scheme, full) for name, scheme in schemes()]
    about = {"protocol": kept["protocol"], "methods": kept["methods"], "images": full.shape[1], "half": arguments.half}
    text = markdown(rows, full.shape[1], len(full), kept["protocol"])
    write({**about, "schemes": rows}, arguments.out / "metric_passes.json", text)
    print(text)


if __name__ == "__main__":
    main()
