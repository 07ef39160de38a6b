"""Handle requests: check, decode, queue, wait, reply."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple
from uuid import uuid4

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..answers.result import RowError
from ..errors import kind_and_line
from .asks import Asked, AskError, Kind, read_image_request, read_json_request, read_query
from .body import ClientGoneError, ReadingRoom, RefusalError, discard_body, read_body
from .device import DeviceLostError
from .images import Decoded, decode
from .job_queue import Job, Outcome, Prediction, QueueClosedError, QueueFullError
from .log import log, log_error
from .metrics import CONTENT_TYPE
from .page import page_of
from .record import encode_map, tag_of
from .replies import JSON, NPY, PNG, RECORD_HEADER, as_json, chosen_form, header_of, npy_of
from .service import Service
from .settings import retry_after

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_LONGEST_HEAD = 16384
_CLIENT_GONE = 499  # only for logs and counts


def make_app(service: Service) -> ASGIApp:
    """Make the application of a running service."""
    handlers = _Handlers(service)
    routes = [
        Route("/", handlers.page, methods=["GET"]),
        Route("/v1/models", handlers.models, methods=["GET"]),
        Route("/v1/models/{name}:explain", handlers.explain, methods=["POST"]),
        Route("/v1/models/{name}:predict", handlers.predict, methods=["POST"]),
        Route("/v1/models/{name}", handlers.model, methods=["GET"]),
        Route("/v2/health/live", handlers.live, methods=["GET"]),
        Route("/v2/health/ready", handlers.ready, methods=["GET"]),
        Route("/metrics", handlers.metrics, methods=["GET"]),
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: _plain_error, Exception: _unexpected_error})
    return _Counted(app, service)


async def _plain_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def _unexpected_error(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": "the service failed; its log says why"}, 500)


class _Counted:
    """Gives every request an id, counts and logs it, and turns inner errors into a reply with a sentence."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # no web sockets, and nothing to do at start and end
            await self._app(scope, receive, send)
            return
        began = time.monotonic()
        long = sum(len(name) + len(value) for name, value in scope["headers"]) + len(scope["query_string"])
        given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid4().hex
        state = scope.setdefault("state", {})
        state["log"] = {}
        code = 0

        async def answer(message: Message) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                headers["x-content-type-options"] = "nosniff"
                if self._service.draining or state.get("close"):
                    headers["connection"] = "close"
            try:
                await send(message)
            except Exception as error:  # the server has closed this connection, for example after an invalid body
                raise ClientGoneError from error

        self._service.in_flight += 1
        try:
            refusal = JSONResponse({"error": f"the head is longer than {_LONGEST_HEAD} bytes"}, 431)
            await (self._app if long <= _LONGEST_HEAD else refusal)(scope, receive, answer)
        except ClientGoneError:
            code = _CLIENT_GONE
        except Exception as error:
            log_error("unexpected error", error, request_id=request_id)
        finally:
            self._service.in_flight -= 1
            route = _route_of(scope)
            took = time.monotonic() - began
            self._service.metrics.requests.labels(route, str(code)).inc()
            self._service.metrics.seconds.labels(route).observe(took)
            level = "debug" if route in ("live", "ready", "metrics") else "info"
            fields = {"request_id": request_id, "route": route, "code": code, "seconds": round(took, 4)}
            log("request", level, **fields, **state["log"])


def _route_of(scope: Scope) -> str:
    """Map a request to one of a few route names, so that clients' addresses cannot create new counters."""
    endpoint = scope.get("endpoint")
    return getattr(endpoint, "__name__", "other")


class _Reply(NamedTuple):
    """The parts of a reply that are made outside the event loop."""

    content: bytes
    form: str
    headers: dict[str, str]


class _Handlers:
    """The handlers of the addresses."""

    def __init__(self, service: Service) -> None:
        self._service = service
        # Pillow and NumPy release the interpreter lock while they compute.
        self._beside = ThreadPoolExecutor(service.settings.decoders, "decode")
        self._room = ReadingRoom(service.settings.max_reading)

    # Small ones -------------------------------------------------------------------------------------------------------

    async def page(self, request: Request) -> Response:
        content, policy = page_of(self._service)
        return Response(content, media_type="text/html", headers={"content-security-policy": policy})

    async def models(self, request: Request) -> Response:
        return JSONResponse({"models": [self._service.settings.name]})

    async def model(self, request: Request) -> Response:
        if request.path_params["name"].endswith((":explain", ":predict")):
            raise HTTPException(405, "images must be sent by POST", {"allow": "POST"})
        self._check_name(request)
        return JSONResponse(self._service.described())

    async def live(self, request: Request) -> Response:
        reason = self._service.device.failure
        return JSONResponse({"live": not reason, **({"reason": reason} if reason else {})}, 503 if reason else 200)

    async def ready(self, request: Request) -> Response:
        reason = self._service.not_ready()
        return JSONResponse({"ready": not reason, **({"reason": reason} if reason else {})}, 503 if reason else 200)

    async def metrics(self, request: Request) -> Response:
        self._service.look()
        return Response(self._service.metrics.text(), headers={"content-type": CONTENT_TYPE})

    def _check_name(self, request: Request) -> None:
        name = request.path_params["name"]
        if name != self._service.settings.name:
            raise HTTPException(404, f"there is no model {name[:80]!r}; there is {self._service.settings.name!r}")

    # The work ---------------------------------------------------------------------------------------------------------

    async def explain(self, request: Request) -> Response:
        return await self._answer(request, "explain", self._explanations)

    async def predict(self, request: Request) -> Response:
        return await self._answer(request, "predict", self._predictions)

    async def _answer(self, request: Request, kind: Kind, reply: Callable[..., _Reply]) -> Response:
        try:
            return await self._answered(request, kind, reply)
        except RefusalError as error:
            if error.close:
                request.state.close = True
            headers = {} if error.retry_after is None else {"retry-after": str(error.retry_after)}
            request.scope["state"]["log"]["reason"] = error.reason
            return JSONResponse({"error": error.reason}, error.code, headers)

    async def _answered(self, request: Request, kind: Kind, reply: Callable[..., _Reply]) -> Response:
        service, settings = self._service, self._service.settings
        deadline = time.monotonic() + settings.deadline
        self._check_name(request)
        if service.draining:
            await discard_body(request, settings.max_bytes, settings.read_timeout)
        self._refuse_if_not_ready()
        if service.queue.full:
            raise self._full()
        form = chosen_form(request.headers.get("accept"))
        if form is None or (kind == "predict" and form != JSON):
            raise RefusalError(
                406, "replies are application/json, or for one explanation image/png or application/x-npy"
            )
        media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        in_json = media == JSON
        if not in_json and not media.startswith("image/") and media != "application/octet-stream":
            raise RefusalError(
                415,
                "send the image itself as the body, with its Content-Type (image/jpeg, ...), or JSON with "
                "Content-Type: application/json; forms are not read",
            )
        query = request.query_params.multi_items()
        try:
            read_query(query)
        except AskError as error:
            raise RefusalError(400, str(error)) from error
        body = await read_body(request, settings.max_bytes, settings.read_timeout, self._room)
        loop = asyncio.get_running_loop()

        def read() -> tuple[Asked, list[Decoded]]:
            default = service.book.default
            if in_json:
                asked = read_json_request(kind, query, default, body, settings.queue)
            else:
                asked = read_image_request(kind, query, default, body)
            service.book.check(asked.ask)
            classifier = service.classifier
            for instance in asked.instances:
                service.check_target(instance.target)
            return asked, [decode(one.data, classifier.transform, settings.max_pixels) for one in asked.instances]

        try:
            asked, images = await loop.run_in_executor(self._beside, read)
        except AskError as error:
            raise RefusalError(400, str(error)) from error
        finally:
            self._room.leave(len(body))
        if form != JSON and len(images) > 1:
            raise RefusalError(406, f"{form} can hold only one explanation, but the request has {len(images)} images")
        self._refuse_if_not_ready()
        jobs = [
            Job(asked.ask, image.item(instance), deadline)
            for image, instance in zip(images, asked.instances, strict=True)
        ]
        outcomes = await self._outcomes(request, jobs)
        fields = request.scope["state"]["log"]
        fields.update(
            method=asked.ask.method if kind == "explain" else None,
            images=len(jobs),
            batch_size=max(one.batch_size for one in outcomes),
            queue_seconds=round(max(one.waited for one in outcomes), 4),
            device_seconds=round(max(one.took for one in outcomes), 4),
        )
        found = await loop.run_in_executor(self._beside, reply, asked, images, outcomes, form)
        timing = f"queue;dur={fields['queue_seconds'] * 1e3:.1f}, device;dur={fields['device_seconds'] * 1e3:.1f}"
        return Response(found.content, media_type=found.form, headers={**found.headers, "server-timing": timing})

    def _refuse_if_not_ready(self) -> None:
        reason = self._service.not_ready()
        if reason:
            raise RefusalError(503, f"the service is {reason}", retry_after=1)

    def _full(self) -> RefusalError:
        service = self._service
        seconds = retry_after(len(service.queue), service.device.seconds_per_image)
        return RefusalError(429, "the queue is full", retry_after=seconds)

    async def _outcomes(self, request: Request, jobs: Sequence[Job]) -> list[Outcome]:
        """Queue the images and wait for all, unless the deadline passes or the client disconnects."""
        service = self._service
        try:
            service.queue.put(jobs)
        except QueueFullError:
            raise self._full() from None
        except QueueClosedError:
            raise RefusalError(503, f"the service is {service.not_ready() or 'draining'}", retry_after=1) from None
        done = asyncio.gather(*(asyncio.wrap_future(job.future) for job in jobs))
        gone = asyncio.ensure_future(_until_gone(request))
        waits: set[asyncio.Future[Any]] = {done, gone}
        try:
            left = jobs[0].deadline - time.monotonic()
            await asyncio.wait(waits, timeout=max(left, 0), return_when=asyncio.FIRST_COMPLETED)
            if done.done():
                return list(await done)
            if gone.done():
                raise ClientGoneError
            raise RefusalError(504, f"the deadline of {service.settings.deadline:g} s has passed")
        except TimeoutError:
            raise RefusalError(504, f"the deadline of {service.settings.deadline:g} s has passed") from None
        except DeviceLostError as error:
            raise RefusalError(503, "the device is lost; another instance may answer", close=True) from error
        except (ValueError, TypeError, RuntimeError, ImportError) as error:
            if isinstance(error, ClientGoneError):
                raise
            raise RefusalError(500, f"the method failed: {kind_and_line(error)}") from error
        finally:
            gone.cancel()
            if not done.done():
                service.metrics.cancelled.inc(service.queue.give_up(jobs))
            done.add_done_callback(lambda found: found.cancelled() or found.exception())  # not retrieved elsewhere
            done.cancel()

    # Beside the event loop --------------------------------------------------------------------------------------------

    def _explanations(self, asked: Asked, images: Sequence[Decoded], outcomes: Sequence[Outcome], form: str) -> _Reply:
        service = self._service
        records, results = [], []
        for k, (image, outcome) in enumerate(zip(images, outcomes, strict=True)):
            if isinstance(outcome.found, RowError):
                where = "" if len(images) == 1 else f"instance {k}: "
                transient = outcome.found.kind == "transient"
                raise RefusalError(
                    503 if transient else 422, where + outcome.found.reason, retry_after=1 if transient else None
                )
            assert not isinstance(outcome.found, Prediction)
            image_id = image.id_of(asked.instances[k])
            result, record = service.finished(asked.ask, image.name, image_id, outcome, overlay=form == PNG)
            records.append(record)
            results.append(result)
        headers = {}
        if len(records) == 1:
            headers["etag"] = tag_of(records[0], form)
        if form == JSON:
            joined = [{**one, "map": encode_map(result)} for one, result in zip(records, results, strict=True)]
            return _Reply(as_json("explanations", joined), JSON, headers)
        headers[RECORD_HEADER] = header_of(records[0])
        if form == NPY:
            return _Reply(npy_of(results[0]), NPY, headers)
        if results[0].overlay is None:
            raise RefusalError(422, "the map holds values that are not finite, and cannot be drawn")
        return _Reply(results[0].overlay, PNG, headers)

    def _predictions(self, asked: Asked, images: Sequence[Decoded], outcomes: Sequence[Outcome], form: str) -> _Reply:
        names = self._service.classifier.class_name
        found = []
        for outcome in outcomes:
            assert isinstance(outcome.found, Prediction)
            top = [
                {"class": index, "name": names(index), "probability": float(f"{value:.6g}")}
                for index, value in zip(outcome.found.classes, outcome.found.probabilities, strict=True)
            ]
            found.append({**top[0], "top": top})
        return _Reply(as_json("predictions", found), JSON, {})


async def _until_gone(request: Request) -> None:
    """Wait until the client has disconnected."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
