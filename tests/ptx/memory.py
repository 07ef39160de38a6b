"""Global and shared memory as a kernel sees it: who may read what, at which alignment, and who wrote it before."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from . import traffic

Words = NDArray[Any]


class IllegalAccessError(AssertionError):
    """A thread read or wrote where a GPU would have stopped it, or where the outcome hangs on who comes first."""


class Buffer:
    """The memory of one tensor."""

    def __init__(self, tensor: Tensor) -> None:
        self.first = tensor.data_ptr()
        reach = sum((count - 1) * stride for count, stride in zip(tensor.shape, tensor.stride(), strict=True)) + 1
        self.end = self.first + reach * tensor.element_size() if tensor.numel() else self.first
        # Views of wider words must begin at multiples of their size, which the tensor need not.
        self.base = self.first // 16 * 16
        size = -(-(self.end - self.base) // 16) * 16
        memory = (ctypes.c_uint8 * size).from_address(self.base)
        self.words = {width: np.frombuffer(memory, dtype=f"u{width}") for width in (1, 2, 4, 8)}
        self.unit = tensor.element_size()
        self._writer: NDArray[np.int64] | None = None
        self._reader: NDArray[np.int64] | None = None

    def note_read(self, offset: NDArray[np.int64], thread: NDArray[np.int64], text: str) -> None:
        """Refuse to read what another thread wrote in this launch: nothing orders the two."""
        writer, reader = self._marks()
        element = offset // self.unit
        wrote = writer[element]
        if ((wrote != 0) & (wrote != thread)).any():
            raise IllegalAccessError(f"a thread reads what another one wrote in the same launch: {text}")
        seen = reader[element]
        reader[element] = np.where((seen == 0) | (seen == thread), thread, -1)
        # Of several threads in one instruction the last is kept: all others must find that they are not alone.
        alone = (reader[element] == thread) | (reader[element] == -1)
        reader[element[~alone]] = -1

    def note_write(
        self, offset: NDArray[np.int64], thread: NDArray[np.int64], changes: NDArray[np.bool_], text: str
    ) -> None:
        """Refuse to change what another thread wrote or read in this launch. Writing the same again is harmless."""
        writer, reader = self._marks()
        element = offset // self.unit
        wrote, read = writer[element], reader[element]
        foreign = ((wrote != 0) & (wrote != thread)) | ((read != 0) & (read != thread))
        if (foreign & changes).any():
            raise IllegalAccessError(f"a thread changes what another one read or wrote in the same launch: {text}")
        writer[element] = thread

    def _marks(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        if self._writer is None or self._reader is None:
            count = (self.end - self.base) // self.unit + 1
            self._writer, self._reader = np.zeros(count, np.int64), np.zeros(count, np.int64)
        return self._writer, self._reader


class _Region(NamedTuple):
    first: int
    end: int
    name: str


_Place = TypeVar("_Place", Buffer, _Region)


def _accessed(places: Iterable[_Place], addresses: NDArray[np.int64], size: int, text: str) -> _Place:
    """The one place that holds ``size`` bytes from every address on.

    Raises:
        IllegalAccessError: none does, or an address is not a multiple of ``size``.
    """
    if (addresses % size).any():
        raise IllegalAccessError(f"address that is not a multiple of {size} bytes: {text}")
    low, high = int(addresses.min()), int(addresses.max()) + size
    for place in places:
        if place.first <= low and high <= place.end:
            return place
    raise IllegalAccessError(f"illegal address {low:#x} to {high:#x}, outside of every tensor: {text}")


class GlobalMemory:
    """The tensors that a launch was given; every other address is illegal.

    Args:
        tensors: of the launch.
        kernel: its name.
    """

    def __init__(self, tensors: list[Tensor], kernel: str = "kernel") -> None:
        self._kernel = kernel
        found = {tensor.data_ptr(): Buffer(tensor) for tensor in sorted(tensors, key=lambda t: t.nbytes)}
        self._buffers = sorted((b for b in found.values() if b.end > b.first), key=lambda buffer: buffer.first)

    def _offsets(self, addresses: NDArray[np.int64], size: int, text: str) -> tuple[Buffer, Words]:
        buffer = _accessed(self._buffers, addresses, size, text)
        return buffer, addresses - buffer.base

    def load(
        self, addresses: NDArray[np.int64], threads: NDArray[np.int64], width: int, count: int, text: str
    ) -> list[Words]:
        """``count`` words of ``width`` bytes from each address."""
        buffer, offsets = self._offsets(addresses, width * count, text)
        traffic.note(self._kernel, "ld", addresses, threads)
        for offset in range(0, width * count, min(width, buffer.unit)):
            buffer.note_read(offsets + offset, threads, text)
        return [buffer.words[width][offsets // width + k] for k in range(count)]

    def store(
        self, addresses: NDArray[np.int64], threads: NDArray[np.int64], values: list[Words], width: int, text: str
    ) -> None:
        """Consecutive words of ``width`` bytes to each address."""
        buffer, offsets = self._offsets(addresses, width * len(values), text)
        traffic.note(self._kernel, "st", addresses, threads)
        words = buffer.words[width]
        for k, value in enumerate(values):
            place = offsets // width + k
            changes = words[place] != value
            for offset in range(0, width, min(width, buffer.unit)):
                buffer.note_write(offsets + k * width + offset, threads, changes, text)
            words[place] = value
            if (words[place] != value).any():
                raise IllegalAccessError(f"two threads write different values to one place: {text}")


class VirtualMemory:
    """Tensors of any size that take no memory: reads give a number that the tensor is full of, writes are noted.

    Args:
        tensors: by name; they may be on the meta device.
        full_of: the number by tensor's name, 0 for the others.
    """

    def __init__(self, tensors: Mapping[str, Tensor], full_of: Mapping[str, int]) -> None:
        self.addresses = {name: (k + 1) << 44 for k, name in enumerate(tensors)}
        self._regions = [_Region(first, first + tensors[name].nbytes, name) for name, first in self.addresses.items()]
        self._full_of = full_of
        self.written: dict[str, int] = {}
        """Of each tensor that was written to, how many bytes lie behind the last one written."""

    def load(
        self, addresses: NDArray[np.int64], threads: NDArray[np.int64], width: int, count: int, text: str
    ) -> list[Words]:
        """As of ``GlobalMemory``."""
        region = _accessed(self._regions, addresses, width * count, text)
        return [np.full(len(addresses), self._full_of.get(region.name, 0), f"u{width}") for _ in range(count)]

    def store(
        self, addresses: NDArray[np.int64], threads: NDArray[np.int64], values: list[Words], width: int, text: str
    ) -> None:
        """As of ``GlobalMemory``."""
        size = width * len(values)
        region = _accessed(self._regions, addresses, size, text)
        left = region.end - int(addresses.max()) - size
        self.written[region.name] = min(left, self.written.get(region.name, left))


class SharedMemory:
    """The scratch memory of every program: (programs, bytes), filled with a pattern that no kernel writes."""

    def __init__(self, programs: int, size: int) -> None:
        self.size = size
        self._bytes = np.full((programs, -(-max(size, 1) // 16) * 16), 0xA5, np.uint8)

    def _places(self, addresses: NDArray[np.int64], width: int, count: int, text: str) -> NDArray[np.int64]:
        if addresses.min() < 0 or addresses.max() + width * count > self.size:
            raise IllegalAccessError(f"address outside of the {self.size} bytes of shared memory: {text}")
        if (addresses % (width * count)).any():
            raise IllegalAccessError(f"shared address that is not a multiple of {width * count} bytes: {text}")
        places: NDArray[np.int64] = addresses // width
        return places

    def load(
        self, addresses: NDArray[np.int64], programs: NDArray[np.int64], width: int, count: int, text: str
    ) -> list[Words]:
        """``count`` words of ``width`` bytes from each address of the thread's program."""
        place = self._places(addresses, width, count, text)
        words = self._bytes.view(f"u{width}")
        return [words[programs, place + k] for k in range(count)]

    def store(
        self, addresses: NDArray[np.int64], programs: NDArray[np.int64], values: list[Words], width: int, text: str
    ) -> None:
        """Consecutive words of ``width`` bytes to each address of the thread's program."""
        place = self._places(addresses, width, len(values), text)
        words = self._bytes.view(f"u{width}")
        for k, value in enumerate(values):
            words[programs, place + k] = value
            if (words[programs, place + k] != value).any():
                raise IllegalAccessError(f"two threads write different values to one shared place: {text}")
