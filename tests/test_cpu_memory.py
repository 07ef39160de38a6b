from __future__ import annotations

import os
import platform
import subprocess
import sys
import textwrap
import threading
from contextlib import suppress

import pytest
import torch
from models_for_tests import Smooth, some_images

from fampe_fast import FAMPE, insertion_deletion
from fampe_fast.cpu_memory import _KEEP, _USUAL, VARIABLE, kept_memory

CPU = torch.device("cpu")


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> list[dict[int, int]]:
    """What the C library would be told, call by call."""
    told: list[dict[int, int]] = []
    monkeypatch.setattr("fampe_fast.cpu_memory._mallopt", lambda: lambda name, value: 1)
    monkeypatch.setattr("fampe_fast.cpu_memory._set", lambda change, values: told.append(values))
    for name in [name for name in os.environ if name.startswith("MALLOC_") or name in ("GLIBC_TUNABLES", VARIABLE)]:
        monkeypatch.delenv(name)
    return told


def test_memory_is_kept_from_the_first_block_to_the_last(settings: list[dict[int, int]]) -> None:
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with kept_memory(CPU):
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with suppress(KeyError), kept_memory(CPU):
        thread.start()
        entered.wait(10)
        with kept_memory(CPU):
            pass
        assert settings == [_KEEP]
        raise KeyError
    assert settings == [_KEEP]  # the other thread goes on
    leave.set()
    thread.join(10)
    assert settings == [_KEEP, _USUAL]


@pytest.mark.parametrize(
    "environment",
    [{VARIABLE: "0"}, {"MALLOC_TRIM_THRESHOLD_": "65536"}, {"GLIBC_TUNABLES": "glibc.malloc.arena_max=1"}],
)
def test_nothing_is_changed_where_the_environment_says_so(
    environment: dict[str, str], settings: list[dict[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with kept_memory(CPU):
        pass
    assert not settings


def test_other_devices_are_none_of_its_business(settings: list[dict[int, int]]) -> None:
    with kept_memory(torch.device("cuda")):
        pass
    assert not settings


def test_methods_and_metrics_keep_memory(settings: list[dict[int, int]]) -> None:
    model, images = Smooth(), some_images(1)
    maps = FAMPE(model, steps=1, samples=1).attribute(images, target=0)
    assert settings == [_KEEP, _USUAL]
    insertion_deletion(model, images, maps, 0, steps=2, mean=0.5)
    assert settings == [_KEEP, _USUAL] * 2


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library here is not glibc")
def test_kept_memory_is_not_faulted_in_again() -> None:
    """Counts page faults, which are the same on every machine, in a process whose memory nobody has used before."""
    script = textwrap.dedent("""
        import resource, torch
        from fampe_fast.cpu_memory import kept_memory

        def faults():
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            for _ in range(4):
                torch.ones(16 << 20).add_(1)  # 64 MiB, more than glibc ever keeps by itself
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

        torch.set_num_threads(1)
        faults()
        usual = faults()
        with kept_memory(torch.device("cpu")):
            faults()
            kept = faults()
        after = faults() + faults()
        print(usual, kept, after)
    """)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_") and k != "GLIBC_TUNABLES"}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env={**environment, VARIABLE: "1"}
    )
    usual, kept, after = map(int, done.stdout.split())
    if usual < 100:
        pytest.skip("this allocator keeps such blocks by itself")
    assert kept < 0.05 * usual
    assert after > usual / 2  # given back as before
