"""``frequency``: measure which frequencies a model's predictions depend on; ``occlude`` is its first part."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ...options import read_options
from ..arguments import add_batches, add_folder, add_model, add_out, names_of
from ..flags import add_flag, add_flags, flag_of, given

if TYPE_CHECKING:
    from rich.table import Table

    from ...runs.batches import Failure
    from ...runs.frequency_results import FrequencyStudy
    from ...runs.occlude import OcclusionStudy

_PARTS = ("occlusion", "attribution")
_OCCLUSION = "fampe_fast.robustness.occluded_frequency:OccludedFrequency"
_ATTRIBUTION = "fampe_fast.robustness.frequency_attribution:FrequencyAttribution"
_FILES = "fampe_fast.runs.frequency:frequency_files"


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command's arguments, under its name and under the older name ``occlude``."""
    words = "measure which frequencies a model's predictions depend on, and where in the images"
    _add(commands, "frequency", _PARTS, words)
    _add(commands, "occlude", _PARTS[:1], "measure which bands predictions depend on (frequency --parts occlusion)")


def _add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, parts: tuple[str, ...], words: str
) -> None:
    parser = commands.add_parser(name, help=words)
    add_out(parser, f"fampe_{name}")
    add_folder(parser)
    add_model(parser)
    add_batches(parser)
    parser.add_argument(
        "--parts",
        type=names_of(_PARTS, "part"),
        default=list(parts),
        metavar="NAMES",
        help="one or both, comma-separated, of: occlusion (the drop without each band), attribution (the evidence of "
        f"every frequency, with sign, direction and place) (default: {','.join(parts)})",
    )
    group = parser.add_argument_group("bands")
    for option in read_options(_OCCLUSION):
        both = "default: logit; for occlusion alone: probability" if option.name == "score" else ""
        add_flag(group, "method", option, default=both)
    group = parser.add_argument_group("attribution")
    add_flags(group, "attribution", read_options(_ATTRIBUTION, ["kind", "passes"]))
    add_flags(group, "files", read_options(_FILES, ["sectors", "edges", "pictures"]))
    group.add_argument(
        "--beside",
        action="append",
        default=[],
        type=Path,
        metavar="DIR",
        help="output folder of another model's run on the same images, drawn in the same figure; repeatable",
    )
    group = parser.add_argument_group("intervals of the mean")
    add_flags(group, "run", read_options("fampe_fast.runs.occlude:occlude_files", ["confidence", "seed"]))
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Measure a folder's images, and print the drop and the evidence of each band."""
    from rich.markup import escape

    from ...files import FOLDER
    from ...robustness import FrequencyAttribution, OccludedFrequency
    from ...runs.frequency import frequency_files, frequency_outputs
    from ...runs.frequency_results import read_study
    from ...runs.occlude import occlude_files, occlusion_outputs
    from ...runs.records import RECORDS
    from ..model_and_methods import check_all_outputs, chosen_images, classifier_of
    from ..output import Bar, closing, console, error_console, print_earlier, print_failure, print_left_out

    attributed = "attribution" in arguments.parts
    options = {"score": "logit" if attributed else "probability", **given(arguments, "method")}
    shared = {name: value for name, value in options.items() if name in ("score", "include_dc", "bounds")}
    own = given(arguments, "attribution")
    unused = [*own, *given(arguments, "files"), *(["beside"] if arguments.beside else [])]
    if unused and not attributed:
        raise ValueError(f"{flag_of(unused[0])} needs the attribution: add it to --parts")
    # Refused before the model is loaded.
    rings = OccludedFrequency(lambda pixels: pixels, **options).bands
    FrequencyAttribution(lambda pixels: pixels, **shared, **own)
    beside = [read_study(folder) for folder in arguments.beside]
    images = chosen_images(arguments)
    paths, out = images.paths, arguments.out
    outputs = {"occlusion": occlusion_outputs(out), "attribution": frequency_outputs(out)}
    inputs = [*paths, *(folder / "frequency.json" for folder in arguments.beside)]
    check_all_outputs(arguments, [output for part in arguments.parts for output in outputs[part]], inputs)
    classifier = classifier_of(arguments)
    screen, errors = console(), error_console()
    print_left_out(errors, images.found)
    told: set[Path] = set()
    with Bar(errors, "frequency", len(paths) * len(arguments.parts)) as advance:

        def failed(failure: Failure) -> None:
            if failure.path not in told:
                print_failure(errors, failure)
            told.add(failure.path)
            advance()

        common = {
            "targets": images.targets(classifier),
            "image_ids": images.image_ids,
            "batch_size": arguments.batch_size,
            "internal_batch_size": arguments.internal_batch_size,
            **given(arguments, "run"),
            "on_images": advance,
            "on_failure": failed,
        }
        occlusion = study = None
        if attributed:  # the first, as it has more to refuse
            method = FrequencyAttribution(classifier, **shared, **own)
            study = frequency_files(
                classifier, method, paths, out, rings=rings, beside=beside, **given(arguments, "files"), **common
            )
        if "occlusion" in arguments.parts:
            occlusion = occlude_files(classifier, OccludedFrequency(classifier, **options), paths, out, **common)
    print_earlier(errors, min(part.earlier for part in (occlusion, study) if part is not None), len(paths), out)
    done = {}
    if occlusion is not None:
        done["occlusion"] = len(occlusion.paths)
        if occlusion.paths:
            screen.print(_table_of_drops(occlusion))
    if study is not None:
        done["attribution"] = len(study.images)
        if study.images:
            screen.print(_table_of_evidence(study))
    for output in (output for part, count in done.items() if count for output in outputs[part]):
        if output.kind not in (FOLDER, RECORDS) and output.path.exists():  # no places if no picture was asked for
            screen.print(f"wrote {escape(str(output.path))}", soft_wrap=True)
    return closing(errors, min(done.values()), len(paths))


def _table_of_drops(study: OcclusionStudy) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(
        "band", "radius", "mean drop", f"{study.confidence:.0%} interval",
        title=f"{len(study.paths)} images, {escape(str(study.settings['model']))}: drop in {study.settings['score']} "
        "without one band" + (" (median radii)" if study.settings["spacing"] == "energy" else ""),
    )  # fmt: skip
    edges, interval = study.median_edges().tolist(), study.interval()
    for k, drop in enumerate(study.mean_drops().tolist()):
        span = "" if interval is None else f"{interval[0, k]:+.4f} to {interval[1, k]:+.4f}"
        table.add_row(str(k + 1), f"{edges[k]:.1f} to {edges[k + 1]:.1f}", f"{drop:+.4f}", span)
    return _right_aligned(table)


def _table_of_evidence(study: FrequencyStudy) -> Table:
    from rich.markup import escape
    from rich.table import Table

    count, name = len(study.images), escape(str(study.settings["model"]))
    gap = sum(abs(image.gap) for image in study.images) / count
    table = Table(
        "radius", "share of energy", "evidence", "share of evidence", f"{study.confidence:.0%} interval",
        title=f"{count} images, {name}: evidence by octave, as {study.settings['score']}",
        caption=f"means over images; the integrals lack {gap:.2g} of each score's difference; rank correlation of "
        f"energy and evidence in the high band: {study.connection('high')}",
    )  # fmt: skip
    edges = study.edges["octaves"]
    energy, evidence = study.energy("octaves").mean(0).tolist(), study.evidence("octaves").mean(0).tolist()
    reliance = study.spread(study.reliance("octaves"))
    for k, share in enumerate(reliance.mean.tolist()):
        span = ""
        if reliance.interval is not None:
            span = f"{reliance.interval[0, k]:+.3f} to {reliance.interval[1, k]:+.3f}"
        table.add_row(
            f"{edges[k]:.4g} to {edges[k + 1]:.4g}", f"{energy[k]:.4f}", f"{evidence[k]:+.3f}", f"{share:+.3f}", span
        )
    return _right_aligned(table)


def _right_aligned(table: Table) -> Table:
    for column in table.columns:
        column.justify = "right"
    return table
