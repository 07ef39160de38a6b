"""``verify``: check a batch run and compute some of its maps again, or compute the map of a service's record again."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..arguments import add_model, option_words

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from ...answers.comparison import Comparison
    from ...answers.result import Result
    from ...batch.plan import Plan
    from ...batch.recompute import Recomputed, Recomputer
    from ...batch.storage import Storage
    from ...batch.verify import Checked

REPORT = "verify report"
"""The kind of the report; that of an audit is a record's."""

_OF_THE_MODEL = (
    "model", "weights", "model_arg", "mean", "std", "input_size", "class_names", "interpolation", "keep_batch_norm",
    "model_output",
)  # fmt: skip


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command's arguments."""
    parser = commands.add_parser("verify", help="check a batch run or a service's record by computing maps again")
    parser.add_argument(
        "dest", nargs="?", metavar="DEST", help="folder or URL of a batch run; left out for a service's record"
    )
    parser.add_argument(
        "--sample",
        type=_count,
        default=16,
        metavar="N",
        help="number of rows to compute again, each with its batch; 0 loads no model (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the sample (default: %(default)s)")
    one = parser.add_mutually_exclusive_group()
    one.add_argument("--image-id", type=_count, metavar="N", help="compute only this image's map again")
    one.add_argument(
        "--record",
        type=Path,
        metavar="FILE",
        help="compute only the map of this record again, and compare it with the record",
    )
    parser.add_argument(
        "--image", type=Path, metavar="FILE", help="image file of a service's record, which does not contain it"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the report as JSON; with --image-id, a record for --record"
    )
    parser.add_argument("--trust-model", action="store_true", help="load the model even if it is a program")
    add_model(parser, title="model of a service's record (a batch run's is in its plan; --device is for both)")
    parser.set_defaults(run=partial(run, parser))


def run(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    """Check the files and a sample of the maps, or one map, and print a table."""
    if arguments.dest is None:
        return _audit_service(arguments)
    from ...batch.audit import KIND
    from ...batch.plan import plan_of
    from ...batch.storage import open_storage
    from ...files import Output, check_outputs
    from ..output import console, error_console

    if arguments.image is not None:
        raise ValueError("--image belongs to a service's record, which is checked without DEST")
    of_model = {key: value for key, value in vars(arguments).items() if key in _OF_THE_MODEL}
    words = option_words(parser, of_model)
    if words:
        raise ValueError(f"{words[0]}: the model of a run is in its plan; leave out this option, or DEST")
    dest = open_storage(arguments.dest)
    plan = plan_of(dest)
    alone = arguments.image_id is not None or arguments.record is not None
    if arguments.json is not None:
        inputs = [] if arguments.record is None else [arguments.record]
        check_outputs([Output(arguments.json, KIND if alone else REPORT)], inputs)
    screen, errors = console(), error_console()
    return (_audit if alone else _verify)(arguments, dest, plan, screen, errors)


def _recomputer(arguments: argparse.Namespace, dest: Storage, plan: Plan) -> Recomputer:
    from ...batch.recompute import Recomputer
    from ..model_and_methods import device_of

    device = device_of(arguments.device or plan.device)
    return Recomputer(dest, plan, device=device, trust_model=arguments.trust_model)


# A whole run ----------------------------------------------------------------------------------------------------------


def _verify(arguments: argparse.Namespace, dest: Storage, plan: Plan, screen: Console, errors: Console) -> int:
    from rich.markup import escape

    from ...batch.verify import check_files, check_sample
    from .. import DONE, SOME_FAILED
    from ..output import Bar

    with Bar(errors, "shards", plan.shards) as advance:
        checked = check_files(dest, plan, on_shard=advance)
    rows: list[Recomputed] = []
    changed: list[str] = []
    if arguments.sample and checked.entries:
        again = _recomputer(arguments, dest, plan)
        try:
            with Bar(errors, "maps again", arguments.sample) as advance:
                rows = check_sample(
                    dest,
                    plan,
                    checked,
                    again,
                    sample=arguments.sample,
                    seed=arguments.seed,
                    on_row=lambda row: advance(),
                )
            changed = again.differences_of(sorted({row.shard for row in rows}))
        finally:
            again.close()
    if rows:
        screen.print(_table(rows))
    for fault in checked.faults:
        where = "" if fault.shard is None else f"shard {fault.shard}: "
        screen.print(f"[red]wrong[/] {escape(where + fault.reason)}", soft_wrap=True, highlight=False)
    for note in (*checked.notes, *_kind_of_comparison(changed, bool(rows))):
        screen.print(escape(note), soft_wrap=True, highlight=False)
    outcomes: list[str] = [row.comparison.outcome for row in rows]
    good = not checked.faults and all(row.comparison.right for row in rows)
    screen.print(
        f"{len(checked.entries)} of {plan.shards} shards are right, {plan.images} images planned, "
        f"{sum(entry.errors for entry in checked.entries)} of them without a map; "
        f"{_counted(outcomes)}: {'all right' if good else 'something is not right'}",
        soft_wrap=True,
        highlight=False,
    )
    _write_report(arguments, plan, checked, rows, changed, good)
    return DONE if good else SOME_FAILED


def _counted(outcomes: list[str]) -> str:
    counts = {outcome: outcomes.count(outcome) for outcome in dict.fromkeys(outcomes)}
    words = ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)
    return f"computed again: {words}" if words else "none computed again"


def _kind_of_comparison(changed: list[str], compared: bool) -> list[str]:
    """Say whether the maps must be bitwise equal, and otherwise how close they must be and why."""
    from ...answers.comparison import CORRELATION, LARGEST

    if not compared:
        return []
    if not changed:
        return ["device, processor and versions are the same: the maps must be bitwise equal"]
    return [
        f"compared with a tolerance ({'; '.join(changed)}): alike is a correlation of "
        f"{CORRELATION} at least and a largest difference of {LARGEST:.0%} of the peak"
    ]


def _table(rows: list[Recomputed]) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table("image id", "shard", "outcome", "correlation", "largest difference", "image", "what differs")
    for column in (*table.columns[:2], *table.columns[3:5]):
        column.justify = "right"
    for row in rows:
        found = row.comparison
        table.add_row(
            str(row.image_id),
            str(row.shard),
            found.outcome,
            *_distance(found),
            escape(row.address.rpartition("/")[2]),
            escape(found.reason),
        )
    return table


def _distance(found: Comparison) -> tuple[str, str]:
    correlation = "" if found.correlation is None else f"{found.correlation:.6f}"
    return correlation, "" if found.largest is None else f"{found.largest:.2e}"


def _write_report(
    arguments: argparse.Namespace,
    plan: Plan,
    checked: Checked,
    rows: list[Recomputed],
    changed: list[str],
    good: bool,
) -> None:
    from ...files import json_content, write_atomically

    if arguments.json is None:
        return
    content = {
        "plan": plan.key,
        "right": good,
        "shards": plan.shards,
        "right_shards": len(checked.entries),
        "images": plan.images,
        "errors": sum(entry.errors for entry in checked.entries),
        "faults": [fault._asdict() for fault in checked.faults],
        "notes": checked.notes,
        "surroundings": changed,
        "rows": [
            {"image_id": row.image_id, "shard": row.shard, "image": row.address, **row.comparison._asdict()}
            for row in rows
        ],
    }
    write_atomically(arguments.json, json_content(REPORT, content).encode())


# One map --------------------------------------------------------------------------------------------------------------


def _audit(arguments: argparse.Namespace, dest: Storage, plan: Plan, screen: Console, errors: Console) -> int:
    from rich.markup import escape

    from ...answers.result import result_values
    from ...batch.audit import KIND, read_record, record_differences, record_of
    from ...batch.plan import position_of, read_rows
    from ...batch.shards import finished_shards, shard_metadata
    from ...files import json_content, write_atomically
    from .. import DONE, SOME_FAILED

    record = None if arguments.record is None else read_record(arguments.record)
    image_id = arguments.image_id if record is None else record["image_id"]
    position = position_of(dest, plan, image_id)
    shard = position // plan.rows_per_shard
    if shard not in finished_shards(dest):
        raise ValueError(f"image {image_id} is in shard {shard}, which is not finished yet")
    row = read_rows(dest, plan, shard)[position - plan.rows_of(shard).start]
    described = shard_metadata(dest, shard)
    again = _recomputer(arguments, dest, plan)
    try:
        (found,) = again.rows(shard, [position])
        changed = again.differences_of([shard])
    finally:
        again.close()
    now = record_of(plan, row, found.stored, described)
    wrong = [] if record is None else record_differences(record, now)
    screen.print(_two_columns(f"image {image_id}, {row.address}", found.stored, found.found))
    for reason in wrong:
        screen.print(f"[red]wrong[/] {escape(reason)}", soft_wrap=True, highlight=False)
    _print_comparison(screen, found.comparison, changed)
    if arguments.json is not None:
        report: dict[str, Any] = {
            **now,
            "computed_again": result_values(found.found),
            "comparison": found.comparison._asdict(),
        }
        write_atomically(arguments.json, json_content(KIND, report).encode())
    return DONE if not wrong and found.comparison.right else SOME_FAILED


def _two_columns(title: str, stored: Result | Mapping[str, Any], found: Result) -> Table:
    from rich.markup import escape
    from rich.table import Table

    from ...answers.result import result_values

    before = stored if isinstance(stored, Mapping) else result_values(stored)
    made = result_values(found)
    table = Table("", "stored", "computed again", title=escape(title))
    for name in dict.fromkeys((*before, *made)):
        table.add_row(name, *(escape(_text(values.get(name))) for values in (before, made)))
    return table


def _print_comparison(screen: Console, comparison: Comparison, changed: list[str]) -> None:
    from rich.markup import escape

    for note in _kind_of_comparison(changed, True):
        screen.print(escape(note), soft_wrap=True, highlight=False)
    correlation, largest = _distance(comparison)
    screen.print(
        escape(
            f"{comparison.outcome}{f': {comparison.reason}' if comparison.reason else ''}"
            + (f"; correlation {correlation}, largest difference {largest} of the peak" if correlation else "")
        ),
        soft_wrap=True,
        highlight=False,
    )


def _audit_service(arguments: argparse.Namespace) -> int:
    from ...answers.result import result_values
    from ...files import Output, check_outputs, json_content, write_atomically
    from ...models.checkpoints import check_trusted
    from ...serve.recheck import recheck
    from ...serve.record import KIND, read_record
    from .. import DONE, SOME_FAILED
    from ..model_and_methods import classifier_of
    from ..output import console

    if arguments.record is None or arguments.image is None:
        raise ValueError("give DEST of a batch run, or --record and --image of a service's reply")
    record = read_record(arguments.record)
    if arguments.json is not None:
        check_outputs([Output(arguments.json, KIND)], [arguments.record, arguments.image])
    check_trusted(arguments.model, arguments.trust_model)
    image = arguments.image.read_bytes()
    found = recheck(record, image, classifier_of(arguments))
    screen = console()
    values = result_values(found.found)
    screen.print(_two_columns(f"image {record['image_id']}", {name: record.get(name) for name in values}, found.found))
    _print_comparison(screen, found.comparison, found.changed)
    if arguments.json is not None:
        report = {**record, "computed_again": values, "comparison": found.comparison._asdict()}
        write_atomically(arguments.json, json_content(KIND, report).encode())
    return DONE if found.comparison.right else SOME_FAILED


def _text(value: object) -> str:
    text = "" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be at least 0, got {value}")
    return value
