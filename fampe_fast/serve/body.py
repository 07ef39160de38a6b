"""Read a request's body within limits of size, time and total memory of all bodies."""

from __future__ import annotations

import asyncio

from starlette.requests import ClientDisconnect, Request


class RefusalError(Exception):
    """A request is refused.

    Attributes:
        code: status code of the reply.
        reason: a sentence for the client.
        retry_after: seconds after which to retry; None if that would not help.
        close: whether the connection is closed after the reply.
    """

    def __init__(self, code: int, reason: str, *, retry_after: int | None = None, close: bool = False) -> None:
        self.code = code
        self.reason = reason
        self.retry_after = retry_after
        self.close = close
        super().__init__(reason)


class ClientGoneError(Exception):
    """The client has disconnected, so that no reply is needed."""


class ReadingRoom:
    """Limits the total bytes of bodies that are being read or decoded; used in the event loop's thread."""

    def __init__(self, size: int) -> None:
        """Set the limit in bytes."""
        self._size = size
        self._taken = 0

    def enter(self, count: int) -> None:
        """Reserve more bytes.

        Raises:
            RefusalError: they are not available now.
        """
        if self._taken + count > self._size:
            raise RefusalError(429, "too many bodies are being read", retry_after=1)
        self._taken += count

    def leave(self, count: int) -> None:
        """Release bytes."""
        self._taken -= count


async def read_body(request: Request, most: int, seconds: float, room: ReadingRoom) -> bytes:
    """Read a body; the caller must release its bytes.

    Args:
        request: the request, with an unread body.
        most: limit of declared or received bytes.
        seconds: limit of the time.
        room: reservation of the bytes as they arrive.

    Raises:
        RefusalError: the body is too large, too slow, or there is no room.
        ClientGoneError: the client disconnected.
    """
    declared = request.headers.get("content-length")
    if declared is not None and declared.isdecimal() and int(declared) > most:
        raise _too_large(most)
    parts: list[bytes] = []
    taken = 0

    async def read() -> None:
        nonlocal taken
        async for part in request.stream():
            if taken + len(part) > most:
                raise _too_large(most)
            room.enter(len(part))
            taken += len(part)
            parts.append(part)

    try:
        await asyncio.wait_for(read(), seconds)
        return b"".join(parts)
    except BaseException as error:
        room.leave(taken)
        if isinstance(error, asyncio.TimeoutError):
            raise RefusalError(408, f"the body did not arrive within {seconds:g} s", close=True) from None
        if isinstance(error, ClientDisconnect):
            raise ClientGoneError from error
        raise


async def discard_body(request: Request, most: int, seconds: float) -> None:
    """Read and discard a body, as a reply would be lost if the connection closed while the body arrives.

    Args:
        request: the request, with an unread body.
        most: limit in bytes.
        seconds: limit of the time; after either limit the rest is not read.
    """

    async def read() -> None:
        taken = 0
        async for part in request.stream():
            taken += len(part)
            if taken > most:
                return

    try:
        await asyncio.wait_for(read(), seconds)
    except asyncio.TimeoutError:
        return
    except ClientDisconnect as error:
        raise ClientGoneError from error


def _too_large(most: int) -> RefusalError:
    return RefusalError(413, f"the body is larger than the limit of {most} bytes")
