"""``batch``: explain a data set of any size, in shards, so that an interrupted run can be continued."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..arguments import add_batches, add_model, add_one_method, option_words, positive
from ..flags import add_method_flags, given

if TYPE_CHECKING:
    from rich.console import Console

    from ...batch.local import RunReport
    from ...batch.model_spec import ModelSpec
    from ...batch.plan import Plan
    from ...batch.storage import Storage
    from ...models.classifier import Classifier

SHOWN = 20
"""Shards named one by one."""

# Options that may change from run to run; all others are in the plan.
_OF_A_CLUSTER = ("address", "workers", "gpus_per_worker")
_OF_THE_RUN = (
    "sources",
    "out",
    "device",
    "devices",
    "decoders",
    "part",
    "retry_errors",
    "retry_all_errors",
    "trust_model",
    "plan_only",
    "engine",
    *_OF_A_CLUSTER,
)


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command's arguments."""
    parser = commands.add_parser("batch", help="explain a data set of any size, on one machine or many")
    _add_arguments(parser)
    parser.set_defaults(run=run)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "sources",
        nargs="*",
        metavar="SOURCE",
        help="folders (searched recursively), globs, images, CSV or Parquet tables, or tar files, as paths or URLs "
        "(s3://, gs://); without any, the run that is planned in --out is continued",
    )
    parser.add_argument(
        "--out", default="fampe_batch", metavar="DEST", help="folder or URL for the results (default: %(default)s)"
    )
    add_one_method(parser)
    group = parser.add_argument_group("images")
    group.add_argument(
        "--target",
        type=_target,
        metavar="CLASS",
        help="class index to explain in every image, or model for the model's prediction (default: the source's column "
        "target or label, if there is one)",
    )
    group.add_argument("--sample", type=positive, metavar="N", help="use only N images, drawn at random with --seed")
    group.add_argument(
        "--max-pixels", type=positive, metavar="N", help="refuse images with more pixels (default, maximum: 178956970)"
    )
    group.add_argument(
        "--max-bytes", type=positive, metavar="N", help="refuse files with more bytes (default: 268435456)"
    )
    add_model(parser)
    add_batches(parser, by_device=True)
    group = parser.add_argument_group("shards")
    group.add_argument(
        "--rows-per-shard", type=positive, default=512, metavar="N", help="images per file of maps (default: 512)"
    )
    group.add_argument(
        "--map-dtype",
        choices=("float16", "float32"),
        default="float16",
        help="number type of the stored maps (default: float16)",
    )
    group.add_argument("--overlay", action="store_true", help="also store a picture of each map over its image")
    group.add_argument("--rows-per-plan-file", type=positive, default=1_000_000, help=argparse.SUPPRESS)
    group = parser.add_argument_group("run")
    group.add_argument(
        "--trust-model", action="store_true", help="load the model even if it is a program (TorchScript, .pt2)"
    )
    group.add_argument("--plan-only", action="store_true", help="list the images and fix the plan, but explain none")
    group.add_argument(
        "--part",
        type=_part,
        default=(0, 1),
        metavar="I/N",
        help="work on only the I-th of N parts, from 0/N to N-1/N, for job arrays; needs a plan",
    )
    group.add_argument(
        "--devices",
        type=_words,
        metavar="NAMES",
        help="devices, each with its own process, such as cuda:0,cuda:1 (default: every GPU, or the single device)",
    )
    group.add_argument(
        "--decoders", type=_count, metavar="N", help="decoding processes per device (default: depends on the device)"
    )
    group.add_argument(
        "--retry-errors",
        action="store_true",
        help="make shards again whose images failed with errors that may be temporary",
    )
    group.add_argument(
        "--retry-all-errors",
        action="store_true",
        help="make all shards again in which an image has no map, such as after damaged files were repaired",
    )
    group = parser.add_argument_group("cluster")
    group.add_argument(
        "--engine",
        choices=("local", "ray"),
        default="local",
        help="local: this machine; ray: a cluster whose machines all reach DEST and the sources (default: local)",
    )
    group.add_argument(
        "--address",
        metavar="HOST:PORT",
        help="address of the Ray cluster (default: RAY_ADDRESS, else a temporary cluster on this machine)",
    )
    group.add_argument(
        "--workers", type=positive, metavar="N", help="number of Ray actors (default: as many as fit into the cluster)"
    )
    group.add_argument(
        "--gpus-per-worker", type=_gpus, metavar="X", help="share of a GPU per Ray actor, such as 0.5 (default: 1)"
    )
    add_method_flags(parser)


def run(arguments: argparse.Namespace) -> int:
    """Plan the run if it is not planned yet, explain the images that are left, and print the result."""
    from ...batch.extras import parquet_modules
    from ...batch.plan import read_plan
    from ...batch.storage import open_storage
    from .. import DONE
    from ..output import error_console

    parquet_modules()  # refuses at once if they are missing
    dest, errors = open_storage(arguments.out), error_console()
    _check_engine(arguments)
    plan, classifier = read_plan(dest), None
    # On a cluster, planning and running may be on different machines: only planning needs the device here.
    planned_for_ray = arguments.engine == "ray" and not arguments.sources
    devices = [] if planned_for_ray else _devices(arguments, None if plan is None else plan.device)
    if not arguments.sources:
        plan = _planned(arguments, dest, plan)
    elif plan is None and arguments.part[1] > 1:
        raise ValueError(
            f"--part: nothing is planned in {dest} yet, and parts must not plan at the same time: first give the "
            "same command with --plan-only in place of --part"
        )
    else:
        plan, classifier = _plan(arguments, dest, plan, devices[0], errors)
    if arguments.plan_only:
        return DONE
    return _explain(arguments, dest, plan, classifier if len(devices) == 1 else None, devices, errors)


def _check_engine(arguments: argparse.Namespace) -> None:
    """Refuse options of the other engine, and an engine that is not installed.

    Raises:
        ValueError: some are given.
        ImportError: Ray is missing.
    """
    ray = arguments.engine == "ray"
    given_ones = {name: getattr(arguments, name) is not None for name in (*_OF_A_CLUSTER, "devices")}
    given_ones["part"] = arguments.part != (0, 1)
    wrong = [name for name in (("devices", "part") if ray else _OF_A_CLUSTER) if given_ones[name]]
    if wrong:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in wrong)
        raise ValueError(f"{flags}: not an option of --engine {arguments.engine}; leave it out")
    if ray:
        from ...batch.ray_engine import ray_module

        ray_module()  # before anything is planned


def _planned(arguments: argparse.Namespace, dest: Storage, plan: Plan | None) -> Plan:
    """Return the existing plan.

    Raises:
        ValueError: there is none, or options are given that only a new plan can have.
    """
    if plan is None:
        raise ValueError(f"nothing is planned in {dest} yet: name the images to explain (SOURCE)")
    parser = argparse.ArgumentParser(add_help=False)
    _add_arguments(parser)
    values = {name: value for name, value in vars(arguments).items() if name not in _OF_THE_RUN}
    words = [word for word in option_words(parser, values) if word.startswith("--")]
    if words:
        raise ValueError(
            f"{', '.join(words)}: without a SOURCE, the run in {dest} continues as planned; leave out these options"
        )
    return plan


def _plan(
    arguments: argparse.Namespace, dest: Storage, known: Plan | None, device: str, errors: Console
) -> tuple[Plan, Classifier]:
    """Make the plan, or compare the arguments with the existing one."""
    from ...batch.plan import MAX_BYTES, differences, write_plan
    from ...batch.planning import make_plan
    from ...batch.sources import check_sources, list_rows
    from ...images.reading import MAX_PIXELS
    from ...models.checkpoints import check_trusted
    from ..model_and_methods import classifier_of

    method = arguments.method
    check_sources(arguments.sources)
    if known is None:
        dest.check_writable()
    options, seed = _options(arguments, method)
    spec = _model_of(arguments)
    check_trusted(spec.source, arguments.trust_model)
    classifier = classifier_of(argparse.Namespace(**{**vars(arguments), "device": device}))
    # Keep the values that the plan has chosen automatically for the machine it was made on.
    chosen = {} if known is None else {"threads": known.threads}
    chunk = arguments.internal_batch_size
    if chunk is None and known is not None:
        chunk = known.internal_batch_size
    plan = make_plan(
        classifier,
        spec,
        method,
        options,
        arguments.sources,
        target=arguments.target,
        sample=arguments.sample,
        seed=seed,
        rows_per_shard=arguments.rows_per_shard,
        batch_size=arguments.batch_size or (None if known is None else known.batch_size),
        internal_batch_size=chunk,
        map_dtype=arguments.map_dtype,
        overlay=arguments.overlay,
        max_pixels=arguments.max_pixels or MAX_PIXELS,
        max_bytes=arguments.max_bytes or MAX_BYTES,
        rows_per_piece=arguments.rows_per_plan_file,
        **chosen,
    )
    if known is not None:
        changed = differences(known, plan)
        if changed:
            raise ValueError(
                f"{dest} has another plan: {'; '.join(changed)}. Use the same options, choose another --out, or leave "
                "out SOURCE to continue the run as planned"
            )
        return known, classifier
    rows = list_rows(
        arguments.sources,
        target=plan.target,
        sample=plan.sample,
        seed=plan.seed,
        classes=plan.classes,
        note=lambda line: _say(errors, line),
    )
    plan = write_plan(dest, plan, rows)
    _say(errors, f"planned {plan.images} images in {plan.shards} shards of {plan.rows_per_shard} in {dest}")
    return plan, classifier


def _options(arguments: argparse.Namespace, method: str) -> tuple[dict[str, Any], int]:
    """Collect the method's options, and the seed, which the sample uses too."""
    from ...catalog import method_options
    from ...methods.registry import check_options
    from ..model_and_methods import shared_out

    options = given(arguments, "method")
    known = {method: {option.name for option in method_options(method)}}
    if arguments.sample is not None:
        known["the sample"] = {"seed"}
    own = shared_out(options, known)[method]
    check_options(method, **own)  # before the model is loaded, as far as possible
    # The file must be found on every machine that runs the plan.
    own = {name: os.path.abspath(value) if isinstance(value, Path) else value for name, value in own.items()}
    return own, options.get("seed", 0)


def _model_of(arguments: argparse.Namespace) -> ModelSpec:
    from ...batch.model_spec import ModelSpec
    from ...models.loading import absolute_source
    from ..model_and_methods import class_names_in

    names = None if arguments.class_names is None else tuple(class_names_in(arguments.class_names))
    return ModelSpec(
        source=absolute_source(arguments.model),
        weights=None if arguments.weights is None else os.path.abspath(arguments.weights),
        model_args=dict(arguments.model_arg),
        mean=arguments.mean,
        std=arguments.std,
        input_size=arguments.input_size,
        interpolation=arguments.interpolation,
        fold_batch_norm=False if arguments.keep_batch_norm else None,
        output=arguments.model_output,
        class_names=names,
    )


def _devices(arguments: argparse.Namespace, kind: str | None = None) -> list[str]:
    """List the devices, each of which gets a process.

    Args:
        arguments: the command's arguments.
        kind: the plan's kind of device, if there is a plan.

    Raises:
        ValueError: one that cannot be used, or devices of several kinds.
    """
    import torch

    from ..model_and_methods import device_of

    if arguments.devices is not None and arguments.device is not None:
        raise ValueError("--device and --devices exclude each other: give one of them")
    names = arguments.devices or [device_of(arguments.device or kind)]
    if names == ["cuda"]:
        names = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    names = [device_of(name) for name in names]
    kinds = sorted({torch.device(name).type for name in names})
    if len(kinds) > 1:
        raise ValueError(
            f"--devices: maps of {' and '.join(kinds)} differ in their last bits: give devices of one kind"
        )
    return names


def _explain(
    arguments: argparse.Namespace,
    dest: Storage,
    plan: Plan,
    classifier: Classifier | None,
    devices: list[str],
    errors: Console,
) -> int:
    from ...batch.manifest import read_manifest
    from ...errors import first_line
    from .. import DONE, INTERRUPTED, SOME_FAILED, UNUSABLE
    from ..progress_lines import ProgressLines, duration_text, stand_text

    def stopping() -> None:
        _say(errors, "stopping after this shard; a second request stops at once")

    try:
        with ProgressLines(errors) as show:
            report = _engine(arguments, dest, devices, classifier)(on_progress=show, on_stop=stopping)
    except RuntimeError as error:
        if len(devices) == 1 and arguments.engine == "local":
            raise
        # An error of another process, such as a full disk, of which only the message is known.
        raise OSError(f"{first_line(error)}; shards stored before are complete") from error
    if show.last is not None:
        _say(errors, f"{stand_text(show.last)}; {report.shards} shards in {duration_text(report.seconds)}")
    lost = sum(len(plan.rows_of(shard)) for shard in report.given_up)
    failed, total = report.errors + lost, report.rows + lost
    if report.given_up:
        _say(errors, f"given up, as every worker that tried them died: {_shards_text(report.given_up)}")
    if report.missing:
        engine = [] if arguments.engine == "local" else ["--engine", arguments.engine]
        going_on = shlex.join(["fampe-fast", "batch", "--out", str(dest), *engine])
        _say(errors, f"{plan.shards - report.missing} of {plan.shards} shards are finished; continue with: {going_on}")
    else:
        entries = read_manifest(dest)
        failed, total = sum(entry.errors for entry in entries), plan.images
        transient = sum(entry.transient for entry in entries)
        _say(errors, f"all {plan.shards} shards are in {dest}: {total - failed} of {total} images have a map")
        if transient:
            _say(errors, f"{transient} errors may be temporary: --retry-errors makes their shards again")
        if failed > transient:
            _say(errors, f"{failed - transient} errors stay: repair the files, then --retry-all-errors")
    if report.stopped:
        return INTERRUPTED
    return DONE if not failed else SOME_FAILED if failed < total else UNUSABLE


def _engine(
    arguments: argparse.Namespace, dest: Storage, devices: list[str], classifier: Classifier | None
) -> Callable[..., RunReport]:
    retry = "all" if arguments.retry_all_errors else arguments.retry_errors
    common = {"retry_errors": retry, "trust_model": arguments.trust_model}
    if arguments.engine == "ray":
        from ...batch.ray_engine import run_ray

        cluster = {name: getattr(arguments, name) for name in _OF_A_CLUSTER}
        return partial(run_ray, dest, decoders=arguments.decoders, **cluster, **common)
    from ...batch.local import run_local

    own = {"devices": devices, "part": arguments.part, "workers": arguments.decoders, "classifier": classifier}
    return partial(run_local, dest, **own, **common)


def _shards_text(shards: Sequence[int]) -> str:
    some = ", ".join(map(str, shards[:SHOWN])) + (f" and {len(shards) - SHOWN} more" if len(shards) > SHOWN else "")
    return f"shard{'s' if len(shards) > 1 else ''} {some}"


def _say(errors: Console, line: str) -> None:
    errors.print(line, soft_wrap=True, highlight=False, markup=False)


# How the options are read ---------------------------------------------------------------------------------------------


def _target(text: str) -> int | str:
    if text == "model":
        return text
    try:
        value = int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected a class index, or model, got {text!r}") from error
    if value < 0:
        raise argparse.ArgumentTypeError(f"expected a class index of 0 or more, or model, got {value}")
    return value


def _part(text: str) -> tuple[int, int]:
    index, separator, count = text.partition("/")
    if not (separator and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise argparse.ArgumentTypeError(f"expected I/N with I from 0 to N - 1, such as 0/4, got {text!r}")
    return int(index), int(count)


def _gpus(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"expected a share of a GPU, at most 1, as a worker uses one; got {text}")
    return value


def _words(text: str) -> list[str]:
    words = [word.strip() for word in text.split(",")]
    if not all(words):
        raise argparse.ArgumentTypeError(f"expected names separated by commas, got {text!r}")
    return words


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be at least 0, got {value}")
    return value
