"""Decode images ahead of the model in separate processes, so that an image that kills one does not end the run.

The pool is the standard library's and not torch's ``DataLoader``, which raises a decoder's death in the middle of the
main thread's computations, and passes tensors through ``/dev/shm``, which is small in containers and kills processes
that write to it when it is full.
"""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures import TimeoutError as TookTooLongError
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..answers.pixels import Pixels, pixels_of, same_words
from ..answers.result import RowError
from ..errors import ImageReadError, first_line, kind_and_line, warn
from ..images import read_image_bytes
from ..runtime.processes import obey_parent_alone, spawning
from .failures import PermanentError, TransientError
from .image_bytes import read_bytes
from .plan import Plan, Row

Decoded = Pixels | RowError
"""An image (C, H, W), in bytes, or in [0, 1] if bytes cannot hold the transform's values; or the reason for none."""

PATIENCE = 600.0
"""Seconds after which a process that does not answer counts as dead; long enough for slow stores."""
PATIENCE_ALONE = 180.0
"""The same for one image in its own process."""


class DecoderDiedError(Exception):
    """A decoding process died or hangs, and it is unknown which image caused it."""


@dataclass(frozen=True)
class Decoder:
    """Turns rows into pixels at the model's size; errors of images are returned, not raised.

    Attributes:
        transform: the classifier's transform.
        max_pixels: the plan's limit of pixels.
        max_bytes: the plan's limit of bytes.
    """

    transform: Callable[[Image.Image], Tensor]
    max_pixels: int
    max_bytes: int

    @classmethod
    def of(cls, plan: Plan, transform: Callable[[Image.Image], Tensor]) -> Decoder:
        """Make the decoder of a plan."""
        return cls(transform, plan.max_pixels, plan.max_bytes)

    def __call__(self, rows: Sequence[Row]) -> list[Decoded]:
        """Decode some rows, in order."""
        return [self._decode(row) for row in rows]

    def _decode(self, row: Row) -> Decoded:
        try:
            image = read_image_bytes(read_bytes(row, self.max_bytes), row.address, max_pixels=self.max_pixels)
            return pixels_of(image, self.transform)
        except PermanentError as error:
            return RowError(first_line(error), "permanent")
        except TransientError as error:
            return RowError(first_line(error), "transient")
        except ImageReadError as error:
            kind = "transient" if isinstance(error.__cause__, MemoryError) else "permanent"
            return RowError(same_words(error.reason), kind)  # type: ignore[arg-type]
        except MemoryError:
            return RowError("the image does not fit into memory", "transient")
        except ValueError as error:  # the transform's refusal
            return RowError(same_words(first_line(error)), "permanent")
        except ImportError:  # a missing package concerns every image of this kind
            raise
        except Exception as error:  # a foreign transform may raise anything
            return RowError(same_words(kind_and_line(error)), "permanent")


class Decoders:
    """Decoding processes; without any, images are decoded in this process."""

    def __init__(self, decoder: Decoder, processes: int) -> None:
        """Store the settings; processes start later.

        Args:
            decoder: the decoder that they run.
            processes: number of processes; 0 decodes in this process, when an image is needed.
        """
        self._decoder = decoder
        self.processes = processes
        if processes:
            try:
                pickle.dumps(decoder)
            except Exception as error:  # pickling may raise anything
                self.processes = 0
                warn(f"the model's transform cannot be sent to decoding processes: {first_line(error)}")
        self._pool: ProcessPoolExecutor | None = None
        self._alone = _Alone(decoder)

    def here(self, rows: Sequence[Row]) -> list[Decoded]:
        """Decode some rows in this process."""
        return self._decoder(rows)

    def submit(self, rows: Sequence[Row]) -> Future[list[Decoded]]:
        """Submit some rows to the processes.

        Raises:
            DecoderDiedError: as ``result``.
        """
        if self._pool is None:
            self._pool = ProcessPoolExecutor(self.processes, spawning(), _begin, (self._decoder,))
        try:
            return self._pool.submit(_decode, tuple(rows))
        except BrokenProcessPool as error:
            raise self._died(error) from error

    def result(self, asked: Future[list[Decoded]]) -> list[Decoded]:
        """Wait for submitted rows.

        Raises:
            DecoderDiedError: a process died or hangs; all submitted rows are lost, and new processes are started next.
        """
        try:
            return asked.result(PATIENCE)
        except (BrokenProcessPool, TookTooLongError) as error:
            raise self._died(error) from error

    def _died(self, error: BaseException) -> DecoderDiedError:
        self.close()
        return DecoderDiedError(first_line(error))

    def one_by_one(self, rows: Sequence[Row]) -> Iterator[Decoded]:
        """Decode one row at a time in a separate process, so that a row that kills it fails alone."""
        return map(self._alone.decode, rows)

    def close(self) -> None:
        """End all processes immediately."""
        self._alone.close()
        pool, self._pool = self._pool, None
        if pool is not None:
            for process in list((getattr(pool, "_processes", None) or {}).values()):
                process.kill()
            pool.shutdown(cancel_futures=True)


_decoder: Decoder | None = None  # state of a decoding process


def _begin(decoder: Decoder) -> None:
    global _decoder
    obey_parent_alone()
    torch.set_num_threads(1)
    _decoder = decoder


def _decode(rows: Sequence[Row]) -> list[Decoded]:
    assert _decoder is not None
    return _decoder(rows)


class _Alone:
    """A process that decodes one image after the other, and is restarted after an image has killed it."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._process: Any = None
        self._pipe: Connection | None = None

    def decode(self, row: Row) -> Decoded:
        if self._process is None:
            context = spawning()
            self._pipe, theirs = context.Pipe()
            self._process = context.Process(target=_serve, args=(self._decoder, theirs), daemon=True)
            self._process.start()
            theirs.close()
        assert self._pipe is not None
        try:
            self._pipe.send(row)
            if not self._pipe.poll(PATIENCE_ALONE):
                self.close()
                # It may have been waiting for a store.
                return RowError(f"the decoder took more than {PATIENCE_ALONE:.0f} seconds", "transient")
            found: Decoded = self._pipe.recv()
            return found
        except (EOFError, OSError):
            self._process.join()
            code = self._process.exitcode
            self.close()
            return _of_death(code)

    def close(self) -> None:
        process, pipe = self._process, self._pipe
        self._process = self._pipe = None
        if pipe is not None:
            pipe.close()
        if process is not None:
            process.kill()
            process.join()


def _serve(decoder: Decoder, pipe: Connection) -> None:
    _begin(decoder)
    try:
        while True:
            pipe.send(decoder([pipe.recv()])[0])
    except (EOFError, OSError):  # the parent has its result
        return


def _of_death(code: int) -> RowError:
    """Describe a decoder's death; a process killed for lack of memory counts as temporary."""
    if code >= 0:
        return RowError(f"the decoder died, exit code {code}", "permanent")
    name = f"signal {-code}"
    if -code == getattr(signal, "SIGKILL", 9):
        return RowError(f"the decoder died, {name} (out of memory, or killed by hand)", "transient")
    return RowError(f"the decoder died, {name}", "permanent")


def usual_processes(device: str, devices: int = 1) -> int:
    """Choose the number of decoding processes of a device: one for a CPU, else a share of the cores up to 8."""
    if device.startswith("cpu"):
        return 1
    return max(1, min(8, (os.cpu_count() or 2) // devices))
