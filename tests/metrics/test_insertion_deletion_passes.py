"""Insertion and deletion with fewer passes, and compiled: curves known in closed form, budgets, batches and graphs."""

from __future__ import annotations

import functools
import gc
import math
import warnings
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode

from fampe_fast.errors import FampeWarning
from fampe_fast.metrics import InsertionDeletion, SolidColour, insertion_deletion, mu_fidelity
from fampe_fast.metrics.protocols import Protocol
from fampe_fast.metrics.refinement import Refined, refine
from fampe_fast.metrics.scorer import _size

from ..models_for_tests import Smooth, asked, some_images

K = 224
X = torch.linspace(0, 1, K + 1, dtype=torch.float64)
ANALYTIC: dict[str, Callable[[Tensor], Tensor]] = {
    "line": lambda x: x,
    "square": lambda x: x**2,
    "tenth power": lambda x: x**10,
    "root": torch.sqrt,
    "decay": lambda x: torch.exp(-30 * x),
    "logistic": lambda x: torch.sigmoid(60 * (x - 0.37)),
    "jump": lambda x: (x > 0.413).double(),
    "early jump": lambda x: (x > 0.02).double(),
    "two jumps": lambda x: 0.4 * (x > 0.2) + 0.6 * (x > 0.71).double(),
    "hill": lambda x: torch.exp(-(((x - 0.3) / 0.15) ** 2)),
    "wave": lambda x: 0.5 - 0.5 * torch.cos(2 * math.pi * x),
    "constant": lambda x: torch.full_like(x, 0.25),
}
CURVES = torch.stack([curve(X) for curve in ANALYTIC.values()])
EVERY = torch.arange(K + 1)


def area(curves: Tensor) -> Tensor:
    return torch.trapezoid(curves, dx=1 / (curves.shape[-1] - 1))


class Recorded:
    """Gives curves, NaN where they were not asked for, and counts what was asked for."""

    def __init__(self, curves: Tensor) -> None:
        self.curves = curves
        self.asked = torch.zeros(curves.shape, dtype=torch.long)
        self.rounds = 0

    def __call__(self, wanted: Tensor) -> Tensor:
        self.asked += wanted
        self.rounds += 1
        return torch.where(self.asked > 0, self.curves, math.nan)


def refined(curves: Tensor = CURVES, **budget: Any) -> tuple[Refined, Recorded]:
    measure = Recorded(curves)
    return refine(measure, EVERY.expand(curves.shape), **budget), measure


# Curves known in closed form ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("passes", [9, 12, 17, 25, 33, 49, 100])
def test_the_estimate_covers_the_error_of_known_curves(passes: int) -> None:
    found, _ = refined(passes=passes)
    error = (area(found.curves) - area(CURVES)).abs()
    for name, made, estimated in zip(ANALYTIC, error.tolist(), found.error.tolist(), strict=True):
        assert made <= estimated, f"{name}: {made} > {estimated}"
    assert (found.error < 0.6 / passes**0.5).all()  # and it is no empty promise


@pytest.mark.parametrize("tolerance", [0.03, 0.01, 0.003, 0.001])
def test_a_tolerance_is_kept_on_known_curves(tolerance: float) -> None:
    found, _ = refined(tolerance=tolerance)
    assert (found.error <= tolerance).all()
    assert ((area(found.curves) - area(CURVES)).abs() <= tolerance).all()
    counts = dict(zip(ANALYTIC, found.measured.sum(1).tolist(), strict=True))
    assert counts["constant"] <= min(counts.values())
    assert max(counts.values()) <= K + 1


def test_a_jump_is_found_by_bisection() -> None:
    """Each round halves the interval that has it, from 28 steps: five rounds, with 9, 13, 19, 28, 42 and 49 points."""
    found, _ = refined(CURVES[list(ANALYTIC).index("jump")][None], passes=49)
    before = int((X <= 0.413).sum()) - 1
    assert found.measured[0, before : before + 2].all()
    torch.testing.assert_close(area(found.curves), area(CURVES[6:7]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("passes", [2, 3, 9, 33])
def test_a_line_needs_its_ends_alone(passes: int) -> None:
    lines = torch.stack([X, 1 - X, 0.25 + 0.5 * X])
    found, _ = refined(lines, passes=passes)
    torch.testing.assert_close(found.curves, lines, rtol=0, atol=1e-14)


def test_twice_the_passes_give_less_error() -> None:
    errors = [float((area(refined(passes=n)[0].curves) - area(CURVES)).square().mean()) for n in (9, 17, 33, 65, 129)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 1e4


# What is measured -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("passes", [2, 3, 8, 9, 10, 33, 224, 225, 1000])
def test_a_budget_is_kept_and_nothing_is_asked_twice(passes: int) -> None:
    found, measure = refined(passes=passes)
    assert measure.asked.max() == 1
    assert torch.equal(measure.asked.bool(), found.measured)
    assert (found.measured.sum(1) == min(passes, K + 1)).all()
    assert found.measured[:, 0].all()
    assert found.measured[:, -1].all()
    assert measure.rounds <= 12
    assert found.curves.isfinite().all()
    if passes > K:
        assert torch.equal(found.curves, CURVES)
        assert (found.error == 0).all()


def test_steps_between_are_interpolated_linearly() -> None:
    found, _ = refined(passes=20)
    for curve, made, measured in zip(CURVES, found.curves, found.measured, strict=True):
        expected = np.interp(EVERY, EVERY[measured], curve[measured])
        np.testing.assert_allclose(made, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("budget", [{"passes": 21}, {"tolerance": 0.01}, {"passes": 30, "tolerance": 0.004}], ids=str)
def test_a_curve_is_refined_as_if_it_were_alone(budget: dict[str, Any]) -> None:
    together, _ = refined(**budget)
    for k in range(len(CURVES)):
        alone, _ = refined(CURVES[k : k + 1], **budget)
        for a, b in zip(alone, together, strict=True):
            assert torch.equal(a[0], b[k])


def test_budget_and_tolerance_stop_at_whichever_comes_first() -> None:
    both, _ = refined(passes=30, tolerance=0.004)
    budget, _ = refined(passes=30)
    tolerance, _ = refined(tolerance=0.004)
    fewest = torch.minimum(budget.measured.sum(1), tolerance.measured.sum(1))
    assert torch.equal(both.measured.sum(1), fewest)
    assert len(set(fewest.tolist())) > 1


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_short_curves_are_measured_whole(count: int) -> None:
    curves = torch.rand(4, count + 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = refine(lambda wanted: curves, torch.arange(count + 1).expand(4, -1), passes=9)
    assert torch.equal(found.curves, curves)
    assert found.measured.all()


# Insertion and deletion -----------------------------------------------------------------------------------------------


class Share(nn.Module):
    """p(class 1) = the weighted share of light to some power; keeps what it was shown."""

    def __init__(self, weights: Tensor, power: float = 1.0) -> None:
        super().__init__()
        self.share, self.power = weights / weights.sum(), power
        self.seen: list[Tensor] = []
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images.flatten(1).clone())
        p = ((images * self.share).sum((1, 2, 3)) ** self.power).clamp(0, 1)
        return torch.stack([1 - p, p], 1).log()


def pictures(batch: int = 3, height: int = 40, width: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    images = torch.rand((batch, 3, height, width), generator=generator, dtype=torch.float64)
    return images, torch.randn(images.shape, generator=generator, dtype=torch.float64)


def fields(found: InsertionDeletion) -> dict[str, Tensor]:
    return {name: value for name, value in vars(found).items() if isinstance(value, Tensor)}


@pytest.mark.parametrize(("power", "exact"), [(1, 1 / 2), (2, 1 / 3), (3, 1 / 4)])
def test_area_of_a_power_of_the_share_of_lit_pixels(power: int, exact: float) -> None:
    """Every order of the pixels of a white image gives (k / K)^power, whose trapezoids are exact but for 1 / K^2."""
    images = torch.ones(2, 1, 120, 4, dtype=torch.float64)
    maps = torch.randn(2, 1, 120, 4, generator=torch.Generator().manual_seed(0))
    model = asked(Share(torch.ones(1, 120, 4, dtype=torch.float64), power), images)
    found = insertion_deletion(model, images, maps, 1, protocol="per_pixel", passes=17)
    shown = sum(map(len, model.seen))
    assert shown == 2 * 2 * 15 + 2 + 1
    full = exact + (power if power > 1 else 0) / (12 * 120**2)  # Euler-Maclaurin: the slopes' difference
    for made, estimated in ((found.insertion, found.insertion_error), (found.deletion, found.deletion_error)):
        assert ((made - full).abs() <= (1e-6 if power == 1 else 1) * estimated).all()
        assert (estimated < 0.012).all()


@pytest.mark.parametrize("protocol", ["rise", "attexplore", "per_pixel", "per_element"])
@pytest.mark.parametrize("passes", [41, 42, 10_000])
def test_a_budget_for_every_step_is_the_full_metric(protocol: str, passes: int) -> None:
    images, maps = pictures()
    options: dict[str, Any] = {"protocol": protocol, "mean": 0.5, "internal_batch_size": 7}
    model = Share(torch.rand(3, 40, 6, dtype=torch.float64), 3)
    full = insertion_deletion(model, images, maps, 1, **options)
    found = insertion_deletion(model, images, maps, 1, passes=passes, **options)
    for name, value in fields(full).items():
        assert torch.equal(value, fields(found)[name])
    assert full.insertion_measured.all()
    assert full.deletion_measured.all()
    assert not full.insertion_error.any()
    assert not full.deletion_error.any()


@pytest.mark.parametrize("budget", [{"passes": 12}, {"tolerance": 0.02}, {"passes": 20, "tolerance": 0.01}], ids=str)
@pytest.mark.parametrize("protocol", ["rise", "attexplore", "per_pixel", "per_element"])
def test_what_was_measured_is_that_of_the_full_curves(protocol: str, budget: dict[str, Any]) -> None:
    images, maps = pictures()
    model = Share(torch.rand(3, 40, 6, dtype=torch.float64), 3)
    full = insertion_deletion(model, images, maps, 1, protocol=protocol, mean=0.5)
    model.seen.clear()
    found = insertion_deletion(model, images, maps, 1, protocol=protocol, mean=0.5, **budget)
    shown = torch.cat(model.seen)
    assert len(shown.unique(dim=0)) == len(shown)
    limit = budget.get("passes", 41)
    ends = 2 * 3 + 1 if protocol == "rise" else 3 + 1
    assert len(shown) <= 2 * 3 * (limit - 2) + ends
    for name in ("insertion", "deletion"):
        made, all_steps = (getattr(result, f"{name}_curves") for result in (found, full))
        measured = getattr(found, f"{name}_measured")
        assert not measured.all()
        torch.testing.assert_close(made[measured], all_steps[measured], rtol=0, atol=1e-13)
        torch.testing.assert_close(getattr(found, name), area(made), rtol=0, atol=1e-13)
        estimated = getattr(found, f"{name}_error")
        assert ((getattr(found, name) - getattr(full, name)).abs() <= estimated).all()
        if "passes" not in budget:
            assert (estimated <= budget["tolerance"]).all()


def test_steps_that_change_nothing_cost_nothing() -> None:
    """Three channels of unlike order have changed every pixel long before the last step: the rest is known."""
    images, maps = pictures(1)
    maps[:, 1:] = -maps[:, :1]  # what comes last in one channel comes first in the others
    model = asked(Share(torch.rand(3, 40, 6, dtype=torch.float64)), images)
    found = insertion_deletion(model, images, maps, 1, protocol="attexplore", tolerance=1e-9)
    assert found.insertion_measured.all()
    assert sum(map(len, model.seen)) == 2 * 19 + 2
    assert (found.insertion_curves[:, 20:] == found.insertion_curves[:, -1:]).all()


@pytest.mark.parametrize("chunk", [1, 5, 64])
def test_neither_batch_nor_chunk_changes_the_curves(chunk: int) -> None:
    images, maps = pictures()
    model = Smooth().double()
    options: dict[str, Any] = {"protocol": "rise", "mean": 0.5, "passes": 13}
    images, maps = (part.repeat_interleave(4, 3) for part in (images, maps))
    together = insertion_deletion(model, images, maps, [0, 1, 2], internal_batch_size=chunk, **options)
    assert 13 == together.insertion_measured[0].sum() < 41
    for k in range(3):
        alone = insertion_deletion(model, images[k : k + 1], maps[k : k + 1], k, **options)
        for name, value in fields(alone).items():
            torch.testing.assert_close(value[0], fields(together)[name][k], rtol=0, atol=1e-13)


def test_two_colours_are_shown_once_each() -> None:
    images, maps = pictures()
    model = asked(Share(torch.rand(3, 40, 6, dtype=torch.float64)), images)
    protocol = Protocol("two colours", "pixel", SolidColour(0.25), SolidColour((0.1, 0.2, 0.3)))
    found = insertion_deletion(model, images, maps, [0, 1, 1], protocol=protocol, internal_batch_size=1)
    assert sum(map(len, model.seen)) == 2 * 3 * 39 + 3 + 2
    for curves, colour in (
        (found.insertion_curves[:, 0], torch.full((3,), 0.25)),
        (found.deletion_curves[:, -1], torch.tensor([0.1, 0.2, 0.3])),
    ):
        p = (colour.double()[:, None, None] * model.share).sum()
        torch.testing.assert_close(curves, torch.stack([1 - p, p, p]), rtol=0, atol=1e-7)
    whole = (images * model.share).sum((1, 2, 3))
    expected = torch.stack([1 - whole[0], whole[1], whole[2]])
    torch.testing.assert_close(found.insertion_curves[:, -1], expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.deletion_curves[:, 0], expected, rtol=0, atol=1e-12)


def test_no_images_have_no_errors() -> None:
    images = torch.zeros(0, 3, 6, 5)
    found = insertion_deletion(Smooth(), images, images, 1, protocol="per_pixel", passes=4)
    assert found.insertion_error.shape == found.deletion_error.shape == (0,)
    assert found.insertion_measured.shape == found.deletion_measured.shape == (0, 7)
    assert found.insertion_measured.dtype == torch.bool


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"passes": 1}, ValueError, "passes must be at least 2, for the ends of a curve, got 1"),
        ({"passes": 0}, ValueError, "passes must be at least 1, got 0"),
        ({"passes": 9.0}, TypeError, "passes must be a whole number, got 9.0"),
        ({"tolerance": 0.0}, ValueError, "tolerance must be finite and above 0, got 0.0"),
        ({"tolerance": math.nan}, ValueError, "tolerance must be finite and above 0, got nan"),
        ({"tolerance": "0.1"}, TypeError, "tolerance must be a number or None, got '0.1'"),
        ({"tolerance": True}, TypeError, "tolerance must be a number or None, got True"),
        ({"compile": "yes"}, ValueError, "compile must be one of auto, off, on, graphs; got 'yes'"),
        ({"compile": "graphs"}, ValueError, "compile='graphs' needs a CUDA GPU, and the images are on cpu"),
    ],
    ids=str,
)
def test_bad_options_are_named(options: dict[str, Any], error: type[Exception], message: str) -> None:
    images = some_images(1)
    with pytest.raises(error, match=message):
        insertion_deletion(Smooth(), images, images, 1, protocol="per_pixel", **options)
    if "compile" in options:
        with pytest.raises(error, match=message):
            mu_fidelity(Smooth(), images, images, 1, samples=4, **options)


class Waits(TorchDispatchMode):
    """Counts the operators that wait for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.counted: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(function.overloadpacket)
        if name in ("aten._local_scalar_dense", "aten.nonzero", "aten.is_nonzero", "aten.equal"):
            self.counted[name] += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("passes", [None, 6])
def test_nothing_waits_for_the_device_between_chunks(passes: int | None) -> None:
    images = some_images(2, height=12, width=12)
    maps = torch.rand(2, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    counted = []
    for chunk in (1, 4, 64):
        with Waits() as waits:
            insertion_deletion(
                Smooth(), images, maps, 1, protocol="per_pixel", passes=passes, internal_batch_size=chunk, compile="off"
            )
        counted.append(waits.counted)
    assert counted[0] == counted[1] == counted[2]


# Compiled -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def traced_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    counters.clear()


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


@pytest.mark.usefixtures("traced_only")
def test_one_graph_serves_every_batch_budget_protocol_and_remainder() -> None:
    model = Smooth()
    # From 16 images on, torch takes another convolution on a single thread, and another graph for it.
    for batch, chunk in ((3, 8), (1, 5), (2, 15), (1, 2)):
        for protocol, passes in (("rise", None), ("attexplore", 7), ("per_pixel", 2), ("per_element", 5)):
            images = some_images(batch)
            maps = torch.rand(batch, 3, 24, 24, generator=torch.Generator().manual_seed(1))
            options: dict[str, Any] = {
                "protocol": protocol,
                "passes": passes,
                "mean": 0.5,
                "internal_batch_size": chunk,
            }
            with warnings.catch_warnings():
                warnings.simplefilter("error", FampeWarning)
                compiled = insertion_deletion(model, images, maps, 1, compile="on", **options)
            plain = insertion_deletion(model, images, maps, 1, compile="off", **options)
            for name, value in fields(plain).items():
                torch.testing.assert_close(fields(compiled)[name], value, rtol=0, atol=1e-5)
                assert not fields(compiled)[name].is_inference()
    assert graphs() == 1


@pytest.mark.usefixtures("traced_only")
def test_mu_fidelity_shares_the_graph_of_the_probability() -> None:
    model, images = Smooth(), some_images(2)
    maps = torch.rand(images.shape, generator=torch.Generator().manual_seed(1))
    insertion_deletion(model, images, maps, 1, protocol="per_pixel", passes=4, compile="on")
    for score, expected in (("probability", 1), ("logit", 2)):
        compiled = mu_fidelity(model, images, maps, 1, samples=9, score=score, compile="on", grid_size=4)
        plain = mu_fidelity(model, images, maps, 1, samples=9, score=score, compile="off", grid_size=4)
        torch.testing.assert_close(compiled.scores, plain.scores, rtol=0, atol=1e-4)
        assert graphs() == expected


@pytest.mark.usefixtures("traced_only")
def test_nothing_is_compiled_on_a_cpu_unless_asked_for() -> None:
    images = some_images(1)
    insertion_deletion(Smooth(), images, images, 1, protocol="per_pixel", passes=4)
    assert graphs() == 0


@pytest.mark.slow
@pytest.mark.usefixtures("traced_only")
def test_a_model_goes_with_its_graph() -> None:
    model, images = Smooth(), some_images(1)
    insertion_deletion(model, images, images, 1, protocol="per_pixel", passes=4, compile="on")
    gone = weakref.ref(model)
    torch._dynamo.reset()
    del model
    gc.collect()
    assert gone() is None


class Unruly(Smooth):
    """Asks for a number in the middle: no graph without a break."""

    def forward(self, pixels: Tensor) -> Tensor:
        return super().forward(pixels) * (2 if pixels.sum().item() > 1e9 else 1)


def test_a_model_that_cannot_be_compiled_runs_as_it_is_with_one_warning() -> None:
    model, images = Unruly(), some_images(2)
    expected = insertion_deletion(model, images, images, 1, protocol="per_pixel", compile="off")
    with pytest.warns(FampeWarning, match="torch.compile failed for the scores of Unruly") as caught:
        found = insertion_deletion(model, images, images, 1, protocol="per_pixel", compile="on")
    assert len([w for w in caught if issubclass(w.category, FampeWarning)]) == 1
    again = insertion_deletion(model, images, images, 1, protocol="per_pixel", compile="on")  # quiet: it would raise
    for result in (found, again):
        assert torch.equal(result.insertion_curves, expected.insertion_curves)


def test_a_mistake_is_the_callers_and_not_the_compilers() -> None:
    images = some_images(2)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FampeWarning)
        with pytest.raises(ValueError, match=r"target 5 \(image 0\) is out of range: the model has 5 classes"):
            insertion_deletion(Smooth(), images, images, 5, protocol="per_pixel", compile="on")
        with pytest.raises(ValueError, match=r"the model's output must be \(B, classes\)"):
            insertion_deletion(Flat(), images, images, 0, protocol="per_pixel", compile="on")


class Flat(nn.Module):
    """Gives one number per image."""

    def __init__(self) -> None:
        super().__init__()
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels.mean((1, 2, 3))


def test_generated_code_gives_the_plain_curves() -> None:
    model, images = Smooth().to(memory_format=torch.channels_last), some_images(3)
    maps = torch.rand(images.shape, generator=torch.Generator().manual_seed(1))
    options: dict[str, Any] = {"protocol": "rise", "mean": 0.5, "steps": 9, "internal_batch_size": 8}
    with warnings.catch_warnings():
        warnings.simplefilter("error", FampeWarning)
        compiled = insertion_deletion(model, images, maps, [0, 1, 2], compile="on", **options)
    plain = insertion_deletion(model, images, maps, [0, 1, 2], compile="off", **options)
    for name, value in fields(plain).items():
        torch.testing.assert_close(fields(compiled)[name], value, rtol=0, atol=1e-5)


def test_sizes_of_compiled_passes() -> None:
    assert [_size(n, 64, True) for n in (1, 2, 3, 17, 33, 63, 64)] == [1, 2, 4, 32, 64, 64, 64]
    assert [_size(n, 50, True) for n in (1, 33, 50)] == [1, 50, 50]
    assert [_size(n, 8, False) for n in (1, 2, 7, 8)] == [2, 2, 7, 8]
    assert _size(1, 1, False) == _size(1, 1, True) == 1
