"""Read how much memory of a device is free."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import torch

# By the identity of what holds it.
_HELD: dict[int, tuple[torch.device, int]] = {}


def free_memory(device: torch.device) -> int | None:
    """Read the free memory of a device in bytes; None where it cannot be read."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        reserved, allocated = _of_allocator(device)
        held = sum(count for where, count in list(_HELD.values()) if where == device)
        return max(0, int(free) + reserved - allocated - held)
    if device.type == "cpu":
        try:
            lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        except OSError:
            return None
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
    return None


def reserved_memory(device: torch.device) -> int:
    """Read how many bytes of a CUDA device torch's allocator has reserved."""
    return _of_allocator(device)[0]


def note_held(owner: object, device: torch.device, count: int) -> None:
    """Count memory as taken that torch's allocator has reserved for one owner, for as long as the owner lives."""
    _HELD[id(owner)] = device, count
    weakref.finalize(owner, _HELD.pop, id(owner), None)


def _of_allocator(device: torch.device) -> tuple[int, int]:
    """Read the bytes that are reserved, and those of them that tensors have."""
    # Nested, as torch takes longer to flatten these numbers than some models for a pass.
    found: Any = torch.cuda.memory_stats_as_nested_dict(device)  # type: ignore[no-untyped-call]
    reserved, allocated = (int(found[f"{kind}_bytes"]["all"]["current"]) for kind in ("reserved", "allocated"))
    return reserved, allocated
