"""Run the HTTP server, with timeouts of idle connections and an orderly shutdown."""

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
"""Seconds after the last reply in which requests on open connections are still refused with a reply."""
REPORT_FOR = 30.0
"""Seconds in which a platform can read the reason of a lost device before the process ends and may be restarted."""
_LOOK_EVERY = 10  # ticks, of a tenth of a second


class TimedProtocol(H11Protocol):
    """HTTP/1.1 that closes connections if the head of a request does not arrive in time."""

    read_timeout = 10.0
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timer for a request."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Handle received data; an incomplete head does not stop the timer."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """Start the timer for the next request."""
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
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
        # Does not wait for clients that do not read the last reply.
        self.loop.call_later(self.read_timeout, self.transport.abort)


class DrainingServer(uvicorn.Server):
    """Shuts down in order: answers accepted requests, refuses new ones, then closes the connections."""

    def __init__(
        self,
        config: uvicorn.Config,
        service: Service,
        listener: socket.socket,
        on_ready: Callable[[], None],
        report_for: float,
    ) -> None:
        """Set the service to drain.

        Args:
            config: configuration of the server.
            service: its service, started.
            listener: the socket that it listens on.
            on_ready: called once, when requests are accepted.
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
        """Whether the service ended because its methods cannot be used or its device is lost."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle the signals that end the service, including loss of the terminal, unless they are ignored."""
        before = {number: signal.signal(number, self.handle_exit) for number in end_signals()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain; on the second call end at once."""
        if self._asked_at is not None:
            os._exit(128 + sig)
        self._asked_at = time.monotonic()

    async def on_tick(self, counter: int) -> bool:
        """Check the state ten times a second."""
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
        """Close the listening socket; earlier connections get a reply and not a reset."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._listener.fileno())
        with contextlib.suppress(OSError):  # BlockingIOError if no connection waits
            while True:
                connection, _ = self._listener.accept()
                connection.setblocking(False)
                self._accepted.append(loop.create_task(loop.connect_accepted_socket(self._protocol, connection)))
        for server in self.servers:
            server.close()  # open connections stay open

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
    """Serve until a signal ends the service or the device is lost; call it from the main thread.

    Args:
        service: the service, not started yet.
        listener: a listening socket.
        on_ready: called once, when requests are accepted.
        supervised: whether this process is restarted by a parent and shares the socket with others: it then accepts
            nothing before it is warm, and ends at once if its device is lost.

    Returns:
        True after a requested end; False if the methods cannot be used or the device is lost.
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
    """Open the listening socket; port 0 chooses a free one.

    Raises:
        OSError: the address cannot be used; the message names it and the reason.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        # asyncio recognises TCP by this number; otherwise Nagle's algorithm stays on and delays replies by 40 ms.
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
        listener.setblocking(False)
        return listener
    except OSError as error:
        raise OSError(error.errno, f"cannot listen on {host} port {port}: {error.strerror or error}") from error


def end_signals() -> tuple[int, ...]:
    """List the signals that end the service and were not ignored from the start, as under ``nohup``."""
    found = (getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
    return tuple(number for number in found if signal.getsignal(number) is not signal.SIG_IGN)
