"""The checks of single arguments, and what the configurations make of numbers of all kinds and sizes."""

import dataclasses
import json
import math
import warnings
from fractions import Fraction

import numpy as np
import pytest
import torch

from fampe_fast import FAMPE, AttEXplore, FORGrad, OccludedFrequency, create_method, insertion_deletion
from fampe_fast.checks import (
    LARGEST,
    LARGEST_CUTOFF,
    SMALLEST_CUTOFF,
    check_bounds,
    check_choice,
    check_count,
    check_cutoff,
    check_flag,
    check_gaussian_cutoff,
    check_image_ids,
    check_interval,
    check_number,
    check_positive,
    check_seed,
    check_whole,
)
from fampe_fast.engine.config import AttEXploreConfig, FAMPEConfig, PathConfig
from fampe_fast.frequency import low_pass
from fampe_fast.frequency.two_scale import two_scale_map
from fampe_fast.metrics.protocols import GaussianBlur, Protocol, SolidColour
from fampe_fast.plots import explanation_figure
from fampe_fast.reference.radial_mask import radial_mask
from fampe_fast.robustness import BandLimitedAttack, BandMixAugmentation, LowPassAugmentation
from fampe_fast.runs.attack_results import AttackSettings
from fampe_fast.runs.defence_settings import DefenceSettings
from fampe_fast.runs.measurement import Measurement

from .models_for_tests import Smooth


class Index:
    """Nothing but a whole number."""

    def __index__(self) -> int:
        return 3

    def __repr__(self) -> str:
        return "Index()"  # a name for the test, the same in every worker


THREES = [
    3, np.int64(3), np.uint8(3), np.array(3), np.array(3, dtype=np.uint64), torch.tensor(3), Index(),
    torch.tensor(3, dtype=torch.int8),
]  # fmt: skip
HALVES = [0.5, np.float32(0.5), np.float64(0.5), np.float16(0.5), np.array(0.5), torch.tensor(0.5), Fraction(1, 2)]
NO_NUMBERS = [
    True, False, np.True_, np.array(True), torch.tensor(True), torch.tensor([True]), "3", b"3", None, [3], (3,), 3j,
    np.complex64(3), np.str_("3"), np.array([3]), np.array([3, 4]), torch.tensor([3]), torch.tensor([3, 4]), ...,
]  # fmt: skip


@pytest.mark.parametrize("value", THREES, ids=repr)
def test_whole_numbers_of_all_kinds_become_ints(value: object) -> None:
    for check in (check_whole, check_count):
        found = check("steps", value)
        assert type(found) is int
        assert found == 3
    assert type(check_seed(value)) is int
    number = check_number("eps", value, 0, 4)
    assert type(number) is float
    assert number == 3


@pytest.mark.parametrize("value", HALVES, ids=repr)
def test_numbers_of_all_kinds_become_floats(value: object) -> None:
    for check in (check_number, check_positive, check_cutoff, check_gaussian_cutoff):
        found = check("eps", value)
        assert type(found) is float
        assert found == 0.5
    assert check_interval("alpha", (value, np.float32(0.75)), 1) == (0.5, 0.75)
    assert check_interval("alpha", value, 1) == (0.5, 0.5)
    with pytest.raises(TypeError, match="steps must be a whole number, got .*0?.5|1, 2"):
        check_count("steps", value)


@pytest.mark.parametrize("value", NO_NUMBERS, ids=repr)
def test_what_is_no_number_is_named(value: object) -> None:
    for check in (check_whole, check_count):
        with pytest.raises(TypeError, match="^bands must be a whole number, got "):
            check("bands", value)
    with pytest.raises(TypeError, match="^seed must be a whole number, got "):
        check_seed(value)
    for check in (check_number, check_positive, check_cutoff, check_gaussian_cutoff):
        with pytest.raises(TypeError, match="^sigma must be a number, got "):
            check("sigma", value)
    if not isinstance(value, (list, tuple)) and getattr(value, "shape", ()) != (2,):
        with pytest.raises(TypeError, match="^alpha must be a number or two, got "):
            check_interval("alpha", value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float32("nan"), torch.tensor(math.inf), 10**400])
def test_numbers_that_are_not_finite_are_refused(value: object) -> None:
    for check in (check_number, check_positive, check_cutoff, check_gaussian_cutoff):
        with pytest.raises(ValueError, match="^rho must be .*got"):
            check("rho", value)
    for interval in (value, (0.0, value), [value, 1.0]):
        with pytest.raises(ValueError, match="^cutoff must be finite"):
            check_interval("cutoff", interval)
    with pytest.raises(ValueError, match="^bounds must be"):
        check_bounds((0, value))


def test_limits_are_inside_or_outside_as_said() -> None:
    assert check_number("tau", 1, 0, 1, open_low=True) == 1
    for value, words in ((0, r"in \(0, 1\], got 0"), (1.5, r"in \(0, 1\], got 1.5")):
        with pytest.raises(ValueError, match=f"^tau must be {words}"):
            check_number("tau", value, 0, 1, open_low=True)
    assert check_count("seed", 0, at_least=0) == 0
    with pytest.raises(ValueError, match="^step must be at least 1 pixel, got 0"):
        check_count("step", 0, unit="pixel")
    with pytest.raises(ValueError, match=r"^eps must be at most 1e\+12, beyond which float32 overflows, got 1e\+20"):
        check_number("eps", 1e20, 0, largest=LARGEST)
    assert check_cutoff("cutoff", 0) == 0
    assert check_cutoff("cutoff", 1e-200) == 1e-200
    assert check_gaussian_cutoff("cutoff", SMALLEST_CUTOFF) == SMALLEST_CUTOFF
    with pytest.raises(ValueError, match="^area_cutoff must be above 0, got 0"):
        check_gaussian_cutoff("area_cutoff", 0)
    with pytest.raises(ValueError, match="^cutoff must be at least 1e-15, below which float32 .* got 2e-23"):
        check_gaussian_cutoff("cutoff", 2e-23)
    assert check_seed(-(2**63)) == -(2**63)
    for seed in (2**63, -(2**63) - 1):
        with pytest.raises(ValueError, match=f"seed must fit into 64 bits, got {seed}"):
            check_seed(seed)


@pytest.mark.parametrize(
    "bounds",
    [(0, 1), [0, 1], (np.float32(0), np.int64(1)), np.array([0.0, 1.0]), torch.tensor([0, 1]), (Fraction(0), True + 0)],
    ids=repr,
)
def test_bounds_of_all_kinds_become_two_floats(bounds: object) -> None:
    found = check_bounds(bounds)
    assert found == (0.0, 1.0)
    assert [type(end) for end in (found, *found)] == [tuple, float, float]


@pytest.mark.parametrize(
    ("bounds", "error"),
    [
        ((1, 0), ValueError), ((1, 1), ValueError), ((0, math.nan), ValueError), ((1, 1 + 1e-12), ValueError),
        ((0,), ValueError), ((0, 1, 2), ValueError), ((0, 1e30), ValueError), (5, TypeError), (None, TypeError),
        ("01", TypeError), ((False, True), TypeError), (("0", "1"), TypeError), (torch.eye(2), TypeError),
    ],
    ids=repr,
)  # fmt: skip
def test_bounds_that_are_none_are_named(bounds: object, error: type[Exception]) -> None:
    for make in (
        check_bounds,
        lambda bounds: FAMPEConfig(bounds=bounds),
        lambda bounds: OccludedFrequency(Smooth(), bounds=bounds),
    ):
        with pytest.raises(error, match="^bounds must "):
            make(bounds)


def test_flags_and_words_keep_their_python_type() -> None:
    for value in (True, np.True_, np.array(True), torch.tensor(True)):
        assert check_flag("smoothing", value) is True
    for value in (1, 0, "yes", None, [True], torch.tensor([True]), 1.0):
        with pytest.raises(TypeError, match="^smoothing must be True or False, got "):
            check_flag("smoothing", value)
    assert type(check_choice("mode", np.str_("mix"), ("mix", "allpass"))) is str
    for value in ("mixed", None, ["mix"], np.array(["mix", "allpass"]), 3, True):
        with pytest.raises(ValueError, match="^mode must be one of mix, allpass; got "):
            check_choice("mode", value, ("mix", "allpass"))


IDS = [[7, 4294967294], (7, 4294967294), np.array([7, 4294967294]), np.array([7, 4294967294], dtype=np.uint32)]
IDS += [np.array([7, 4294967294], dtype=np.uint64), [np.int64(7), np.uint32(4294967294)], torch.tensor([7, 4294967294])]
IDS += [
    [torch.tensor(7), torch.tensor(4294967294)],
    range(7, 4294967295, 4294967287),
    np.array([7, 4294967294], dtype=object),
]


@pytest.mark.parametrize("image_ids", IDS, ids=repr)
def test_image_ids_of_all_kinds_become_one_tensor(image_ids: object) -> None:
    found = check_image_ids(image_ids, torch.zeros(2, 3, 8, 8))
    assert found.dtype == torch.int64
    assert found.tolist() == [7, 4294967294]


@pytest.mark.parametrize(
    ("image_ids", "error", "words"),
    [
        ([0.5, 1.0], TypeError, "be integers"), ([True, False], TypeError, "be integers"),
        (torch.tensor([0.0, 1.0]), TypeError, "be integers, got torch.float32"),
        (np.array([True, False]), TypeError, "be integers, got bool"), (["0", "1"], TypeError, "be integers"),
        ("01", TypeError, "be integers"), (3, TypeError, "be integers"),
        ([[0], [1]], TypeError, "be integers"),
        ([0], ValueError, r"have one entry per image, \(2,\), got shape \(1,\)"),
        (torch.tensor([[0, 1]]), ValueError, r"have one entry per image, \(2,\), got shape \(1, 2\)"),
        (torch.tensor(0), ValueError, r"have one entry per image, \(2,\), got shape \(\)"),
        ([0, 2**32 - 1], ValueError, "lie in"), ([0, -1], ValueError, "lie in"), ([0, 10**30], ValueError, "lie in"),
    ],
    ids=repr,
)  # fmt: skip
def test_image_ids_that_are_none_are_named(image_ids: object, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=f"^image_ids must {words}"):
        check_image_ids(image_ids, torch.zeros(2, 3, 8, 8))


def test_no_ids_are_the_positions() -> None:
    assert check_image_ids(None, torch.zeros(3, 1)).tolist() == [0, 1, 2]
    assert (
        check_image_ids([], torch.zeros(0, 1)).shape == check_image_ids(torch.zeros(0), torch.zeros(0, 1)).shape == (0,)
    )


# What is kept of them -------------------------------------------------------------------------------------------------


def plain(value: object) -> bool:
    if isinstance(value, tuple):
        return all(plain(entry) for entry in value)
    return value is None or type(value) in (int, float, bool, str)


def test_configurations_keep_plain_numbers_equal_to_those_given_plainly() -> None:
    mixed = FAMPEConfig(
        steps=np.int64(2), samples=np.array(3), eps=np.float64(0.05), decay=1, smoothing=np.False_, seed=np.uint8(9),
        gradient_cutoff=np.int32(20), area_cutoff=torch.tensor(6), bounds=np.array([0, 1]), alpha=np.float64(0.25),
        rho=0, sigma=np.float64(0.125), tau=1, include_dc=np.bool_(False), cutoff=np.int64(30), gain=2,
        mode=np.str_("mix"),
    )  # fmt: skip
    usual = FAMPEConfig(
        steps=2, samples=3, eps=0.05, decay=1.0, smoothing=False, seed=9, gradient_cutoff=20.0, area_cutoff=6.0,
        bounds=(0.0, 1.0), alpha=0.25, rho=0.0, sigma=0.125, tau=1.0, include_dc=False, cutoff=30.0, gain=2.0,
        mode="mix",
    )  # fmt: skip
    assert mixed == usual
    assert hash(mixed) == hash(usual)
    assert all(plain(value) for value in dataclasses.astuple(mixed))
    assert json.dumps(dataclasses.asdict(mixed)) == json.dumps(dataclasses.asdict(usual))
    other = AttEXploreConfig(rho=np.float64(0.5), sigma=np.float64(0.25), eps=np.float64(0.1))
    assert other == AttEXploreConfig(rho=0.5, sigma=0.25, eps=0.1)
    assert all(plain(value) for value in dataclasses.astuple(other))


def test_other_settings_keep_plain_numbers_too() -> None:
    made = [
        DefenceSettings(
            seed=np.int64(1), size=np.int64(64), eps=np.float64(0.1), cutoff=np.int64(12), batch_size=np.int8(4)
        ),
        AttackSettings(cutoff=np.int64(30), rings=np.int64(4)),
        Measurement(
            ("stability", "insertion_deletion"),
            {
                "insertion_deletion": {"steps": np.int64(4), "passes": np.int64(3)},
                "stability": {"samples": np.int64(2), "radius": np.float64(0.5)},
            },
            np.int64(1),
        ),
    ]
    assert made == [
        DefenceSettings(seed=1, size=64, eps=0.1, cutoff=12, batch_size=4),
        AttackSettings(cutoff=30, rings=4),
        Measurement(
            ("insertion_deletion", "stability"),
            {"insertion_deletion": {"steps": 4, "passes": 3}, "stability": {"samples": 2, "radius": 0.5}},
            1,
        ),
    ]
    for settings in made:
        json.dumps(dataclasses.asdict(settings))
    assert json.dumps(
        dataclasses.asdict(Protocol("p", "pixel", SolidColour(np.float64(0.5)), SolidColour(), np.int64(3)))
    )
    assert GaussianBlur(np.int64(5), np.float32(2)) == GaussianBlur(5, 2.0)


def test_numpys_numbers_give_the_same_maps_and_scores() -> None:
    model, images = Smooth(), torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    options = {"steps": 2, "samples": 3, "seed": 5, "cutoff": 4}
    expected = FAMPE(model, **options).attribute(images, 1, image_ids=[3, 4], internal_batch_size=2)
    as_numpy = {name: np.int64(value) for name, value in options.items()}
    ids, size = [np.int64(3), np.int64(4)], np.int64(2)
    assert torch.equal(FAMPE(model, **as_numpy).attribute(images, 1, image_ids=ids, internal_batch_size=size), expected)
    areas = insertion_deletion(
        model, images, expected, 1, steps=np.int64(5), passes=np.int64(3), tolerance=None, protocol="per_pixel"
    )
    assert torch.equal(
        areas.insertion,
        insertion_deletion(model, images, expected, 1, steps=5, passes=3, protocol="per_pixel").insertion,
    )
    drops = OccludedFrequency(model, np.int64(3), bounds=np.array([0, 1]))(images, 1).drops
    assert torch.equal(drops, OccludedFrequency(model, 3)(images, 1).drops)
    attack = BandLimitedAttack(
        model, "low", np.int64(4), PathConfig(steps=np.int64(2), samples=1, smoothing=False, input_diversity=False)
    )
    assert attack(images, 1).model_passes == 2


# Sizes ----------------------------------------------------------------------------------------------------------------


EXTREMES = [
    5e-324,
    1e-300,
    1e-100,
    1e-45,
    1e-38,
    2e-23,
    1e-20,
    1e-15,
    1e-9,
    1e9,
    1e12,
    1e15,
    1e20,
    1e38,
    1e39,
    1e100,
    1e308,
]
SWEPT = ["cutoff", "area_cutoff", "gradient_cutoff", "sigma", "eps", "gain", "rho", "alpha", "tau", "decay"]


def attempt(call):
    """What a call gives and None, or None and why it refused."""
    try:
        return call(), None
    except ValueError as error:
        return None, str(error)


@pytest.mark.parametrize("value", EXTREMES)
@pytest.mark.parametrize("name", SWEPT)
def test_tiny_and_huge_numbers_give_a_finite_map_or_name_themselves(name: str, value: float) -> None:
    options = {"steps": 2, "samples": 2, "mode": "mix", "compile": "off", name: value}
    images = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    method, refusal = attempt(lambda: FAMPE(Smooth(), **options))
    if refusal is not None:
        assert refusal.startswith(f"{name} must be ")
        assert repr(value) in refusal
        return
    with warnings.catch_warnings():
        # Noise of 10^9 saturates the model: its gradient is zero, and the warning says so.
        warnings.filterwarnings(
            "ignore" if value > 1 and name in ("sigma", "gain") else "error", "the gradient .* zero"
        )
        found = method.attribute(images, 1)
    assert bool(found.isfinite().all())
    assert float(found.abs().max()) > 0 or (value > 1 and name in ("sigma", "gain"))
    if name in ("cutoff", "area_cutoff"):
        # Between the grid's smallest and largest radius lies all that a cut-off can tell apart.
        near = min(max(value, 1e-3), 1e5)
        expected = FAMPE(Smooth(), **{**options, name: near}).attribute(images, 1)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("value", EXTREMES)
def test_tiny_and_huge_cutoffs_elsewhere(value: float) -> None:
    images = torch.rand(2, 3, 16, 15, generator=torch.Generator().manual_seed(2))
    means = images.mean((-2, -1), keepdim=True).expand_as(images)
    saliency = create_method("fampe", Smooth(), steps=1, samples=1)
    calls = {
        "low_pass": lambda: low_pass(images, value),
        "forgrad": lambda: FORGrad(saliency, value).attribute(images, 1),
        "map_cutoff": lambda: create_method("forgrad_fampe", Smooth(), map_cutoff=value, steps=1, samples=1).attribute(
            images, 1
        ),
        "two_scale": lambda: two_scale_map(images, value),
        "low_pass_augmentation": lambda: LowPassAugmentation(value, probability=1)(images),
        "band_mix_augmentation": lambda: BandMixAugmentation(cutoff=value, sigma=0, rho=0, probability=1)(images),
        "sigma": lambda: BandMixAugmentation(sigma=value, probability=1)(images),
        "attack": lambda: BandLimitedAttack(Smooth(), "low", value)(images, 1).images,
    }
    for name, call in calls.items():
        argument = name if name in ("map_cutoff", "sigma") else "cutoff"
        found, refusal = attempt(call)
        if refusal is not None:
            assert refusal.startswith(f"{argument} must be "), name
            assert value > 1e9 or value < 1e-9, name
            continue
        assert bool(found.isfinite().all()), name
        if name == "low_pass":
            torch.testing.assert_close(found, means if value < 1 else images, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [(8, 8), (64, 17), (3, 4096)])
@pytest.mark.parametrize("cutoff", [SMALLEST_CUTOFF, 1e-12, 1e-3, 1e12, LARGEST_CUTOFF])
def test_masks_are_exact_to_the_ends_of_what_is_taken(cutoff: float, size: tuple[int, int]) -> None:
    single = radial_mask(torch.tensor([cutoff], dtype=torch.float32), *size)
    double = radial_mask(torch.tensor([cutoff], dtype=torch.float32).double(), *size)
    for found, expected in zip(single, double, strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-7)


def test_a_path_too_fine_for_float32_is_refused_with_the_number_that_is_not() -> None:
    with pytest.raises(ValueError, match=r"^eps must be at least 9.5e-06 for 10 steps.*got 1e-08"):
        FAMPEConfig(steps=10, eps=1e-8)
    steps = 8
    weight = torch.linspace(0.5, 1.5, 3 * 8 * 8).view(3, 8, 8)

    def model(pixels: torch.Tensor) -> torch.Tensor:
        score = (pixels * weight).sum((1, 2, 3))
        return torch.stack([score, -score], 1) / 100

    images = torch.full((1, 3, 8, 8), 0.7)
    options = {
        "steps": steps,
        "samples": 1,
        "views": 0,
        "smoothing": False,
        "area_cutoff": None,
        "sigma": 0.0,
        "rho": 0.0,
    }
    small = FAMPE(model, eps=steps * 1e-6, **options).attribute(images, 0) / 1e-6
    usual = FAMPE(model, eps=steps * 1e-3, **options).attribute(images, 0) / 1e-3
    torch.testing.assert_close(small, usual, rtol=0.04, atol=0)


def test_a_momentum_that_overflows_is_refused() -> None:
    assert AttEXplore(Smooth(), decay=100.0, steps=10).config.decay == 100
    with pytest.raises(ValueError, match=r"^decay must be at most 599 for 10 steps.*got 1000.0"):
        PathConfig(decay=1000.0)
    assert PathConfig(decay=1e20, steps=1).decay == 1e20


# The argument that is blamed ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: BandMixAugmentation(sigma=-1), "sigma must be finite and not negative, got -1"),
        (lambda: BandMixAugmentation(cutoff=-2), "cutoff must be above 0, got -2"),
        (lambda: BandMixAugmentation(tau=2), "tau must be above 0 and at most 1, got 2"),
        (lambda: BandMixAugmentation((0.9, 0.1)), r"alpha must be \(lowest, highest\), got \(0.9, 0.1\)"),
        (lambda: LowPassAugmentation(3, seed=2**63), "seed must fit into 64 bits"),
        (lambda: create_method("forgrad_saliency", Smooth(), map_cutoff=-1), "map_cutoff must .*, got -1"),
        (lambda: create_method("fampe", Smooth(), area_cutoff=-1), r"area_cutoff must be in \(0, inf\], got -1"),
        (lambda: FAMPE(Smooth(), gradient_cutoff=math.nan), "gradient_cutoff must be finite, got nan"),
        (lambda: DefenceSettings(learning_rate=0), "learning_rate must be finite and above 0, got 0"),
        (lambda: DefenceSettings(size=32), "size must be at least 64, got 32"),
        (lambda: DefenceSettings(seed=-1), "seed must be at least 0, got -1"),
        (lambda: GaussianBlur(4), "kernel_size must be odd and at least 1, got 4"),
        (lambda: GaussianBlur(sigma=-1), "sigma must be finite and above 0, got -1"),
        (lambda: Measurement(seed=2**70), "seed must fit into 64 bits"),
        (lambda: explanation_figure(*torch.rand(2, 3, 8, 8), cutoff=-3), "cutoff must be a cut-off radius above 0"),
    ],
)  # fmt: skip
def test_the_argument_itself_is_blamed(call, words: str) -> None:
    with pytest.raises(ValueError, match=f"^{words}"):
        call()


@pytest.mark.parametrize("name", ["smoothing", "input_diversity", "include_dc"])
def test_a_switch_is_true_or_false(name: str) -> None:
    with pytest.raises(TypeError, match=f"^{name} must be True or False, got 'no'"):
        FAMPEConfig(**{name: "no"})
