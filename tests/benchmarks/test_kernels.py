"""What the benchmarks compute, merge and refuse; and the kernels' machine code, compiled without a GPU."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="the package triton is not installed")
from benchmarks import ROOT, run, stages
from benchmarks.common.command import RESULTS
from benchmarks.common.machine import DRY_RUN_DEVICE, Build, Machine
from benchmarks.common.results import NOT_RUN, CallRow, KernelRow, Results, read, write
from benchmarks.common.timing import CPUTimer, Spread, compare, in_turns
from benchmarks.end_to_end.cases import Case, Way
from benchmarks.kernels import gate, measuring
from benchmarks.kernels.floors import H200, Ceilings, LaunchWork, floor
from benchmarks.kernels.measuring import Bench, cases, measure_case, measure_kernels
from benchmarks.kernels.primitives import PRIMITIVES, primitive
from benchmarks.kernels.report import Loss, bars, losses, speed_ups
from benchmarks.kernels.sizes import USUAL, Size, size_from_text

H100 = Build("NVIDIA H100", "2.11.0", "3.6.0", "abc", "2026-01-01")
MI300 = Build("AMD MI300X", "2.11.0", "3.6.0", "abc", "2026-01-01")
SMALL = Size(2, 3, 9, 12)
TEN_TB = Ceilings(memory=1e13, l2_bytes=1000, sms=100, clock=1e9)


def row(provider: str, median: float, spread: float = 0.0, **changes: Any) -> KernelRow:
    values = {"lower_us": median - spread, "upper_us": median + spread, "floor_share": 0.5, **changes}
    return KernelRow("band_mix", USUAL, provider, H100, **{"median_us": median, **values})


# Floors ---------------------------------------------------------------------------------------------------------------


def test_bytes_alone_make_the_floor_of_a_gpu_whose_code_was_not_counted() -> None:
    assert floor(10_000_000, [], TEN_TB).us == pytest.approx(1)
    assert floor(10_000_000, [], TEN_TB).by == "memory"


def test_launches_follow_each_other_and_each_is_bound_by_its_slowest_part() -> None:
    # 100 SMs at 1 GHz: 128 lanes issue 12.8e12 a second, 64 integer lanes 6.4e12.
    bound_by_issue = LaunchWork("a", 1, 10_000_000, 0, {"issue": 12.8e6 * 3, "alu": 6.4e6 * 2})
    bound_by_memory = LaunchWork("b", 1, 50_000_000, 0, {"issue": 12.8e6})
    assert bound_by_issue.times(TEN_TB)["alu"] == pytest.approx(2)
    both = floor(60_000_000, [bound_by_issue, bound_by_memory], TEN_TB)
    assert both.us == pytest.approx(3 + 5)
    assert both.by == "memory"
    # 20 MB that no launch accounts for come on top.
    assert floor(80_000_000, [bound_by_issue, bound_by_memory], TEN_TB).us == pytest.approx(10)


def test_what_an_earlier_launch_read_is_free_only_if_it_fits_into_the_cache() -> None:
    assert LaunchWork("a", 1, 5000, 1000, {}).times(TEN_TB)["memory"] == pytest.approx(4000 / 1e13 * 1e6)
    assert LaunchWork("a", 1, 5000, 1001, {}).times(TEN_TB)["memory"] == pytest.approx(5000 / 1e13 * 1e6)


def test_the_bytes_of_the_usual_size_counted_by_hand() -> None:
    size = USUAL
    plane = 224 * 113
    # A launch is a chunk: 64 rows of four images, the last of which has four samples in it.
    assert (size.rows, size.shown) == (64, 4)
    assert primitive("band_mix").bytes(size) == (64 + 4) * 3 * plane * 8
    assert primitive("gradient_step").bytes(size) == 32 * 3 * 224 * 224 * (5 + 3) * 4
    assert primitive("pixel_mask").bytes(size) == 4 * 224 * 224 * (64 * 3 + 4 * 3 * 2 + 4)
    assert primitive("radial_mask").bytes(size) == 32 * plane * 2 * 4
    layer = primitive("layer_evidence").fitted(size)
    assert primitive("layer_evidence").bytes(layer) == 4 * 32 * 14 * 14 * (1024 + 1024 + 1)
    levels = 224 * 224 + 56 * 56 + 28 * 28 + 14 * 14 + 7 * 7
    assert primitive("combine_layers").bytes(size) == 4 * 32 * (levels + 224 * 224)
    # The mix writes as many bytes as there are pixels; the transform reads these and writes the pixels.
    assert primitive("band_samples").bytes(size) == 4 * 3 * plane * 8 + 64 * 3 * 224 * 224 * 4 * 3
    assert floor(primitive("band_mix").bytes(size), [], H200).us == pytest.approx(41_309_184 / 4.8e6)


def test_instructions_in_loops_count_as_often_as_the_loop_runs() -> None:
    from benchmarks.kernels.machine_code import Instruction, executions

    def code(*lines: str) -> list[Instruction]:
        return [Instruction("", line.split()[0], line) for line in lines]

    instructions = code("MOV", "IADD3", "BRA `(.L_skip)", "MUFU", "FFMA", "BRA `(.L_loop)", "EXIT", "BRA `(.L_end)")
    labels = {".L_loop": 1, ".L_skip": 4, ".L_end": 7}
    # The part from the forward branch to its goal is for special cases: once, or as often as they are said to come.
    assert executions(instructions, labels, (10,), "x") == [1, 10, 10, 1, 10, 10, 1, 0]
    assert executions(instructions, labels, (10,), "x", 3) == [1, 10, 10, 3, 10, 10, 1, 0]
    with pytest.raises(ValueError, match="2 loops expected, 1 found"):
        executions(instructions, labels, (10, 3), "x")
    # Shuffles have a detour for threads that diverged, behind the code proper, from where a branch leads back.
    instructions = code("BRA.DIV `(.L_apart)", "SHFL", "FADD", "BRA `(.L_loop)", "EXIT", "SHFL", "BRA `(.L_back)")
    labels = {".L_loop": 0, ".L_back": 2, ".L_apart": 5}
    assert executions(instructions, labels, (10,), "x") == [10, 10, 10, 10, 1, 0, 0]


# The table of primitives ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", PRIMITIVES, ids=lambda entry: entry.name)
def test_the_real_forms_are_the_reference(entry: Any) -> None:
    size = entry.fitted(SMALL)
    arguments = entry.arguments(size, torch.device("cpu"))
    expected = measuring.tensors(entry.result(entry.reference(), arguments))
    for form in entry.forms:
        got = form.finish(form.function(*form.prepare(entry.fresh(arguments), size)), size)
        for a, b in zip(measuring.tensors(got), expected, strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_sizes_come_in_their_order_and_once_per_primitive() -> None:
    wanted = cases([primitive("band_mix"), primitive("radial_mask")], [Size(2, 5, 8, 8), Size(2, 6, 8, 8)])
    named = [(entry.name, size.samples) for entry, size in wanted]
    assert named == [("band_mix", 5), ("radial_mask", 0), ("band_mix", 6)]
    assert size_from_text("32x20x224x224") == USUAL
    layer = primitive("layer_evidence").fitted(USUAL)
    assert str(layer) == "32 @ 14 x 14 x 1024"
    assert primitive("layer_evidence").fitted(layer) == layer
    with pytest.raises(ValueError, match="32x20x224"):
        size_from_text("32x20x224")


def test_quartiles() -> None:
    class Timer:
        name = "of given times"
        rounds = iter([([5.0, 1.0, 4.0], [7.0, 9.0]), ([2.0, 3.0], [8.0])])

        def sample(self, call: object, seconds: float) -> tuple[list[float], list[float]]:
            return next(self.rounds)

    timing = compare(Timer(), {"kernel": lambda: None}, 0.0)["kernel"]
    assert (timing.device, timing.repetitions, timing.host) == (Spread(2, 3, 4), 5, 8)
    assert Spread.of([7.0]) == Spread(7, 7, 7)


def test_calls_are_timed_in_turns_and_one_that_fails_costs_itself() -> None:
    """The second round meets whatever the first one did not; a call that fails in either has no time."""
    order: list[str] = []

    def call(name: str) -> None:
        order.append(name)
        if name == "fragile" and order.count(name) == 2:
            raise torch.OutOfMemoryError("full")

    calls = {name: partial(call, name) for name in ("kernel", "fragile", "eager")}
    found = compare(CPUTimer(), calls, 0.0, lambda name: suppress(torch.OutOfMemoryError))
    assert order == ["kernel", "fragile", "eager", "eager", "fragile", "kernel"]
    assert set(found) == {"kernel", "eager"}
    assert found["kernel"].repetitions == 2


def test_rounds_can_be_ended() -> None:
    calls = {name: (lambda name=name: name) for name in "ab"}
    assert in_turns(calls, lambda call: call(), 5, go_on=lambda number: number < 2) == {"a": ["a"] * 2, "b": ["b"] * 2}


# Results --------------------------------------------------------------------------------------------------------------


def test_a_newer_row_replaces_that_of_the_same_key_alone(tmp_path: Path) -> None:
    old = Results((Machine(H100, tests="passed"), Machine(MI300, tests="passed")), (row("kernel", 5), row("eager", 50)))
    elsewhere = dataclasses.replace(row("kernel", 7), build=MI300)
    newer_torch = dataclasses.replace(row("kernel", 4), build=dataclasses.replace(H100, torch="2.15.0"))
    later = dataclasses.replace(row("kernel", 6), build=dataclasses.replace(H100, commit="def", date="2026-02-02"))
    merged = old.merged(Results(kernels=(later, elsewhere, newer_torch)))
    assert [found.median_us for found in merged.kernels] == [6, 50, 7, 4]
    assert merged.kernels[0].build.commit == "def"
    write(merged, tmp_path / "deep" / "results.json")
    assert read(tmp_path / "deep" / "results.json") == merged
    assert read(tmp_path / "none.json") == Results()


def test_calls_are_kept_by_model_case_way_and_machine(tmp_path: Path) -> None:
    case = Case(2, 32, 1, 2)
    old = CallRow(case, Way("fampe"), "net", H100, pass_ms=(5.0, 6.0))
    others = [
        dataclasses.replace(old, model="other net"),
        dataclasses.replace(old, case=Case(2, 32, 1, 2, True)),
        dataclasses.replace(old, way=Way("fampe", "bf16")),
        dataclasses.replace(old, build=MI300),
    ]
    newer = dataclasses.replace(old, pass_ms=(4.0,))
    merged = Results(calls=(old, *others)).merged(Results(calls=(newer,)))
    assert merged.calls == (newer, *others)
    write(merged, tmp_path / "results.json")
    assert read(tmp_path / "results.json") == merged


def test_a_file_of_another_version_is_read_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fields that it lacks have their defaults; what it says that is not known now is refused before any work."""
    file = tmp_path / "results.json"
    row = {"kernel": "band_mix", "size": dataclasses.asdict(USUAL), "provider": "eager", "median_us": 5.0}
    del row["size"]["channels"]
    build = {"device": "NVIDIA H100", "torch": "2.11.0", "triton": "3.6.0", "commit": "abc", "date": "2026-01-01"}
    file.write_text(json.dumps({"kernels": [{**row, "build": build}]}))
    assert read(file) == Results(kernels=(KernelRow("band_mix", USUAL, "eager", H100, median_us=5.0),))
    for content in ({"rows": [row]}, {"kernels": [row]}, [1], "{"):
        file.write_text(content if isinstance(content, str) else json.dumps(content))
        with pytest.raises(ValueError, match="results.json holds no results of this version of the benchmarks"):
            read(file)
    monkeypatch.setattr(gate, "checks", lambda dry_run: pytest.fail("the work has begun"))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(ValueError, match="move it away"):
        run.main(["--dry-run", "--out", str(tmp_path)])


def test_what_was_not_run_does_not_replace_what_was() -> None:
    idle = KernelRow("band_mix", USUAL, "kernel", H100, NOT_RUN)
    assert Results(kernels=(row("kernel", 5),)).merged(Results(kernels=(idle,))).kernels == (row("kernel", 5),)
    assert Results(kernels=(idle,)).merged(Results(kernels=(row("kernel", 5),))).kernels == (row("kernel", 5),)


# What a run says ------------------------------------------------------------------------------------------------------


def test_sizes_where_the_kernel_loses_are_named() -> None:
    rows = [row("kernel", 12, 1), row("eager", 6, 1), row("compiled", 11.5, 1)]
    assert losses(rows) == [
        Loss("band_mix", USUAL, "eager", 2.0, True),
        Loss("band_mix", USUAL, "compiled", 12 / 11.5, False),
    ]
    assert str(losses(rows)[0]) == "band_mix 32 x 20 @ 224 x 224: 2.00 times as long as eager"
    assert losses([row("kernel", 5), row("eager", 50)]) == []
    assert losses([row("eager", 50)]) == []
    assert losses([row("kernel", 5), dataclasses.replace(row("eager", 1), status=NOT_RUN)]) == []
    assert speed_ups([row("kernel", 5), row("eager", 50)]) == {("band_mix", USUAL, "eager"): 10}


def test_bars_are_met_or_missed() -> None:
    sampling = [dataclasses.replace(found, kernel="band_samples") for found in (row("kernel", 5), row("eager", 30))]
    assert [line.rsplit(" ", 1)[1] for line in bars([row("kernel", 5, floor_share=0.81), *sampling])] == [
        "met",
        "MISSED",
    ]
    assert bars([dataclasses.replace(row("kernel", 5), size=SMALL)]) == []


# Measuring ------------------------------------------------------------------------------------------------------------


def bench() -> Bench:
    build = Build(DRY_RUN_DEVICE, "x", "y", "z", "now")
    return Bench(torch.device("cpu"), CPUTimer(), build, TEN_TB, seconds=0.0)


def test_a_result_that_differs_from_the_reference_is_not_timed() -> None:
    right = primitive("radial_mask")

    class Wrong(type(right)):  # type: ignore[misc]
        def kernel(self) -> Callable[..., Any]:
            return lambda cutoff, *rest, **named: self.reference()(cutoff * 1.01, *rest, **named)

    fields = {field.name: getattr(right, field.name) for field in dataclasses.fields(right)}
    kernel, eager = measure_case(Wrong(**fields), right.fitted(SMALL), ("kernel", "eager"), [], bench())
    assert kernel.status.startswith("failed: ArithmeticError: relative error 0.0")
    assert kernel.median_us is None
    assert eager.measured


def test_a_reference_without_memory_leaves_the_kernel_its_time() -> None:
    right = primitive("radial_mask")

    class Hungry(type(right)):  # type: ignore[misc]
        def reference(self) -> Callable[..., Any]:
            def out_of_memory(*arguments: Any, **named: Any) -> Any:
                raise torch.OutOfMemoryError("full")

            return out_of_memory

        def kernel(self) -> Callable[..., Any]:
            return right.reference()

    fields = {field.name: getattr(right, field.name) for field in dataclasses.fields(right)}
    kernel, eager = measure_case(Hungry(**fields), right.fitted(SMALL), ("kernel", "eager"), [], bench())
    assert (kernel.measured, kernel.verified) == (True, False)
    assert eager.status == "out of memory"


@pytest.mark.usefixtures("triton_runs")
def test_a_kernel_is_held_to_its_own_checks(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    ever = math.inf
    assert gate.own_failure("radial_mask", device, ever, dry_run=True) == ""
    assert gate.own_failure("radial_mask", device, 0.0, dry_run=True) == NOT_RUN
    loaded = gate.load_primitives("triton", device)

    def one_percent_off(*args: Any, **named: Any) -> tuple[torch.Tensor, ...]:
        return tuple(mask * 1.01 for mask in loaded.radial_mask(*args, **named))

    wrong = type(loaded)({**loaded, "radial_mask": one_percent_off})
    monkeypatch.setattr(gate, "load_primitives", lambda name, where: wrong)
    assert "AssertionError" in gate.own_failure("radial_mask", device, ever, dry_run=True)


def test_nothing_is_begun_when_the_time_is_up() -> None:
    rows = list(
        measure_kernels(cases(PRIMITIVES, [SMALL]), ("kernel", "eager"), {}, bench(), time.monotonic() - 1, print)
    )
    assert len(rows) == 2 * len(PRIMITIVES)
    assert {found.status for found in rows} == {NOT_RUN}


def test_nan_is_an_error_of_its_own() -> None:
    assert math.isnan(measuring.relative_error([torch.tensor([math.nan])], [torch.ones(1)]))
    assert measuring.relative_error([torch.tensor([3.0, 4.4])], [torch.tensor([3.0, 4.0])]) == pytest.approx(0.08)


# The command ----------------------------------------------------------------------------------------------------------


def commands(*code: str, may_be_empty: bool = False) -> list[gate.Check]:
    return [gate.Check((sys.executable, "-S", "-c", line), may_be_empty) for line in code]


def test_every_check_must_succeed() -> None:
    assert gate.failures(commands("", ""), 20) == []
    (said,) = gate.failures(commands("", "print('two tests broke'); raise SystemExit(3)"), 20)
    assert "exit status 3" in said.text
    assert "two tests broke" in said.text
    assert gate.failures(commands("raise SystemExit(5)", may_be_empty=True), 20) == []
    assert len(gate.failures(commands("raise SystemExit(5)", "raise SystemExit(1)"), 20)) == 2
    (late,) = gate.failures(commands("import time; time.sleep(30)"), 0.2)
    assert "did not end" in late.text
    assert not late.ended
    assert all(check.command[:3] == (sys.executable, "-m", "pytest") for check in gate.checks(False))
    first = {Path(word).name for word in gate.checks(False)[0].command}
    assert first >= {"test_kernels.py", "test_equivalence.py"}
    assert not any(Path(word).parent == Path(__file__).parent for word in gate.checks(False)[0].command)


def test_failing_tests_name_the_primitives_that_they_are_about() -> None:
    names = ("band_mix", "dct_mix", "accumulate")
    printed = "FAILED tests/a.py::test_primitive[triton-dct_mix_repeats-8x8] - AssertionError"
    failing = gate.failures(commands(f"print({printed!r}); raise SystemExit(1)"), 20)
    assert gate.concerned(failing, names) == ("dct_mix",)
    assert gate.concerned([*failing, gate.Failure("", ("tests/b.py::test_accumulate",))], names) == names[1:]
    assert gate.concerned([gate.Failure("", ("tests/b.py::test_philox",))], names) == names
    assert gate.concerned([gate.Failure("no test was named")], names) == names
    assert gate.concerned([], names) == ()


TOY = ["--kernels", "radial_mask", "--providers", "kernel", "eager", "--sizes", "2x1x8x12"]


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="needs Triton's interpreter, and a GPU is here")
@pytest.mark.usefixtures("triton_runs")
def test_what_failing_tests_are_about_is_marked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By its own checks and by the tests, stage by stage, each in a call of its own."""
    assert tuple(stages.STAGES) == run.STAGES
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    tests = {"outcome": ""}
    monkeypatch.setattr(gate, "checks", lambda dry_run: commands(tests["outcome"]))
    monkeypatch.setattr(stages, "counted_work", lambda wanted, device, say: {})  # which takes a process

    def stage(name: str, code: int) -> tuple[list[bool], list[bool], str]:
        assert run.main(["--dry-run", "--out", str(tmp_path), "--stage", name, *TOY]) == code
        found = read(tmp_path / "results.json")
        verified = [row.verified for row in found.kernels], [row.verified for row in found.calls]
        return *verified, capsys.readouterr().out

    checked: list[str] = []

    def own_failure(name: str, *rest: Any, **named: Any) -> str:
        checked.append(name)
        return {"radial_mask": "it is accurate at 8 x 8: AssertionError: no", "band_mix": NOT_RUN}.get(name, "")

    with monkeypatch.context() as patch:
        patch.setattr(gate, "own_failure", own_failure)
        untested, _, said = stage("kernels", 1)
        assert checked == ["radial_mask"]
        assert untested == [False, True]  # the kernel, and the reference
        assert said.count("UNVERIFIED") == 1
        assert "FAILED: radial_mask: it is accurate at 8 x 8: AssertionError: no" in said
        assert stage("model", 0)[1] == [True, False]  # a whole method is built on it, its bare passes are not
        assert sorted(checked) == sorted(stages.ALL)  # once each
        patch.setattr(gate, "own_failure", lambda *args, **named: "")
        assert "band_mix: its checks passed" in stage("model", 0)[2]  # for which there was no time before
    (tmp_path / "results.json").unlink()
    verified, _, said = stage("kernels", 0)
    assert verified == [True, True]
    assert "radial_mask: its checks passed" in said
    assert "checks passed" not in stage("checks", 0)[2]  # of the only one that TOY names
    tests["outcome"] = "import time; time.sleep(30)"
    run_checks = gate.failures
    with monkeypatch.context() as patch:
        patch.setattr(gate, "failures", lambda wanted, timeout: run_checks(wanted, 0.2))
        assert "the tests did not end within" in stage("tests", 0)[2]
    assert stage("kernels", 0)[0] == [True, True]  # which is no failure
    tests["outcome"] = ""
    stage("tests", 0)
    assert stage("kernels", 0)[0] == [True, True]
    _, calls, said = stage("model", 0)
    assert calls == [True, True]
    assert "UNVERIFIED" not in said
    tests["outcome"] = "print('FAILED tests/a.py::test_primitive[triton-radial_mask_x-8x8]'); raise SystemExit(1)"
    kernels, calls, said = stage("tests", 1)  # what was measured before is marked, too
    assert (kernels, calls) == ([False, True], [True, False])  # the bare passes use no kernel
    assert "UNVERIFIED: radial_mask" in said
    assert "FAILED tests/a.py" in said
    assert "| FAMPE, fp32, UNVERIFIED |" in stage("model", 0)[2]
    assert read(tmp_path / "results.json").machines[0].tests.startswith("failed: exit status 1")


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="needs Triton's interpreter, and a GPU is here")
@pytest.mark.usefixtures("triton_runs")
def test_a_dry_run_measures_writes_and_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(gate, "checks", lambda dry_run: commands(""))
    real = gate.own_failure
    monkeypatch.setattr(  # of the others the checks take an interpreter minutes
        gate, "own_failure", lambda name, *rest, **named: real(name, *rest, **named) if name == "radial_mask" else ""
    )
    counted = LaunchWork("radial_mask", 1, 0, 0, {"issue": 1e12})
    monkeypatch.setattr(
        stages, "counted_work", lambda wanted, device, say: {(entry.name, size): [counted] for entry, size in wanted}
    )
    assert run.main(["--dry-run", "--out", str(tmp_path), *TOY]) == 0
    said = capsys.readouterr().out
    assert "DRY RUN" in said
    found = read(tmp_path / "results.json")
    assert [(row.kernel, row.provider, row.status) for row in found.kernels] == [
        ("radial_mask", "kernel", "measured"),
        ("radial_mask", "eager", "measured"),
    ]
    for line in found.kernels:
        assert line.build.device == DRY_RUN_DEVICE
        assert line.timer == "perf_counter"
        assert line.bytes == 2 * 8 * 7 * 8
        assert line.floor_by == "issue"
        assert line.floor_share == pytest.approx(line.floor_us / line.median_us)
        assert line.peak_bytes is None
    bare, fampe = found.calls  # the uncompiled model as it is here, and what its passes allow
    assert (bare.way, fampe.way) == (Way("bare", prepared=True), Way("fampe"))
    assert fampe.measured
    assert len(fampe.shares_of_best) == 1
    assert {call.build.device for call in found.calls} == {machine.build.device for machine in found.machines}
    assert "| FAMPE, fp32 |" in said
    assert [(row.kind, row.compile, row.repetitions, row.p99_ms) for row in found.latencies] == [
        ("bare pass", "off", 2, None),
        ("FAMPE, 1 pass", "off", 2, None),
        ("FAMPE, 10 passes", "off", 2, None),
    ]
    assert all(row.measured and row.p50_ms > 0 and row.verified for row in found.latencies)
    assert "| FAMPE, 10 passes | auto | off |" in said
    (picture,) = tmp_path.glob("*.png")
    assert picture.stat().st_size > 10_000


def test_a_dry_run_never_touches_the_committed_results(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run.main(["--dry-run", "--out", str(RESULTS)])
    assert stopped.value.code == 2
    assert run.parse(["--dry-run"]).out != RESULTS
    assert "not a measurement" in capsys.readouterr().err


# Machine code, compiled without a GPU ---------------------------------------------------------------------------------

# Where the kernels' files promise 16-byte accesses at the usual size.
WIDE = {"band_mix", "dct_mix", "step", "accumulate", "combine_layers"}
WIDE_LOADS = {*WIDE, "layer_evidence", "level_sums"}
WIDE_STORES = {*WIDE, "pixel_mask", "radial_mask"}


@pytest.mark.slow
@pytest.mark.parametrize("targets", [["sm_90"], ["sm_80", "sm_100", "gfx942"]], ids=["sm_90", "others"])
def test_every_kernel_compiles_without_spills_and_with_wide_accesses(targets: list[str], tmp_path: Path) -> None:
    table = tmp_path / "table.json"
    command = [sys.executable, "-m", "benchmarks.kernels.compile_kernels", "--workers", "1", "--targets", *targets]
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run(
        [*command, "--json", str(table)], capture_output=True, text=True, env=environment, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(table.read_text())
    for target in targets:
        rows = [row for row in found if row["target"] == target and not row["skipped"]]
        if rows:
            assert_fast_code(target, rows)
    skipped = {row["target"]: row["skipped"] for row in found if row["skipped"]}
    if skipped:
        pytest.skip("; ".join(skipped.values()))


def assert_fast_code(target: str, rows: list[dict[str, Any]]) -> None:
    usage = {found["kernel"]: found["usage"] for found in rows}
    assert usage.keys() >= WIDE_LOADS | WIDE_STORES | {"magnitude", "tile_energy"}
    spilt = {name: use for name, use in usage.items() if use["spills"] or use["parked_scalars"]}
    assert spilt == {}
    assert {name for name, use in usage.items() if use["load_bytes"] == 16} >= WIDE_LOADS
    assert {name for name, use in usage.items() if use["store_bytes"] == 16} >= WIDE_STORES
    predicted = {found["kernel"]: found["predicted"] for found in rows if found["predicted"]}
    modelled = {name for entry in PRIMITIVES for name in entry.launches}
    uncounted = {found["kernel"] for found in rows if found["uncounted"]}  # on an older Triton: other loops
    assert set(predicted) | uncounted == (modelled if target == "sm_90" else set())
    assert target != "sm_90" or set(predicted) >= {"band_mix", "magnitude", "step"}
    for name, found in predicted.items():
        assert found["floor_us"] >= found["memory_us"] > 0, name
        assert found["instructions_per_element"] > 5, name
