"""Tensors of more than 2^31 elements: the kernels' compiled code addresses them, on a machine without that memory."""

from __future__ import annotations

import inspect
import os

import pytest
import torch
from torch import Tensor

if "FAMPE_FAST_PTX" not in os.environ:
    pytest.skip("test_compiled_code runs this, on the machine", allow_module_level=True)

from benchmarks.kernels.launches import record
from benchmarks.kernels.primitives import primitive
from benchmarks.kernels.sizes import Size
from fampe_fast.ops.backends import OPS

from ..ptx.instructions import Approximation
from ..ptx.machine import run
from ..ptx.memory import VirtualMemory
from ..ptx.program import parse

IMAGES = 1100
SIZE = Size(IMAGES, 1, 2048, 2048)
FULL_OF = {"image_index_ptr": IMAGES - 1, "used_ptr": 36}
"""Every row shows the last image; every tile uses all of its bins."""

CALLS: list[tuple[str, dict[str, int]]] = [(op, {}) for op in OPS]
# Rows in runs: with a program for every row the last one begins far behind the first.
CALLS += [(op, {"run": 1}) for op in OPS if "run" in inspect.signature(primitive(op).kernel()).parameters]


@pytest.mark.parametrize(("name", "options"), CALLS)
def test_the_last_program_writes_the_last_element(
    name: str, options: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.kernels.sizes.CHUNK", IMAGES)
    entry = primitive(name)
    arguments = entry.arguments(entry.fitted(SIZE), torch.device("meta"))
    largest = 0
    launches = record(lambda: entry.kernel()(**arguments, **options))
    for launch in launches:
        compiled = launch.compile()
        kinds, named = compiled.src.signature, launch.named
        values = {key: named[key] for key in launch.kernel.arg_names if kinds[key] != "constexpr"}
        tensors = {key: value for key, value in values.items() if isinstance(value, Tensor)}
        memory = VirtualMemory(tensors, FULL_OF)
        chosen = [0, launch.programs // 2, launch.programs - 1]
        passed = [memory.addresses.get(key, value) for key, value in values.items()]
        program = parse(compiled.asm["ptx"])
        run(program, launch.programs, passed, memory, compiled.metadata.shared, Approximation(), only=chosen)
        # A tile has room for 36 shells, and the last one, in a corner of the plane, crosses fewer. The last row's
        # numbers beyond a quarter of the image's width are written with the second row's, by another program.
        beyond = SIZE.width // 2 - SIZE.width // 4 - 1
        allowed = {"tile_energy": 35 * 4, "band_samples": beyond * 8}.get(launch.name, 0)
        assert memory.written, launch.name
        assert max(memory.written.values()) <= allowed, (launch.name, memory.written)
        largest = max(largest, *(tensor.numel() for tensor in tensors.values()))
    assert largest > 2**31
