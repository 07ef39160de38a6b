"""``warmup``: compile a method for a model, and save what was compiled for other processes."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..arguments import add_batches, add_model, add_one_method
from ..flags import add_method_flags


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command's arguments."""
    parser = commands.add_parser(
        "warmup", help="compile a method for a model, and save the compiled code for other processes"
    )
    add_one_method(parser)
    parser.add_argument(
        "--save",
        type=Path,
        metavar="FILE",
        help="write the compiled code to a file; processes with the same versions and device load it if "
        "FAMPE_FAST_COMPILE_CACHE names it. The file is a program: load only files that you have made yourself",
    )
    add_model(parser)
    add_batches(parser)
    add_method_flags(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Compile and save a method, and print what was compiled."""
    from ...files import Output
    from ...methods.registry import create_method
    from ...methods.warmup import warmup
    from ...runtime.compile_cache import KIND, save_compile_cache
    from .. import DONE
    from ..model_and_methods import check_all_outputs, classifier_of, options_by_method
    from ..output import console

    (options,) = options_by_method(arguments, [arguments.method]).values()
    if arguments.save is not None:
        check_all_outputs(arguments, [Output(arguments.save, KIND)], [])
    classifier = classifier_of(arguments)
    found = warmup(
        create_method(arguments.method, classifier, **options),
        batch=arguments.batch_size,
        channels=classifier.channels,
        internal_batch_size=arguments.internal_batch_size,
    )
    console().print(str(found), soft_wrap=True, highlight=False, markup=False)
    if arguments.save is not None:
        save_compile_cache(arguments.save)
    return DONE
