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


_EPOCH, _PROGRAM = 12, 32  # bits of a stamp below its epoch, and below its program
NEXT_EPOCH = 1 << _EPOCH
_SEVERAL = NEXT_EPOCH - 1


def stamps_of(programs: NDArray[Any], who: NDArray[Any]) -> NDArray[np.int64]:
    """Number threads, or warps, of programs; a barrier begins an epoch and adds ``NEXT_EPOCH`` to its program's."""
    return (programs.astype(np.int64) << _PROGRAM) + who + 1


class Marks:
    """Who read and who wrote each element of a memory last: a stamp.

    Where several of a program did in one epoch, the stamp ends in ``_SEVERAL``. 0 is nobody, -1 several programs.

    Args:
        size: bytes.
        unit: bytes of an element.
    """

    def __init__(self, size: int, unit: int) -> None:
        self._unit, count = unit, -(-size // unit)
        self._readers, self._writers = np.zeros(count, np.int64), np.zeros(count, np.int64)

    def read(self, offsets: NDArray[np.int64], size: int, stamps: NDArray[np.int64], text: str) -> None:
        """Refuse to read what another one wrote, unless a barrier of their program lies between."""
        for element in self._elements(offsets, size):
            if _unordered(self._writers[element], stamps).any():
                raise IllegalAccessError(f"a thread reads what another one wrote, without a barrier between: {text}")
            _mark(self._readers, element, stamps)

    def write(
        self,
        offsets: NDArray[np.int64],
        size: int,
        stamps: NDArray[np.int64],
        changes: NDArray[np.bool_],
        text: str,
    ) -> None:
        """Refuse to change what another one wrote or read, as above. Writing the same again is harmless."""
        for element in self._elements(offsets, size):
            for marks in (self._writers, self._readers):
                if (_unordered(marks[element], stamps) & changes).any():
                    raise IllegalAccessError(
                        f"a thread changes what another one read or wrote, without a barrier between: {text}"
                    )
            _mark(self._writers, element, stamps)

    def _elements(self, offsets: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
        return [(offsets + k) // self._unit for k in range(0, size, self._unit)]


def _unordered(mark: NDArray[np.int64], stamp: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Find the marks that neither a barrier nor the order within a thread puts before the stamps."""
    ordered = (mark >> _PROGRAM == stamp >> _PROGRAM) & (mark >> _EPOCH != stamp >> _EPOCH)
    unordered: NDArray[np.bool_] = (mark != 0) & (mark != stamp) & ~ordered
    return unordered


def _mark(marks: NDArray[np.int64], element: NDArray[np.int64], stamp: NDArray[np.int64]) -> None:
    before = marks[element]
    unordered = _unordered(before, stamp)
    if unordered.any():
        several = np.where(before >> _PROGRAM == stamp >> _PROGRAM, stamp | _SEVERAL, -1)
        stamp = np.where(unordered, several, stamp)
    marks[element] = stamp
    # Of several in one instruction one's mark is kept: all others must find that they are not alone.
    late = marks[element] != stamp
    if late.any():
        element, stamp = element[late], stamp[late]
        elsewhere = marks[element] >> _PROGRAM != stamp >> _PROGRAM
        marks[element] = stamp | _SEVERAL
        marks[element[elsewhere]] = -1


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
        self.marks = Marks(size, tensor.element_size())


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
        self, addresses: NDArray[np.int64], stamps: NDArray[np.int64], width: int, count: int, text: str
    ) -> list[Words]:
        """``count`` words of ``width`` bytes from each address."""
        buffer, offsets = self._offsets(addresses, width * count, text)
        traffic.note(self._kernel, "ld", addresses, stamps)
        buffer.marks.read(offsets, width * count, stamps, text)
        return [buffer.words[width][offsets // width + k] for k in range(count)]

    def store(
        self, addresses: NDArray[np.int64], stamps: NDArray[np.int64], values: list[Words], width: int, text: str
    ) -> None:
        """Consecutive words of ``width`` bytes to each address."""
        buffer, offsets = self._offsets(addresses, width * len(values), text)
        traffic.note(self._kernel, "st", addresses, stamps)
        words = buffer.words[width]
        for k, value in enumerate(values):
            place = offsets // width + k
            changes = words[place] != value
            buffer.marks.write(offsets + k * width, width, stamps, changes, text)
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
        self, addresses: NDArray[np.int64], stamps: NDArray[np.int64], width: int, count: int, text: str
    ) -> list[Words]:
        """As of ``GlobalMemory``."""
        region = _accessed(self._regions, addresses, width * count, text)
        return [np.full(len(addresses), self._full_of.get(region.name, 0), f"u{width}") for _ in range(count)]

    def store(
        self, addresses: NDArray[np.int64], stamps: NDArray[np.int64], values: list[Words], width: int, text: str
    ) -> None:
        """As of ``GlobalMemory``."""
        size = width * len(values)
        region = _accessed(self._regions, addresses, size, text)
        left = region.end - int(addresses.max()) - size
        self.written[region.name] = min(left, self.written.get(region.name, left))


class SharedMemory:
    """The scratch memory of every program: (programs, bytes), filled with a pattern that no kernel writes.

    Args:
        programs: side by side.
        size: bytes of each.
        unit: bytes of the narrowest access.
    """

    def __init__(self, programs: int, size: int, unit: int) -> None:
        self.size = size
        self._stride = -(-max(size, 1) // 16) * 16
        self._bytes = np.full(programs * self._stride, 0xA5, np.uint8)
        self._marks = Marks(len(self._bytes), unit)

    def _offsets(
        self, addresses: NDArray[np.int64], stamps: NDArray[np.int64], size: int, text: str
    ) -> NDArray[np.int64]:
        if addresses.min() < 0 or addresses.max() + size > self.size:
            raise IllegalAccessError(f"address outside of the {self.size} bytes of shared memory: {text}")
        if (addresses % size).any():
            raise IllegalAccessError(f"shared address that is not a multiple of {size} bytes: {text}")
        offsets: NDArray[np.int64] = (stamps >> _PROGRAM) * self._stride + addresses
        return offsets

    def load(
        self, addresses: NDArray[np.int64], stamps: NDArray[np.int64], width: int, count: int, text: str
    ) -> list[Words]:
        """``count`` words of ``width`` bytes from each address of the program that is stamped, beside its warp."""
        offsets = self._offsets(addresses, stamps, width * count, text)
        self._marks.read(offsets, width * count, stamps, text)
        words = self._bytes.view(f"u{width}")
        return [words[offsets // width + k] for k in range(count)]

    def store(
        self, addresses: NDArray[np.int64], stamps: NDArray[np.int64], values: list[Words], width: int, text: str
    ) -> None:
        """Consecutive words of ``width`` bytes to each address of the program, as above."""
        offsets = self._offsets(addresses, stamps, width * len(values), text)
        words = self._bytes.view(f"u{width}")
        for k, value in enumerate(values):
            place = offsets // width + k
            self._marks.write(offsets + k * width, width, stamps, words[place] != value, text)
            words[place] = value
            if (words[place] != value).any():
                raise IllegalAccessError(f"two threads write different values to one shared place: {text}")
