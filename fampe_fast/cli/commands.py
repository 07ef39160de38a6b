"""The subcommands: arguments in, pipelines called, tables out."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from . import DONE, SOME_FAILED, UNUSABLE

if TYPE_CHECKING:
    from ..methods.base import AttributionMethod
    from ..metrics import Estimate
    from ..models.classifier import Classifier
    from ..pipelines.batches import Failure


def demo(arguments: argparse.Namespace) -> int:
    """Explain generated images and print what was found."""
    from ..pipelines.demo import run_demo

    rows, picture = run_demo(arguments.out, images=arguments.images, seed=arguments.seed)
    table = Table("generated as", "seen as", "probability", "cut-off", "insertion", "deletion", "mass inside", "object")
    for column in table.columns[2:]:
        column.justify = "right"
    for row in rows:
        table.add_row(
            row.true_class,
            row.class_name,
            f"{row.probability:.3f}",
            f"{row.cutoff:.0f}",
            f"{row.insertion:.3f}",
            f"{row.deletion:.3f}",
            f"{row.mass_inside:.0%}",
            f"{row.object_share:.0%}",
        )
    console = _console()
    console.print(table)
    console.print(
        "[dim]mass inside: share of the map's mass on the object; object: share of the image it covers, which a map\n"
        "that knows nothing would score. Cut-off in cycles over the image. Insertion, deletion: RISE's protocol.[/]"
    )
    console.print(f"picture: {escape(str(picture))}", soft_wrap=True)
    return DONE


def explain(arguments: argparse.Namespace) -> int:
    """Explain image files."""
    from ..images import find_images
    from ..methods.registry import create_method
    from ..pipelines.explain import Explanation, explain_files

    paths = find_images(arguments.images)
    options = _options_by_method(arguments, [arguments.method])[arguments.method]
    classifier = _classifier(arguments)
    if arguments.target is not None:
        classifier.class_name(_in_range(arguments.target, classifier))
    method = create_method(arguments.method, classifier, **options)
    console, errors = _console(), Console(stderr=True)
    done: list[Explanation] = []
    with _bar(errors, arguments.method, len(paths)) as advance:

        def failed(failure: Failure) -> None:
            errors.print(f"[red]failed[/] {escape(str(failure.path))}: {escape(failure.reason)}", soft_wrap=True)
            advance()

        def finished(result: Explanation) -> None:
            done.append(result)
            advance()

        explain_files(
            classifier,
            method,
            paths,
            arguments.out,
            target=arguments.target,
            batch_size=arguments.batch_size,
            internal_batch_size=arguments.internal_batch_size,
            on_result=finished,
            on_failure=failed,
        )
    table = Table("image", "class", "probability", "cut-off", "seconds", "picture")
    for column in table.columns[2:5]:
        column.justify = "right"
    for result in done:
        table.add_row(
            escape(result.path.name),
            escape(f"{result.target} {result.class_name}"),
            f"{result.probability:.3f}",
            "" if result.cutoff is None else f"{result.cutoff:.0f}",
            f"{result.seconds:.1f}",
            escape(str(result.picture)),
        )
    console.print(table)
    return _closing(errors, len(done), len(paths))


def evaluate(arguments: argparse.Namespace) -> int:
    """Score methods on a folder of images."""
    from ..images import find_images
    from ..methods.registry import create_method
    from ..pipelines.evaluate import evaluate_files
    from ..pipelines.labels import labels_of, read_labels

    if not arguments.images.is_dir():
        raise ValueError(f"{arguments.images} is not a folder; evaluate takes a folder of images")
    paths = find_images(arguments.images)[: arguments.limit]
    labels = None if arguments.labels is None else read_labels(arguments.labels)
    options = _options_by_method(arguments, arguments.methods)
    classifier = _classifier(arguments)
    targets = None if labels is None else labels_of(paths, labels, classifier.num_classes)
    methods: dict[str, AttributionMethod] = {
        name: create_method(name, classifier, **options[name]) for name in arguments.methods
    }
    console, errors = _console(), Console(stderr=True)
    with _bar(errors, "evaluate", len(paths)) as advance:

        def failed(failure: Failure) -> None:
            errors.print(f"[red]failed[/] {escape(str(failure.path))}: {escape(failure.reason)}", soft_wrap=True)
            advance()

        result = evaluate_files(
            classifier,
            methods,
            paths,
            arguments.out,
            targets=targets,
            protocol=arguments.protocol,
            metric_steps=arguments.metric_steps,
            batch_size=arguments.batch_size,
            internal_batch_size=arguments.internal_batch_size,
            on_images=advance,
            on_failure=failed,
        )
    count, first = len(result.paths), arguments.methods[0]
    table = Table(
        "method", "insertion", "deletion", "ins. - del.", f"ins. vs {first}", "s / image",
        title=f"{count} images, {escape(classifier.name)}, protocol {result.protocol}, mean ± standard error",
    )  # fmt: skip
    for column in table.columns[1:]:
        column.justify = "right"
    for name, row in result.summary().items():
        table.add_row(
            name,
            _estimate(row["insertion"]),
            _estimate(row["deletion"]),
            _estimate(row["faithfulness"]),
            "" if name == first else _estimate(row["insertion_minus_first"], signed=True),
            f"{result.scores[name].seconds / count:.2f}",
        )
    console.print(table)
    if count:
        for name in ("scores.json", "contact_sheet.png"):
            console.print(f"wrote {escape(str(arguments.out / name))}", soft_wrap=True)
    return _closing(errors, count, len(paths))


def doctor(arguments: argparse.Namespace) -> int:
    """Report on the installation."""
    from ..pipelines.doctor import examine

    findings = examine()
    table = Table("what", "found", show_header=False, box=None)
    for finding in findings:
        table.add_row(finding.topic, escape(finding.text) if finding.healthy else f"[red]{escape(finding.text)}[/]")
    _console().print(table)
    return DONE if all(finding.healthy for finding in findings) else SOME_FAILED


class _bar:
    """A progress bar over files that costs nothing where standard error is no terminal."""

    def __init__(self, console: Console, label: str, total: int) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            console=console, transient=True, disable=not console.is_terminal,
        )  # fmt: skip
        self._task = self._progress.add_task(label, total=total)

    def __enter__(self) -> _bar:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def __call__(self, count: int = 1) -> None:
        self._progress.advance(self._task, count)


def _classifier(arguments: argparse.Namespace) -> Classifier:
    import torch

    from ..models import load_classifier

    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    return load_classifier(
        arguments.model,
        weights=arguments.weights,
        mean=arguments.mean,
        std=arguments.std,
        interpolation=arguments.interpolation,
        device=device,
        model_args=dict(arguments.model_arg),
    )


def _options_by_method(arguments: argparse.Namespace, methods: list[str]) -> dict[str, dict[str, Any]]:
    from ..methods.registry import options_of

    given = {name: getattr(arguments, name) for name in ("alpha", "steps", "samples", "passes", "seed")}
    chosen = {name: value for name, value in given.items() if value is not None} | dict(arguments.option)
    unused = [name for name in chosen if not any(name in options_of(method) for method in methods)]
    if unused:
        raise ValueError(f"{', '.join(methods)}: no such option(s): {', '.join(unused)}")
    return {method: {k: v for k, v in chosen.items() if k in options_of(method)} for method in methods}


def _in_range(target: int, classifier: Classifier) -> int:
    if target < 0 or (classifier.num_classes is not None and target >= classifier.num_classes):
        raise ValueError(f"--target {target} is out of range: {classifier.name} has {classifier.num_classes} classes")
    return target


def _estimate(estimate: Estimate, *, signed: bool = False) -> str:
    mean = f"{estimate.mean:+.3f}" if signed else f"{estimate.mean:.3f}"
    return mean if estimate.standard_error is None else f"{mean} ± {estimate.standard_error:.3f}"


def _closing(errors: Console, done: int, total: int) -> int:
    if done == total:
        return DONE
    errors.print(f"{total - done} of {total} images failed", style="red")
    return SOME_FAILED if done else UNUSABLE


def _console() -> Console:
    # A pipe has no width of its own: give tables the room they need there.
    console = Console()
    return console if console.is_terminal else Console(width=160)
