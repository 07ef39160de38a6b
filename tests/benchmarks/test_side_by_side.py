"""The side-by-side benchmark: the transcription is the published method, passes are counted, and the command works."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from scipy import fft
from torch import Tensor, nn

from benchmarks import side_by_side
from benchmarks.common.command import RESULTS
from benchmarks.common.machine import Build, LoadMonitor, Machine
from benchmarks.common.results import NOT_RUN, CallRow, Results, read, write
from benchmarks.common.timing import Call, Spread
from benchmarks.end_to_end import contestants, measuring
from benchmarks.end_to_end.cases import LABELS, Case, ModelSpec, Way
from benchmarks.end_to_end.contestants import Models, Passes, bare_passes, count_passes
from benchmarks.end_to_end.counting import Counted, MeanColour
from benchmarks.end_to_end.measuring import Plan, measure_calls
from benchmarks.end_to_end.memory import resident_growth
from benchmarks.end_to_end.profiling import graph_launches, replayed_graphs
from benchmarks.end_to_end.public_attexplore import PublicAttEXplore, dct_2d, idct_2d
from benchmarks.end_to_end.report import markdown
from fampe_fast import AttEXplore

from ..models_for_tests import Smooth, some_images

CPU = torch.device("cpu")
BUILD = Build("a processor", "2.0", "none", "abc", "2026-01-01", "0.9")
HERE = Machine(BUILD, cores=2, threads=1, load=(0.1, 0.1))


def pearson(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten().double(), b.flatten().double()]))[0, 1])


# The transcription ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (1, 1, 7, 7), (1, 2, 9, 12), (1, 1, 1, 5)])
def test_its_transform_is_the_unscaled_cosine_transform(shape: tuple[int, ...]) -> None:
    values = torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = torch.from_numpy(fft.dctn(values.numpy(), axes=(-2, -1)))
    torch.testing.assert_close(dct_2d(values), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(idct_2d(dct_2d(values)), values, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("steps", "samples", "batch"), [(1, 1, 1), (4, 2, 3), (10, 1, 2)])
def test_without_random_numbers_it_gives_the_maps_of_this_package(steps: int, samples: int, batch: int) -> None:
    model, images = Smooth().double(), some_images(batch)
    target = torch.arange(batch) % 5
    public = PublicAttEXplore(model, steps=steps, samples=samples, rho=0.0, sigma=0.0, diversity=0.0)
    maps = public.attribute(images.double(), target)
    ours = AttEXplore(
        model, steps=steps, samples=samples, rho=0.0, sigma=0.0, input_diversity=False, loss="softmax_twice"
    )
    expected = ours.attribute(images, target)
    assert float(maps.abs().amax()) > 1e-3
    # This package's path is in float32; the transcription's here in float64.
    torch.testing.assert_close(maps.float(), expected, rtol=1e-4, atol=2e-6 * float(expected.abs().amax()))


@pytest.mark.slow
def test_with_random_numbers_both_draw_from_the_same_distribution() -> None:
    """Two estimates of one map from 200 samples each: as alike as two of this package's own with other seeds."""
    model, images, target = Smooth(), some_images(1), torch.tensor([1])
    options = {"steps": 2, "samples": 200, "rho": 0.5, "sigma": 16 / 255}
    first, second = (
        AttEXplore(model, seed=seed, loss="softmax_twice", input_diversity=False, **options).attribute(images, target)
        for seed in (0, 1)
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        public = PublicAttEXplore(model, diversity=0.0, **options).attribute(images, target)
    alike = pearson(first, second)
    assert alike > 0.9
    assert pearson(first, public) > 1 - 2 * (1 - alike)
    assert float(public.abs().sum() / first.abs().sum()) == pytest.approx(1, abs=0.02)


def test_it_wastes_a_step_of_passes_and_keeps_parameter_gradients() -> None:
    model = Counted(Smooth())
    with torch.random.fork_rng():
        PublicAttEXplore(model, steps=3, samples=4).attribute(some_images(2), torch.tensor([0, 1]))
    assert sum(model.backward_images.values()) == 2 * (3 + 1) * 4
    assert sum(model.forward_images.values()) == 2 * ((3 + 1) * 4 + 1)
    assert {images for images, _, _ in model.batches} == {2}  # one pass per sample, all images at once
    assert set(model.forward_images) == {(24, 24), (27, 27)}
    assert all(parameter.grad is not None for parameter in model.parameters())


# Counting -------------------------------------------------------------------------------------------------------------


def test_every_method_is_given_as_many_passes() -> None:
    pytest.importorskip("captum")
    pytest.importorskip("pytorch_grad_cam")
    case = Case(batch=2, side=24, steps=3, samples=4, diversity=True)
    counted = {name: count_passes(Way(name), case, 4) for name in LABELS if name != "bare"}
    assert {name: found.backward for name, found in counted.items()} == {
        "fampe": 12,
        "attexplore": 12,
        "public_attexplore": 16,
        "integrated_gradients": 12,
        "smoothgrad": 12,
        "fampe_one_pass": 1,
        "grad_cam": 1,
    }
    assert counted["fampe_one_pass"].forward == counted["grad_cam"].forward == 1
    assert counted["fampe"].forward == counted["attexplore"].forward == 12
    assert counted["integrated_gradients"].enlarged == counted["smoothgrad"].enlarged == 0
    assert 0 < counted["attexplore"].enlarged < 1
    plain = count_passes(Way("public_attexplore"), Case(2, 24, 3, 4, diversity=False), 4)
    assert plain == Passes(17, 16, 0)


def test_the_bare_passes_have_no_parameter_gradients_and_leave_the_model_as_it_was() -> None:
    model = Counted(MeanColour())
    case = Case(batch=3, side=16, steps=2, samples=2, diversity=True)
    call = contestants.build(Way("bare"), case, Models(model, model, model), 4, some_images(3), torch.zeros(3).long())
    call()
    assert bare_passes(case, 4, CPU) == 3
    assert bare_passes(Case(8, 16, 10, 20, True), 8, CPU) == 8
    assert model.backward_images == {(16, 16): 12}
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    large = contestants.build(
        Way("bare", enlarged=True), case, Models(model, model, model), 4, some_images(3), torch.zeros(3).long()
    )
    large()
    assert model.backward_images == {(16, 16): 12, (18, 18): 12}


def test_the_peers_model_is_a_contiguous_copy() -> None:
    model = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    models = Models.of(model.eval(), some_images(1))
    assert models.best is model
    assert models.plain.weight.is_contiguous()
    assert not model.weight.is_contiguous()
    assert models.ours is model  # there is nothing to fold


def test_this_package_runs_the_model_with_its_normalisation_folded() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    models, case = Models.of(model, some_images(1)), Case(batch=1, side=24, steps=1, samples=2, diversity=False)
    shown: list[nn.Module] = []
    for each in (models.best, models.plain, models.ours):
        each.register_forward_hook(lambda module, *_: shown.append(module))
    ours, plain, best = models.ours, models.plain, models.best
    expected = {"fampe": ours, "attexplore": ours, "public_attexplore": plain, "smoothgrad": best, "bare": best}
    for method, form in expected.items():
        shown.clear()
        contestants.build(Way(method), case, models, 2, some_images(1), torch.zeros(1).long())()
        assert set(shown) == {form}, method
    shown.clear()
    contestants.build(Way("bare", prepared=True), case, models, 2, some_images(1), torch.zeros(1).long())()
    assert set(shown) == {ours}
    plan = Plan(ModelSpec("embedded"), CPU, BUILD, (case,))
    assert [way.prepared for way in plan.bare_ways(case)] == [False, True]
    assert [way.prepared for way in replace(plan, own_bound=True, compile=("on",)).bare_ways(case)] == [True]


def test_enlarged_bare_passes_are_made_where_a_method_enlarges() -> None:
    plan = Plan(ModelSpec("embedded"), CPU, BUILD, (), own_bound=True)

    def enlarged(diversity: bool | None, *methods: str) -> list[bool]:
        found = replace(plan, methods=methods).bare_ways(Case(1, 32, 1, 2, diversity))
        return [way.enlarged for way in found]

    assert enlarged(None, "fampe", "attexplore") == enlarged(True, "fampe") == [False, True]
    assert enlarged(None, "fampe", "smoothgrad") == enlarged(False, "fampe", "public_attexplore") == [False]


@pytest.mark.parametrize(
    ("diversity", "expected"), [(None, {"attexplore"}), (True, {"fampe", "attexplore"}), (False, set())]
)
def test_input_diversity_is_each_methods_own_or_as_asked(diversity: bool | None, expected: set[str]) -> None:
    case = Case(2, 24, 3, 4, diversity)
    assert {name for name in ("fampe", "attexplore") if count_passes(Way(name), case, 4).enlarged > 0} == expected


# Measuring ------------------------------------------------------------------------------------------------------------


class Clock:
    """Stands for the processor: every call advances it by what its way costs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.order = 0.0, []
        monkeypatch.setattr(measuring.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(measuring, "build", self.build)
        monkeypatch.setattr(measuring, "count_passes", lambda *given: Passes(13, 12, 0.25))

    def build(self, way: Way, case: Case, *rest: object, warm: bool = False) -> Call:
        def call() -> None:
            self.order.append((way.method, way.prepared, way.enlarged))
            drift = 1 + 0.05 * len(self.order)  # the machine gets slower and slower
            if way.method == "bare":
                images = bare_passes(case, 1, CPU) * 1
                self.now += drift * images * (2e-3 if way.enlarged else 1e-3) * (0.5 if way.prepared else 1)
            elif way.method == "smoothgrad":
                raise RuntimeError("no such luck\nat all")
            else:
                self.now += drift * case.passes * 2.5e-3

        return call


def test_shares_are_of_passes_of_the_same_sizes_in_the_same_round(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    case = Case(batch=2, side=32, steps=1, samples=2, diversity=True)
    plan = Plan(
        ModelSpec("embedded"),
        CPU,
        BUILD,
        (case,),
        methods=("fampe", "smoothgrad"),
        chunks=(1,),
        repetitions=4,
        memory=False,
    )
    rows = {row.way.method: row for row in measure_calls(plan, float("inf"), lambda text: None)}
    assert rows["smoothgrad"].status == "failed: RuntimeError: no such luck"
    assert not rows["smoothgrad"].measured
    # A quarter of the passes saw enlarged images, which cost twice as much: 1.25 ms allowed, 2.5 ms taken, by a machine
    # whose speed changes by less than 15 % within any round.
    assert len(rows["fampe"].shares) == 4
    assert all(share == pytest.approx(0.5, rel=0.15) for share in rows["fampe"].shares)
    assert all(share == pytest.approx(0.25, rel=0.15) for share in rows["fampe"].shares_of_best)
    assert max(rows["fampe"].pass_ms) > 1.3 * min(rows["fampe"].pass_ms)
    # After choosing the chunk (3 calls) and warming up (6), rounds go forth and back.
    kept = clock.order[9:]
    bare = [("bare", prepared, enlarged) for prepared in (False, True) for enlarged in (False, True)]
    forth = [*bare, ("fampe", False, False)]
    assert kept == [*forth, *forth[::-1]] * 2


@pytest.mark.slow
def test_apart_plain_ways_come_first_and_each_has_the_bound_of_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    monkeypatch.setattr(measuring, "graph_launches", lambda call, device: 12)
    cases = tuple(Case(batch=batch, side=32, steps=1, samples=2, diversity=False) for batch in (2, 1))
    plan = Plan(
        ModelSpec("embedded"),
        CPU,
        BUILD,
        cases,
        precisions=("bf16", "fp32"),
        peer_precisions=(),
        compile=("off", "on", "graphs"),
        methods=("fampe",),
        chunks=(1,),
        repetitions=3,
        memory=False,
        own_bound=True,
        apart=True,
    )
    kept: list[int] = []
    rows = measure_calls(plan, float("inf"), lambda text: None, lambda so_far: kept.append(len(so_far)))
    kinds = [(row.case.batch, row.way.precision, row.way.compile) for row in rows if row.way.method == "fampe"]
    assert kinds == [
        (batch, precision, compiled)
        for precision, compiled in (
            ("bf16", "off"), ("fp32", "off"), ("bf16", "on"), ("bf16", "graphs"), ("fp32", "on"), ("fp32", "graphs"),
        )
        for batch in (2, 1)
    ]  # fmt: skip
    assert kept == list(range(2, 25, 2))  # the bare passes of a kind, and the method
    assert all(row.chunk == 1 and row.graph_launches == 12 for row in rows)
    assert {prepared for method, prepared, _ in clock.order if method == "bare"} == {False, True}  # to find the chunk
    for row in rows:
        if row.way.method == "fampe":  # 0.5 ms allowed, 2.5 ms taken
            assert all(share == pytest.approx(0.2, rel=0.15) for share in row.shares)
            assert row.shares == row.shares_of_best


def test_apart_input_diversity_comes_last() -> None:
    cases = tuple(Case(1, 32, 1, 2, diversity) for diversity in (True, False))
    plan = Plan(ModelSpec("embedded"), CPU, BUILD, cases, peer_precisions=(), compile=("on", "off"), methods=("fampe",))
    groups = replace(plan, own_bound=True, apart=True).groups()
    assert [(case.diversity, {way.compile for way in ways}, len(ways)) for case, ways in groups] == [
        (False, {"off"}, 2), (False, {"on"}, 2), (True, {"off"}, 3), (True, {"on"}, 3),
    ]  # fmt: skip
    assert [case for case, _ in plan.groups()] == list(cases)


def test_no_way_is_begun_when_the_time_is_up_within_a_case(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    monkeypatch.setattr(measuring.time, "monotonic", lambda: clock.now)
    case = Case(batch=2, side=32, steps=1, samples=2, diversity=False)
    plan = Plan(ModelSpec("embedded"), CPU, BUILD, (case,), methods=("fampe",), chunks=(1,), memory=False)
    first = {row.way: row for row in measure_calls(plan, 0.019, lambda text: None)}
    assert [row.status for row in first.values()] == ["measured", "measured", NOT_RUN]
    assert all(len(row.pass_ms) == 1 for row in first.values() if row.measured)  # and no second round


def test_what_runs_uncompiled_is_no_time_of_compiled_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise RuntimeError("no compiler today")

    monkeypatch.setattr(torch, "compile", refuse)
    monkeypatch.setenv("FAMPE_FAST_BACKEND", "reference")  # the mix would be the first to be compiled
    case = Case(batch=1, side=32, steps=1, samples=2, diversity=False)
    plan = Plan(ModelSpec("embedded"), CPU, BUILD, (case,), compile=("on",), methods=("fampe",), chunks=(2,))
    plan = replace(plan, peer_precisions=(), repetitions=1, memory=False, own_bound=True)
    bare, fampe = measure_calls(plan, float("inf"), lambda text: None)
    assert bare.status == "failed: RuntimeError: no compiler today"
    assert fampe.status.startswith("failed: FampeWarning: torch.compile failed for the gradients of Classifier, which")


@pytest.mark.slow
def test_rows_are_handed_over_case_by_case(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a run which is ended keeps what it has measured."""
    Clock(monkeypatch)
    cases = tuple(Case(batch=batch, side=32, steps=1, samples=2, diversity=False) for batch in (1, 2))
    plan = Plan(ModelSpec("embedded"), CPU, BUILD, cases, methods=("fampe",), chunks=(1,), repetitions=2, memory=False)
    kept: list[list[int]] = []
    rows = measure_calls(
        plan, float("inf"), lambda text: None, lambda so_far: kept.append([r.case.batch for r in so_far])
    )
    assert kept == [[1] * 3, [1] * 3 + [2] * 3]
    assert all(row.measured for row in rows)


def test_nothing_is_begun_when_the_time_is_up() -> None:
    case = Case(batch=1, side=32, steps=1, samples=1, diversity=False)
    plan = Plan(ModelSpec("embedded"), CPU, BUILD, (case,), methods=("fampe",))
    rows = measure_calls(plan, 0.0, print)
    assert [row.status for row in rows] == [NOT_RUN] * 3


def test_memory_is_what_a_call_adds_at_its_peak() -> None:
    found = resident_growth(lambda: torch.ones(8 << 20).mul_(2).sum())  # 32 MiB
    if found["peak_bytes"] is None:
        pytest.skip(found["peak_is"])
    assert 30 << 20 < found["peak_bytes"] < 48 << 20


@pytest.mark.slow
def test_memory_is_measured_in_a_process_of_its_own() -> None:
    plan = Plan(ModelSpec("embedded"), CPU, BUILD, ())
    small = Case(batch=1, side=64, steps=1, samples=2, diversity=False)
    peak, how = measuring.peak_memory(Way("fampe"), small, plan, 2, timeout=600)
    if peak is None and how.startswith("not counted"):
        pytest.skip(how)
    assert peak is not None, how
    assert 0 <= peak < 500 << 20
    nothing, why = measuring.peak_memory(Way("fampe"), small, replace(plan, device="nowhere"), 2, timeout=600)
    assert nothing is None
    assert why.startswith("failed: RuntimeError: ")


# Results --------------------------------------------------------------------------------------------------------------

CASE = Case(batch=2, side=32, steps=2, samples=5, diversity=True)


def test_rates_follow_from_milliseconds_per_pass() -> None:
    row = CallRow(CASE, Way("fampe"), "net", BUILD, pass_ms=(4.0, 5.0, 10.0))
    assert row.per_pass == Spread(4.5, 5.0, 7.5)
    assert row.maps_per_s.median == pytest.approx(20)  # 10 passes of 5 ms make a map
    assert CASE.passes == 20
    assert CASE.enlarged == 36


def test_results_are_read_back_and_tabulated(tmp_path: Path) -> None:
    rows = [
        CallRow(CASE, Way("bare"), "net", BUILD, chunk=4, pass_ms=(2.0, 2.0)),
        CallRow(
            CASE,
            Way("fampe", "bf16", "on"),
            "net",
            BUILD,
            chunk=4,
            pass_ms=(2.5, 2.5),
            shares=(0.8, 0.8),
            forward_passes=10.5,
            backward_passes=10.0,
            peak_bytes=3 << 20,
            peak_is="growth",
        ),
        CallRow(CASE, Way("smoothgrad"), "net", BUILD, status="out of memory"),
    ]
    results = Results((HERE,), calls=tuple(rows))
    write(results, tmp_path / "deep" / "file.json")
    assert read(tmp_path / "deep" / "file.json") == results
    table = markdown(rows, HERE)
    assert "| FAMPE, bf16, compiled | 40 [40, 40] | 2.5 [2.5, 2.5] | 80% [80%, 80%] |  | 10.5 / 10 | 4 | 3 |" in table
    assert "| Captum, SmoothGrad, fp32 | out of memory |" in table
    assert "Not a valid measurement" not in table


def test_a_graph_that_is_missing_is_named() -> None:
    def cell(compiled: str, launches: int | None) -> str:
        row = CallRow(CASE, Way("fampe", "bf16", compiled), "net", BUILD, pass_ms=(2.0,), graph_launches=launches)
        return markdown([row], HERE).splitlines()[-1].split(" | ")[0]

    assert cell("graphs", 5) == "| FAMPE, bf16, CUDA graphs (5 a call)"
    assert cell("graphs", 0) == "| FAMPE, bf16, CUDA graphs, NO GRAPH ACTIVE"
    assert cell("on", 0) == "| FAMPE, bf16, compiled"
    assert cell("on", 3) == "| FAMPE, bf16, compiled, 3 GRAPHS A CALL"
    assert cell("off", None) == "| FAMPE, bf16"
    events = [
        SimpleNamespace(name=name) for name in ("cudaGraphLaunch", "aten::add", "hipGraphLaunch", "cudaLaunchKernel")
    ]
    assert replayed_graphs(events) == 2
    assert graph_launches(lambda: pytest.fail("called"), CPU) is None


def test_a_disturbed_machine_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = replace(HERE, load=(1.7, 0.1))
    assert "Not a valid measurement: other programs were running at the start: load average 1.7" in markdown([], loaded)
    shared = replace(HERE, stolen=0.42)
    assert "42% of the processors' time went to other machines" in markdown([], shared)
    ticks = iter(["cpu  100 0 50 900 9 1 0 10 0 0\n", "cpu  150 0 60 999 9 1 0 50 0 0\n", "", ""])
    monkeypatch.setattr(Path, "read_text", lambda self: next(ticks))
    monitor = LoadMonitor()
    assert monitor.stolen() == pytest.approx(40 / 100)  # of 50 + 10 + 40 that were not idle
    assert LoadMonitor().stolen() == 0


# The command ----------------------------------------------------------------------------------------------------------


def test_sizes_are_varied_one_at_a_time_around_the_first() -> None:
    command = side_by_side.parser()
    found = command.parse_args(["--batches", "8", "1", "--samples", "20", "5", "--sides", "224", "--steps", "10"])
    sizes = [(case.batch, case.side, case.steps, case.samples) for case in side_by_side.cases(found)]
    assert sizes == [(8, 224, 10, 20), (1, 224, 10, 20), (8, 224, 10, 5)]
    found = command.parse_args(["--batches", "8", "1", "--samples", "20", "5", "--product", "--no-input-diversity"])
    assert len(side_by_side.cases(found)) == 4
    assert not any(case.diversity for case in side_by_side.cases(found))


@pytest.mark.parametrize(("given", "mean"), [("0.5", [0.5, 0.5, 0.5]), ("0.1,0.2,0.3", [0.1, 0.2, 0.3])])
def test_the_model_is_loaded_as_the_command_line_says(given: str, mean: list[float]) -> None:
    found = side_by_side.parser().parse_args(["--model", "mobilenetv2_050", "--mean", given, "--std", "0.5"])
    model = side_by_side.plan(found).model.load(CPU)
    assert model.mean.flatten().tolist() == pytest.approx(mean)
    assert model.std.flatten().tolist() == [0.5, 0.5, 0.5]


@pytest.mark.slow
def test_a_dry_run_measures_tabulates_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("captum")
    assert side_by_side.main(["--dry-run", "--no-memory", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "the figures mean nothing" in said
    (file,) = tmp_path.glob("*.json")
    results = read(file)
    (machine,), rows = results.machines, results.calls
    assert machine.dry_run
    assert {row.way.method for row in rows} == set(LABELS)
    assert all(row.measured and len(row.pass_ms) == 2 for row in rows)
    assert all(len(row.shares) == 2 for row in rows if row.way.method != "bare")
    assert file.with_suffix(".md").read_text() in said
    assert file.with_suffix(".png").stat().st_size > 10_000


def test_a_dry_run_never_touches_the_committed_results(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        side_by_side.main(["--dry-run", "--out", str(RESULTS)])
    assert stopped.value.code == 2
    assert "not a measurement" in capsys.readouterr().err
