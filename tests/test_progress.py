"""Every progress bar ends exactly at its total, and never stands beyond it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import rich.progress
import torch

from fampe_fast import (
    FAMPE,
    AttEXplore,
    FORGrad,
    FrequencyAttribution,
    OccludedFrequency,
    calibrate_depths,
    create_method,
    insertion_deletion,
    mu_fidelity,
    parameter_randomisation,
    stability,
    tune_cutoff,
)
from fampe_fast.engine.config import PathConfig
from fampe_fast.methods.registry import options_of
from fampe_fast.metrics.protocols import PROTOCOLS, Protocol, SolidColour
from fampe_fast.progress import UpTo, progress
from fampe_fast.robustness import BandLimitedAttack, FirstOrderTest, SimBA, SimBAConfig

from .models_for_tests import Smooth, some_images, suited

MODEL, IMAGES = Smooth(), some_images(3, height=12, width=13)
MAPS = torch.rand(IMAGES.shape, generator=torch.Generator().manual_seed(1))
CLASSES = [0, 1, 2]


class Recorded(rich.progress.Progress):
    """Notes how far each task has come after each advance."""

    bars: list[tuple[float, list[float]]]

    def add_task(self, description: str, *args: Any, total: float | None = 100, **kwargs: Any) -> Any:
        assert total is not None
        task = super().add_task(description, *args, total=total, **kwargs)
        self.bars.append((total, [0.0]))
        self.__dict__.setdefault("stages", {})[task] = self.bars[-1][1]
        return task

    def advance(self, task_id: Any, advance: float = 1) -> None:
        assert advance >= 0
        stages = self.__dict__["stages"][task_id]
        stages.append(stages[-1] + advance)
        super().advance(task_id, advance)


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, list[float]]]:
    monkeypatch.setattr(Recorded, "bars", [], raising=False)
    monkeypatch.setattr(rich.progress, "Progress", Recorded)
    return Recorded.bars


def scored(**options: Any) -> Any:
    options.setdefault("protocol", "per_pixel")
    return insertion_deletion(MODEL, IMAGES, MAPS, CLASSES, show_progress=True, internal_batch_size=5, **options)


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(IMAGES, torch.tensor(CLASSES))]


class Plain:
    """A method without a bar of its own."""

    def attribute(self, inputs: torch.Tensor, target: Any = None) -> torch.Tensor:
        return inputs - inputs.mean()


TWO_COLOURS = Protocol("two", "pixel", SolidColour(0.0), SolidColour(1.0))
CALLS: dict[str, Callable[[], Any]] = {
    **{f"all steps, {name}": lambda name=name: scored(protocol=name, mean=0.5) for name in PROTOCOLS},
    "all steps, two colours": lambda: scored(protocol=TWO_COLOURS),
    "one step": lambda: scored(steps=1),
    "equal maps": lambda: insertion_deletion(
        MODEL, IMAGES, MAPS.expand_as(MAPS)[:, :1] * 0, CLASSES, protocol="attexplore", show_progress=True
    ),
    "one image": lambda: insertion_deletion(
        MODEL, IMAGES[:1], MAPS[:1], 0, protocol=TWO_COLOURS, steps=2, show_progress=True
    ),
    **{f"passes={n}": lambda n=n: scored(passes=n) for n in (2, 3, 5, 11, 12, 13, 14, 15, 100)},
    **{f"tolerance={t}": lambda t=t: scored(tolerance=t) for t in (10.0, 0.01, 1e-9)},
    "passes and tolerance": lambda: scored(passes=6, tolerance=0.02, protocol="rise", mean=0.5),
    "mu_fidelity": lambda: mu_fidelity(
        MODEL, IMAGES, MAPS, CLASSES, samples=7, grid_size=4, show_progress=True, internal_batch_size=4
    ),
    "stability": lambda: stability(Plain(), IMAGES, CLASSES, samples=3, show_progress=True),
    "parameter_randomisation": lambda: parameter_randomisation(
        FAMPE(MODEL, steps=1, samples=1), IMAGES, CLASSES, stages=2, show_progress=True
    ),
    "occluded frequency": lambda: OccludedFrequency(MODEL, 4)(IMAGES, 1, internal_batch_size=4, show_progress=True),
    "frequency attribution": lambda: FrequencyAttribution(MODEL, passes=3)(
        IMAGES, 1, internal_batch_size=4, show_progress=True
    ),
    "first order": lambda: FirstOrderTest(MODEL, samples=3)(IMAGES, 1, internal_batch_size=4, show_progress=True),
    "queries": lambda: SimBA(MODEL, "low", 4, SimBAConfig(max_queries=9))(IMAGES, 1, show_progress=True),
    "FAMPE": lambda: FAMPE(MODEL, steps=3, samples=2).attribute(IMAGES, 1, show_progress=True),
    "FAMPE with an explorer": lambda: FAMPE(MODEL, steps=2, samples=3, explorer=Smooth(seed=1)).attribute(
        IMAGES, 1, show_progress=True, internal_batch_size=2
    ),
    "AttEXplore": lambda: AttEXplore(MODEL, steps=2, samples=2).attribute(IMAGES, 1, show_progress=True),
    "FORGrad": lambda: FORGrad(FAMPE(MODEL, steps=2, samples=2)).attribute(IMAGES, 1, show_progress=True),
    "attack": lambda: BandLimitedAttack(
        MODEL, "low", 4, PathConfig(steps=3, samples=1, smoothing=False, input_diversity=False)
    )(IMAGES, 1, show_progress=True),
    "tune": lambda: tune_cutoff(MODEL, batches(), Plain(), metric_steps=3, protocol="per_pixel", show_progress=True),
    "calibrate": lambda: calibrate_depths(
        MODEL, batches(), FAMPE(MODEL, passes=1), metric_steps=2, protocol="per_pixel", show_progress=True
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_bar_ends_at_its_total(name: str, bars: list[tuple[float, list[float]]]) -> None:
    CALLS[name]()
    assert bars
    for total, stages in bars:
        assert total > 0
        assert stages[-1] == total
        assert max(stages) == total


PEERS = [
    "integrated_gradients", "spectral_ig", "smoothgrad", "saliency", "gradcam", "fullgrad", "attention_gradient",
    "rise",
]  # fmt: skip


@pytest.mark.parametrize("name", PEERS)
def test_the_bars_of_the_peers_too(name: str, bars: list[tuple[float, list[float]]]) -> None:
    pytest.importorskip("captum", reason="Captum is not installed")
    options = {"passes": 3} if "passes" in options_of(name) else {}
    create_method(name, suited(name), **options).attribute(some_images(2), 1, show_progress=True)
    assert bars
    for total, stages in bars:
        assert stages[-1] == max(stages) == total


def test_a_search_that_takes_longer_than_thought_stays_at_its_total(bars: list[tuple[float, list[float]]]) -> None:
    with progress(3, "search") as advance:
        counted = UpTo(3, advance)
        for _ in range(5):
            counted(1)
        counted.finish()
    with progress(3, "short search") as advance:
        counted = UpTo(3, advance)
        counted(1)
        counted.finish()
    assert [stages[-1] for _, stages in bars] == [3, 3]


def test_most_of_the_steps_are_counted_as_they_are_measured(bars: list[tuple[float, list[float]]]) -> None:
    """The bar moves with the work: nearly all of it before the end, where all steps differ."""
    scored(steps=12)
    ((total, stages),) = bars
    assert stages[-2] >= 0.9 * total


@contextmanager
def broken() -> Iterator[None]:
    with pytest.raises(ZeroDivisionError):
        yield


def test_a_bar_of_work_that_fails_is_not_completed(bars: list[tuple[float, list[float]]]) -> None:
    with broken(), progress(4, "work") as advance:
        advance(1)
        raise ZeroDivisionError
    assert [stages[-1] for _, stages in bars] == [1]
