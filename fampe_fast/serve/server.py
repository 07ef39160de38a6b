"""Run the HTTP server: connections that end where nothing comes, and an end in order."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from .app import make_app
from .log import log
from .service import Service

LINGER = 0.5
"""Seconds after the last answer in which connections that are open already may still ask, and are refused."""
REPORT_FOR = 30.0
"""Seconds in which a platform can read why a device is lost, before the process ends and may be started again."""
_LOOK_EVERY = 10  # ticks, of a tenth of a second


class TimedProtocol(H11Protocol):
    """HTTP/1.1 whose connections end where the head of a request does not come in time."""

    read_timeout = 10.0
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Take what came; a part of a head does not stop the clock."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        super().connection_lost(exc)
        self._stop()

    def _watch(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop()
        elif self._timer is None and not self.transport.is_closing():
            self._timer = self.loop.call_later(self.read_timeout, self._end)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end(self) -> None:
        self._timer = None
        self.transport.close()
        # Whoever does not read the last answer either is not waited for.
        self.loop.call_later(self.read_timeout, self.transport.abort)


class DrainingServer(uvicorn.Server):
    """Ends in order: what was taken in is answered, what comes is refused, then the connections are closed."""

    def __init__(
        self,
        config: uvicorn.Config,
        service: Service,
        listener: socket.socket,
        on_ready: Callable[[], None],
        report_for: float,
    ) -> None:
        """Take the service that is drained.

        Args:
            config: of the server.
            service: its service, started.
            listener: the one socket that it listens on.
            on_ready: called once, when requests are taken in.
            report_for: seconds for which a lost device is reported before the end.
        """
        super().__init__(config)
        self._service = service
        self._listener = listener
        self._on_ready = on_ready
        self._accepted: list[asyncio.Task[Any]] = []
        self._was_ready = False
        self._asked_at: float | None = None
        self._idle_since: float | None = None
        self._lost_at: float | None = None
        self._report_for = report_for
        self.broken = False
        """Whether the service ended because its methods cannot be used, or its device is lost."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take the signals that ask for the end, the loss of the terminal among them, unless they are ignored."""
        before = {number: signal.signal(number, self.handle_exit) for number in end_signals()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain; the second time, end at once."""
        if self._asked_at is not None:
            os._exit(128 + sig)
        self._asked_at = time.monotonic()

    async def on_tick(self, counter: int) -> bool:
        """Look ten times a second whether there is something to do."""
        service = self._service
        if counter % _LOOK_EVERY == 0:
            service.look()
        if not self._was_ready and service.device.ready:
            self._was_ready = True
            self._on_ready()
        if service.device.failure and self._lost_at is None:
            self._lost_at = time.monotonic()
        if self._lost_at is not None and (
            not service.device.ready or time.monotonic() - self._lost_at >= self._report_for
        ):
            self.broken = True
            return True
        if self._asked_at is not None:
            self._drain(self._asked_at)
        return await super().on_tick(counter)

    def _drain(self, asked_at: float) -> None:
        service, now = self._service, time.monotonic()
        if not service.draining:
            service.drain()
            log("draining", in_flight=service.in_flight, waiting=len(service.queue))
        if now - asked_at >= service.settings.drain_timeout:
            log("drain timeout", "warning", in_flight=service.in_flight)
            self.should_exit = True
        elif service.in_flight:
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = now
            self._stop_listening()
        elif now - self._idle_since >= LINGER:
            self.should_exit = True

    def _stop_listening(self) -> None:
        """Close the socket that listens; who has reached it before gets an answer, and no reset."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._listener.fileno())
        with contextlib.suppress(OSError):  # BlockingIOError, where nobody waits any more
            while True:
                connection, _ = self._listener.accept()
                connection.setblocking(False)
                self._accepted.append(loop.create_task(loop.connect_accepted_socket(self._protocol, connection)))
        for server in self.servers:
            server.close()  # connections that are open stay so

    def _protocol(self) -> asyncio.Protocol:
        kind: Any = self.config.http_protocol_class
        made: asyncio.Protocol = kind(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)
        return made


def serve(
    service: Service,
    listener: socket.socket,
    on_ready: Callable[[], None] = lambda: None,
    *,
    supervised: bool = False,
) -> bool:
    """Serve until a signal asks for the end, or the device is lost; call it from the main thread.

    Args:
        service: not started yet.
        listener: a socket that listens.
        on_ready: called once, when requests are taken in.
        supervised: whether other processes answer at the same socket, and this one would be started again: it accepts
            nothing before it is warm, and ends at once where its device is lost.

    Returns:
        Whether it ended as it was asked to; False where the methods cannot be used, or the device is lost.
    """
    protocol: Any = type("Protocol", (TimedProtocol,), {"read_timeout": service.settings.read_timeout})
    config = uvicorn.Config(
        make_app(service),
        http=protocol,
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=2,
        h11_max_incomplete_event_size=32768,
    )
    server = DrainingServer(config, service, listener, on_ready, 0.0 if supervised else REPORT_FOR)
    service.start()
    while supervised and not service.device.ready and not service.device.failure:
        time.sleep(0.02)
    server.run(sockets=[listener])
    for job in service.queue.close():
        job.future.cancel()
    service.device.join(timeout=5)
    log("ended", waiting=len(service.queue))
    return not server.broken


def listen(host: str, port: int) -> socket.socket:
    """Open the socket that requests come to; port 0 takes a free one.

    Raises:
        OSError: the address cannot be used; the message says which and why.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        # By its number asyncio knows TCP: else it leaves Nagle's algorithm on, and an answer takes 40 ms.
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
        listener.setblocking(False)
        return listener
    except OSError as error:
        raise OSError(error.errno, f"cannot listen on {host} port {port}: {error.strerror or error}") from error


def end_signals() -> tuple[int, ...]:
    """List the signals that ask for the end and were not ignored from the start, as ``nohup`` has it."""
    found = (getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
    return tuple(number for number in found if signal.getsignal(number) is not signal.SIG_IGN)
