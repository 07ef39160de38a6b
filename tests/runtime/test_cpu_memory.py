from __future__ import annotations

import os
import platform
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import suppress

import pytest
import torch

from fampe_fast import FAMPE, insertion_deletion
from fampe_fast.runtime import cpu_memory
from fampe_fast.runtime.cpu_memory import _KEEP, _USUAL, VARIABLE, kept_memory

from ..models_for_tests import Smooth, some_images

CPU = torch.device("cpu")


class Allocator:
    """Notes what the C library would be told."""

    def __init__(self) -> None:
        self.told: list[dict[int, int] | str] = []

    def mallopt(self, name: int, value: int) -> int:
        if not self.told or isinstance(self.told[-1], str) or name in self.told[-1]:
            self.told.append({})
        self.told[-1][name] = value
        return 1

    def malloc_trim(self, left: int) -> int:
        assert left == 0
        self.told.append("trim")
        return 1


KEPT, GIVEN_BACK = [_KEEP], [_KEEP, _USUAL, "trim"]


def settled() -> None:
    """Wait until nobody waits to give memory back."""
    end = time.monotonic() + 10
    while cpu_memory._waiting:
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[dict[int, int] | str]:
    """What the C library would be told, call by call."""
    allocator = Allocator()
    settled()
    monkeypatch.setattr("fampe_fast.runtime.cpu_memory._glibc", lambda: allocator)
    monkeypatch.setattr(cpu_memory, "IDLE", 0.05)
    for name in [name for name in os.environ if name.startswith("MALLOC_") or name in ("GLIBC_TUNABLES", VARIABLE)]:
        monkeypatch.delenv(name)
    return allocator.told


def test_memory_is_kept_from_the_first_block_to_the_last(told: list[dict[int, int] | str]) -> None:
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
        assert told == KEPT
        raise KeyError
    assert told == KEPT  # the other thread goes on
    leave.set()
    thread.join(10)
    settled()
    assert told == GIVEN_BACK


def test_calls_that_follow_each_other_keep_the_memory(
    told: list[dict[int, int] | str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_memory, "IDLE", 1.0)
    for _ in range(20):
        with kept_memory(CPU):
            pass
        time.sleep(0.01)
    assert "trim" not in told
    assert [thread.name for thread in threading.enumerate()].count("kept memory") == 1
    settled()
    assert told[-2:] == [_USUAL, "trim"]
    assert told.count("trim") == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a fork")
def test_a_forked_process_gives_back_what_it_keeps(told: list[dict[int, int] | str]) -> None:
    with kept_memory(CPU):
        pass
    child = os.fork()
    if child == 0:  # the thread that waits is the parent's
        with kept_memory(CPU):
            pass
        with suppress(AssertionError):
            settled()
        os._exit(0 if told[-1] == "trim" else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    settled()


@pytest.mark.parametrize(
    "environment",
    [{VARIABLE: "0"}, {"MALLOC_TRIM_THRESHOLD_": "65536"}, {"GLIBC_TUNABLES": "glibc.malloc.arena_max=1"}],
)
def test_nothing_is_changed_where_the_environment_says_so(
    environment: dict[str, str], told: list[dict[int, int] | str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with kept_memory(CPU):
        pass
    assert not told


def test_other_devices_are_none_of_its_business(told: list[dict[int, int] | str]) -> None:
    with kept_memory(torch.device("cuda")):
        pass
    assert not told


def test_methods_and_metrics_keep_memory(told: list[dict[int, int] | str]) -> None:
    model, images = Smooth(), some_images(1)
    maps = FAMPE(model, steps=1, samples=1).attribute(images, target=0)
    settled()
    assert told == GIVEN_BACK
    insertion_deletion(model, images, maps, 0, steps=2, mean=0.5)
    settled()
    assert told == GIVEN_BACK * 2


needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library here is not glibc")


def printed_by(script: str) -> list[int]:
    """The numbers a script prints in a process whose memory nobody has used before."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_") and k != "GLIBC_TUNABLES"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        check=True,
        env={**environment, VARIABLE: "1"},
    )
    return [int(number) for number in done.stdout.split()]


@pytest.mark.slow
@needs_glibc
def test_kept_memory_is_not_faulted_in_again() -> None:
    """Counts page faults, over so many blocks that it does not matter if the heap has to grow for one more of them."""
    usual, kept = printed_by("""
        import resource, torch
        from fampe_fast.runtime.cpu_memory import kept_memory

        def faults():
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            for _ in range(24):
                torch.ones(16 << 20).add_(1)  # 64 MiB, more than glibc ever keeps by itself
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

        torch.set_num_threads(1)
        faults()
        usual = faults()
        with kept_memory(torch.device("cpu")):
            faults()
            print(usual, faults())
    """)
    if usual < 100:
        pytest.skip("this allocator keeps such blocks by itself")
    assert kept < 0.1 * usual


@pytest.mark.slow
@needs_glibc
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs Linux's /proc")
def test_what_is_free_is_given_back_at_the_end() -> None:
    """Even where a small tensor outlives the block at the heap's end."""
    before, inside, after = printed_by("""
        import os, time, torch
        from fampe_fast.runtime.cpu_memory import IDLE, kept_memory

        def resident():
            return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGESIZE") >> 20

        torch.set_num_threads(1)
        torch.ones(1 << 20).add_(1)
        before = resident()
        with kept_memory(torch.device("cpu")):
            large = [torch.ones(4 << 20) for _ in range(8)]
            survivor = torch.ones(16 << 10)
            del large
            inside = resident()
        time.sleep(IDLE + 1)
        print(before, inside, resident())
    """)
    assert inside > before + 100  # of 128 MiB
    assert after < before + 16
