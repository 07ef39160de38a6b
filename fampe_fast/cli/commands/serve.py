"""``serve``: explain images over HTTP."""

from __future__ import annotations

import argparse
import socket
import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from ..arguments import add_batches, add_method, add_model, positive
from ..flags import add_method_flags, fraction

if TYPE_CHECKING:
    from ...models.classifier import Classifier
    from ...serve.service import Service
    from ...serve.settings import ServiceSettings

_LEVELS = ("debug", "info", "warning", "error")


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command's arguments."""
    parser = commands.add_parser("serve", help="run an HTTP service that explains images")
    group = parser.add_argument_group("service")
    group.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for all (default: %(default)s)"
    )
    group.add_argument(
        "--port", type=_port, default=8080, metavar="N", help="port; 0 for a free one (default: %(default)s)"
    )
    group.add_argument("--name", help="the model's name in URLs (default: made from --model)")
    group.add_argument(
        "--workers",
        type=positive,
        default=1,
        metavar="N",
        help="number of processes, each with the model, assigned to the GPUs in turn (default: %(default)s)",
    )
    group.add_argument(
        "--queue",
        type=positive,
        default=64,
        metavar="N",
        help="number of images that may wait; more are refused with 429 (default: %(default)s)",
    )
    group.add_argument(
        "--max-passes",
        type=positive,
        default=200,
        metavar="N",
        help="largest number of passes in a request (default: %(default)s)",
    )
    group.add_argument(
        "--max-bytes",
        type=positive,
        default=32 * 2**20,
        metavar="N",
        help="largest request body, bytes (default: %(default)s)",
    )
    group.add_argument(
        "--max-pixels",
        type=positive,
        default=50_000_000,
        metavar="N",
        help="largest image, pixels (default: %(default)s)",
    )
    for name, default, said in (
        ("deadline", 30.0, "until a request is answered with 504"),
        ("read-timeout", 10.0, "to receive a request's head, and again its body"),
        ("drain-timeout", 30.0, "to answer the open requests after SIGTERM"),
    ):
        group.add_argument(
            f"--{name}", type=fraction, default=default, metavar="X", help=f"seconds {said} (default: %(default)g)"
        )
    group.add_argument(
        "--log-level", choices=_LEVELS, default="info", help="lowest level of the log (default: %(default)s)"
    )
    group.add_argument("--trust-model", action="store_true", help="load the model even if it is a program")
    add_method(parser, "fampe", note=" (the first is the default of requests)")
    add_model(parser)
    add_batches(parser)
    add_method_flags(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal ends the service."""
    from ...serve.extras import check_packages

    check_packages()
    import torch

    from ...models.checkpoints import check_trusted
    from ...serve.log import begin_log, log
    from .. import INTERRUPTED
    from ..model_and_methods import device_of, options_by_method

    options_by_method(arguments, arguments.method)  # refuse wrong options before a model is loaded
    check_trusted(arguments.model, arguments.trust_model)
    device = device_of(arguments.device)
    _settings(arguments, arguments.name or "model", 1)
    from ...serve.server import listen

    listener = listen(arguments.host, arguments.port)
    host, port = listener.getsockname()[:2]
    print(f"listening on http://{host}:{port}", file=sys.stderr, flush=True)
    begin_log(arguments.log_level)
    if arguments.workers == 1:
        try:
            return work(arguments, listener, device, lambda: None)
        except KeyboardInterrupt:
            log("stopped before it was ready", "warning")
            return INTERRUPTED
    from ...serve.workers import run_workers

    count = torch.cuda.device_count() if device == "cuda" else 1
    devices = [f"{device}:{k % count}" if count > 1 else device for k in range(arguments.workers)]
    return run_workers(partial(work, arguments), listener, devices, arguments.drain_timeout)


def work(arguments: argparse.Namespace, listener: socket.socket, device: str, on_ready: Callable[[], None]) -> int:
    """Load the model and serve on a listening socket, in one of one or more processes.

    Returns:
        The exit code: 0 after a requested end, 2 if the methods cannot be used.
    """
    from ...serve.log import begin_log
    from ...serve.server import serve
    from .. import DONE, UNUSABLE

    begin_log(arguments.log_level)
    service = make_service(arguments, device)
    return DONE if serve(service, listener, on_ready, supervised=arguments.workers > 1) else UNUSABLE


def make_service(arguments: argparse.Namespace, device: str) -> Service:
    """Load the model of parsed arguments and make the service, without starting it.

    Raises:
        ValueError, TypeError: arguments that the other commands refuse, too.
    """
    import torch

    from ...serve.log import log
    from ...serve.service import Service
    from ...serve.settings import service_name
    from ..model_and_methods import classifier_of, options_by_method

    options = options_by_method(arguments, arguments.method)
    classifier = classifier_of(argparse.Namespace(**{**vars(arguments), "device": device}))
    threads = max(1, torch.get_num_threads() // (arguments.workers if device == "cpu" else 1))
    chunk = arguments.internal_batch_size or _chunk(classifier)
    settings = _settings(arguments, arguments.name or service_name(classifier.name), chunk)
    service = Service(classifier, options, settings, threads=threads)
    log("loaded", model=classifier.name, name=settings.name, device=device, threads=threads, chunk=chunk)
    return service


def _chunk(classifier: Classifier) -> int:
    from ...answers.explainer import noise_for
    from ...runtime.chunking import ChunkSize

    return ChunkSize.for_gradients((classifier,), noise_for(classifier), None).size


def _settings(arguments: argparse.Namespace, name: str, chunk: int) -> ServiceSettings:
    from ...serve.settings import ServiceSettings

    given: dict[str, Any] = {
        key: getattr(arguments, key)
        for key in (
            "queue", "batch_size", "max_passes", "max_bytes", "max_pixels", "deadline", "read_timeout", "drain_timeout",
        )
    }  # fmt: skip
    reading = max(256 * 2**20, arguments.max_bytes)
    return ServiceSettings(name=name, internal_batch_size=chunk, max_reading=reading, **given)


def _port(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 65535:
        raise argparse.ArgumentTypeError(f"must be 0 to 65535, got {value}")
    return value
