"""Read a request's body within its limits: of size, of time, and of what all bodies together may take."""

from __future__ import annotations

import asyncio

from starlette.requests import ClientDisconnect, Request


class RefusalError(Exception):
    """A request is refused.

    Attributes:
        code: of the answer.
        reason: in a sentence, for the client.
        retry_after: seconds after which to come again; None where that would not help.
        close: whether the connection ends with the answer.
    """

    def __init__(self, code: int, reason: str, *, retry_after: int | None = None, close: bool = False) -> None:
        self.code = code
        self.reason = reason
        self.retry_after = retry_after
        self.close = close
        super().__init__(reason)


class ClientGoneError(Exception):
    """The client has left, and nobody waits for an answer."""


class ReadingRoom:
    """Bounds the bytes of all bodies that are being read or decoded; used in the event loop's thread."""

    def __init__(self, size: int) -> None:
        """Make an empty room of so many bytes."""
        self._size = size
        self._taken = 0

    def enter(self, count: int) -> None:
        """Take room for so many bytes more.

        Raises:
            RefusalError: there is none now.
        """
        if self._taken + count > self._size:
            raise RefusalError(429, "too many bodies are being read", retry_after=1)
        self._taken += count

    def leave(self, count: int) -> None:
        """Give room back."""
        self._taken -= count


async def read_body(request: Request, most: int, seconds: float, room: ReadingRoom) -> bytes:
    """Read a body, whose room the caller gives back.

    Args:
        request: nothing of whose body was read.
        most: bytes, declared or counted.
        seconds: in which it must have come.
        room: where it has to find place, as it comes.

    Raises:
        RefusalError: it is too large, too slow, or there is no room.
        ClientGoneError: the client left.
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
            raise RefusalError(408, f"the body did not come within {seconds:g} s", close=True) from None
        if isinstance(error, ClientDisconnect):
            raise ClientGoneError from error
        raise


async def discard_body(request: Request, most: int, seconds: float) -> None:
    """Read a body and forget it: an answer on a connection that is closed while it comes would be lost with it.

    Args:
        request: nothing of whose body was read.
        most: bytes.
        seconds: in which it must have come; after them, or after more bytes, the rest is left.
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
