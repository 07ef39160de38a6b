from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.autograd import DeviceType

from benchmarks.common.command import RESULTS
from benchmarks.end_to_end import budget as command
from benchmarks.end_to_end.profiling import (
    BACKWARD,
    COMPILED,
    FORWARD,
    KINDS,
    OTHER,
    SAMPLING,
    STEP,
    Marked,
    sort_events,
)


def event(name: str, microseconds: float, *children: Any, parent: Any = None) -> Any:
    own = microseconds - sum(child.cpu_time_total for child in children)
    found = SimpleNamespace(
        name=name, cpu_time_total=microseconds, self_cpu_time_total=own, cpu_children=list(children), cpu_parent=parent,
        device_time_total=10 * microseconds, self_device_time_total=10 * own, kernels=[],
    )  # fmt: skip
    for child in children:
        child.cpu_parent = found
    return found


def test_every_event_is_counted_once_under_the_work_it_belongs_to() -> None:
    mix, inside = event("fampe_fast::band_mix", 5), event("aten::mul", 2)
    region = event("Torch-Compiled Region: 0/0", 50, mix, event("cpp_fused_0", 30, inside))
    step = event("fampe_fast::gradient_step", 7, event("aten::mul", 6))
    events = [
        event("fampe_fast budget: forward", 100, event("aten::conv2d", 90)),
        event("autograd::engine::evaluate_function: ConvolutionBackward0", 40),
        step, region, mix, inside, event("aten::cross_entropy_loss", 3),
    ]  # fmt: skip
    # A profile of a GPU also lists its kernels and, under the marks' names, when it worked on them.
    for name in ("void cudnn::kernel", "fampe_fast budget: forward"):
        kernel = event(name, 1000)
        kernel.device_type = DeviceType.CUDA
        events.append(kernel)
    for factor, on_device in ((1, False), (10, True)):
        spent = sort_events(events, on_device=on_device)
        assert spent == {
            kind: factor * value
            for kind, value in {FORWARD: 100, BACKWARD: 40, STEP: 7, SAMPLING: 5, COMPILED: 45, OTHER: 3}.items()
        }


def test_a_marked_model_is_the_model(capsys: pytest.CaptureFixture) -> None:
    model = torch.nn.Linear(3, 2).eval()
    assert not Marked(model).training
    x = torch.rand(4, 3)
    assert torch.equal(Marked(model)(x), model(x))


@pytest.mark.slow
def test_the_command_writes_shares_that_sum_to_one(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert command.main(["--dry-run", "--out", str(tmp_path)]) == 0
    (file,) = tmp_path.glob("*.json")
    rows = json.loads(file.read_text())["rows"]
    assert [row["batch"] for row in rows] == [1, 2]
    for row in rows:
        share = row["budget"]["share"]
        assert tuple(share) == KINDS
        assert sum(share.values()) == pytest.approx(1)
        assert min(share.values()) >= 0
        for kind in (FORWARD, BACKWARD, SAMPLING, STEP):
            assert share[kind] > 0, kind
    assert "Dry run at toy sizes" in file.with_suffix(".md").read_text()


def test_a_dry_run_is_not_written_over_results() -> None:
    with pytest.raises(SystemExit):
        command.main(["--dry-run", "--out", str(RESULTS)])
