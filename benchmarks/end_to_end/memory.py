"""Measure the peak memory of one call in a process of its own, which is given the request as JSON on its input.

On a GPU: what torch's allocator has handed out at its peak during the second call, above model and images; so what a
CUDA graph holds between calls is in it. On Linux's CPU: the growth of the resident set during the second call, by the
kernel's own high-water mark. The first call warms up: it compiles, and the libraries set up their threads.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from typing import Any

import torch

from ..common.timing import Call
from .cases import Case, ModelSpec, Way
from .contestants import Models, build, in_precision, load_images


def measure_peak(request: dict[str, Any]) -> dict[str, Any]:
    """Return ``peak_bytes`` (None where nothing counts it) and ``peak_is``, what was counted."""
    torch.set_num_threads(request["threads"])
    device = torch.device(request["device"])
    case, way = Case(**request["case"]), Way(**request["way"])
    model = ModelSpec(**request["model"]).load(device)
    images = load_images(request["images"], case.batch, case.side, model).to(device)
    models = Models.of(model, images[:1], plain=way.method == "public_attexplore")
    with torch.no_grad():
        targets = model(images).argmax(1)
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    call = build(way, case, models, request["chunk"], images, targets, warm=True)
    call = in_precision(call, way.precision, device)
    return peak_of(call, device, before)


def peak_of(call: Call, device: torch.device, before: int | None = None) -> dict[str, Any]:
    """Measure the peak memory of a call's second run: ``peak_bytes`` and ``peak_is`` as of ``measure_peak``.

    Args:
        call: what is run.
        device: that it works on.
        before: bytes that a GPU had handed out before the call was built; None for those of now.
    """
    gpu = device.type == "cuda"
    if before is None:
        before = torch.cuda.memory_allocated(device) if gpu else 0
    call()
    gc.collect()
    if not gpu:
        return resident_growth(call)
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device) - before
    return {"peak_bytes": peak, "peak_is": "allocated on the GPU above model and images"}


def resident_growth(call: Any) -> dict[str, Any]:
    """Measure by how much the resident set of this process exceeds, at its peak during the call, that before it."""
    try:
        _give_back()
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
        before = _status("VmRSS")
        call()
        peak = _status("VmHWM")
    except OSError as error:
        return {"peak_bytes": None, "peak_is": f"not counted: {error}"}
    return {"peak_bytes": max(0, peak - before), "peak_is": "growth of the resident set"}


def _give_back() -> None:
    """Let the C library return what it keeps of freed memory; where it cannot, what it keeps goes uncounted."""
    import ctypes

    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _status(key: str) -> int:
    """Read a value of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return 1024 * int(line.split()[1])
    raise OSError(f"no {key} in /proc/self/status")


if __name__ == "__main__":
    json.dump(measure_peak(json.load(sys.stdin)), sys.stdout)
    print()
