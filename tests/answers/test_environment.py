"""What a map's last bits depend on: what is read of this machine, and when bits may differ on the next."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from fampe_fast.answers.environment import processor_of, reasons_for_other_bits, versions_now

_CPU = {"device": "cpu", "backend": "triton", "processor": "AMD EPYC 9B14", "torch": "2.14.1"}
_GPU = {**_CPU, "device": "cuda", "processor": "NVIDIA H100 80GB HBM3"}


def test_versions_are_those_of_what_is_installed() -> None:
    found = versions_now()
    assert found["torch"] == torch.__version__.partition("+")[0] or found["torch"] == torch.__version__
    assert {"fampe_fast", "python", "numpy", "pillow", "timm"} <= found.keys()


def test_bits_are_demanded_on_the_same_cpu_alone() -> None:
    assert reasons_for_other_bits(_CPU, _CPU) == []
    other = {**_CPU, "processor": "Intel(R) Xeon(R)"}
    assert reasons_for_other_bits(_CPU, other) == ["processor AMD EPYC 9B14 then, Intel(R) Xeon(R) now"]
    assert reasons_for_other_bits(_CPU, {**_CPU, "torch": "2.15.0"}) == ["torch 2.14.1 then, 2.15.0 now"]


def test_a_processor_that_was_not_noted_is_no_reason() -> None:
    """Earlier versions noted none; their maps are still held to the bit."""
    assert reasons_for_other_bits({**_CPU, "processor": None}, _CPU) == []
    assert reasons_for_other_bits({name: _CPU[name] for name in ("device", "backend", "torch")}, _CPU) == []


def test_bits_are_never_demanded_on_a_gpu() -> None:
    (reason,) = reasons_for_other_bits(_GPU, _GPU)
    assert "GPU" in reason
    assert len(reasons_for_other_bits(_CPU, _GPU)) == 3
    assert len(reasons_for_other_bits(_GPU, _CPU)) == 2  # the order of sums is fixed here


@pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux says of the processor")
def test_the_processor_is_the_one_that_the_system_names() -> None:
    name = processor_of(torch.device("cpu"))
    assert name
    if "model name" in (system := Path("/proc/cpuinfo").read_text()):
        assert f": {name}\n" in system


def test_a_gpu_is_named_by_its_own_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"card {device.index}")
    assert processor_of(torch.device("cuda", 1)) == "card 1"
