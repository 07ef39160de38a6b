"""Explanations on a Ray cluster: replicas behind Ray Serve's proxy, each with the whole service.

    pip install 'fampe_fast[serve]' 'ray[serve]'
    FAMPE_FAST_SERVE="--model resnet50 --method fampe,gradcam" serve run deploy.ray_serve:app

The variable holds the options of ``fampe-fast serve``; those of the socket and of processes are Ray's business here.
Give a replica a GPU with ``ray_actor_options={"num_gpus": 1}``. Ray's proxy ends a connection that it has accepted when
its cluster is shut down: drain it, as Ray Serve's own documentation says.
"""

from __future__ import annotations

import os
import shlex
import threading
import time

from ray import serve
from starlette.types import ASGIApp

from fampe_fast.cli.commands.serve import make_service
from fampe_fast.cli.model_and_methods import device_of
from fampe_fast.cli.parser import parse
from fampe_fast.serve.app import make_app
from fampe_fast.serve.log import begin_log
from fampe_fast.serve.server import REPORT_FOR
from fampe_fast.serve.service import Service

OPTIONS = "FAMPE_FAST_SERVE"


def build(words: str) -> ASGIApp:
    """Load the model and start the service, in a replica's process."""
    arguments = parse(["serve", *shlex.split(words)])
    begin_log(arguments.log_level)
    service = make_service(arguments, device_of(arguments.device))
    service.start()
    threading.Thread(target=_end_with_the_device, args=(service,), daemon=True).start()
    return make_app(service)


def _end_with_the_device(service: Service) -> None:
    """End the replica's process once its device is lost: Ray replaces it, and would send requests to it until then."""
    while not service.device.failure:
        time.sleep(0.5)
    time.sleep(REPORT_FOR)  # for those who wait for an answer
    os._exit(1)


_WORDS = os.environ.get(OPTIONS, "")  # read where the application is described; replicas may be elsewhere


def _build() -> ASGIApp:
    return build(_WORDS)


app = serve.deployment(serve.ingress(_build)(), name="explanations", max_ongoing_requests=128).bind()
