"""The search for the depths' weights, on models of which it is known what each layer's evidence is worth."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fampe_fast import FAMPE, AttEXplore, DepthCalibration, FAMPEConfig, calibrate_depths, create_method
from fampe_fast.errors import FampeWarning
from fampe_fast.methods.base import PathMethod
from fampe_fast.methods.depth_search import DepthWeights, Remembered, search_in_parts, search_weights
from fampe_fast.metrics import Estimate, insertion_deletion
from fampe_fast.models.identity import identity_of

from ..models_for_tests import Rolled, some_images

LAYERS = "rolled,unrolled,coarse"
QUICK = {"protocol": "per_pixel", "metric_steps": 8}


def one_pass(model: nn.Module, **options: Any) -> FAMPE:
    return FAMPE(model, passes=1, layers=LAYERS, **options)


def cells(count: int = 8, seed: int = 0) -> Tensor:
    """Squares of 4 pixels, each of one brightness."""
    drawn = torch.rand(count, 1, 16, 16, generator=torch.Generator().manual_seed(seed))
    return (0.2 + 0.8 * drawn).expand(-1, 3, -1, -1).repeat_interleave(4, 2).repeat_interleave(4, 3)


def zeros(images: Tensor) -> Tensor:
    return torch.zeros(len(images), dtype=torch.long)


def calibrated(model: nn.Module, images: Tensor, sizes: list[int] | None = None, **options: Any) -> DepthCalibration:
    batches = [(part, zeros(part)) for part in images.split(sizes or [len(images)])]
    return calibrate_depths(model, batches, one_pass(model), **{**QUICK, **options})


@pytest.fixture(scope="module")
def found() -> DepthCalibration:
    return calibrated(Rolled.misled(), cells())


# The search -----------------------------------------------------------------------------------------------------------


def test_a_layer_that_misleads_gets_no_weight(found: DepthCalibration) -> None:
    model, images = Rolled.misled(), cells()
    evidence = one_pass(model).attribute(images, 0, return_details=True)[1].depths
    assert evidence is not None
    wrong, right = (layer.view(-1, 16, 16) for layer in evidence.layers.split([256, 256, 4], 1)[:2])
    torch.testing.assert_close(wrong, right.roll(5, 2))
    shares = model.weight.expand(8, -1, -1).flatten()
    assert torch.corrcoef(torch.stack([right.flatten(), shares]))[0, 1] > 0.7
    assert abs(float(torch.corrcoef(torch.stack([wrong.flatten(), shares]))[0, 1])) < 0.1

    assert found.layers == ("rolled", "unrolled", "coarse")
    assert found.layer_weights[0] == 0
    assert found.layer_weights[1] > 0
    assert found.score.mean > found.default_score.mean + 0.01
    assert found.held_out is not None
    assert found.held_out.n == found.images == found.score.n == 8
    assert found.held_out.standard_error is not None
    assert found.held_out.mean > 3 * found.held_out.standard_error
    assert found.passes == 1


def test_the_scores_are_those_of_the_maps_that_the_options_make(found: DepthCalibration) -> None:
    model, images = Rolled.misled(), cells()
    for options, expected in (({"layers": LAYERS}, found.default_score), (found.options, found.score)):
        maps = FAMPE(model, passes=1, **options).attribute(images, 0)
        scores = insertion_deletion(model, images, maps, 0, protocol="per_pixel", steps=8)
        assert expected.mean == pytest.approx(float((scores.insertion - scores.deletion).mean()), abs=1e-6)


@pytest.mark.parametrize("passes", [1, 2, 10])
def test_what_is_combined_is_what_the_method_combines(passes: int) -> None:
    """With the path's pixels as well, where there is a path."""
    model, images = Rolled.misled(), cells(2)
    method = FAMPE(model, passes=passes, layers=LAYERS)
    got = calibrate_depths(model, [(images, zeros(images))], method, **QUICK)
    maps = FAMPE(model, passes=passes, calibration=got).attribute(images, 0)
    scores = insertion_deletion(model, images, maps, 0, protocol="per_pixel", steps=8)
    assert got.score.mean == pytest.approx(float((scores.insertion - scores.deletion).mean()), abs=1e-6)
    assert got.passes == passes
    assert got.held_out is None  # two images are no halves


def test_where_every_layer_is_right_the_defaults_stay() -> None:
    """Every combination ranks what counts before what does not, and what counts counts alike."""
    images = torch.linspace(0.3, 0.9, 6)[:, None, None, None].expand(-1, 3, 64, 64).contiguous()
    got = calibrated(Rolled.right(), images)
    assert (got.pixel_weight, got.layer_weights, got.gate_floor) == (0.0, (1.0, 1.0, 0.0), 0.5)
    assert got.score == got.default_score
    assert got.held_out == Estimate(0.0, 0.0, 6)
    assert got.score.mean > 0.3
    # One round: the default, and what differs from it in one number. Nothing was better, so there is no second.
    assert got.evaluations == 1 + 3 * 3 + 4 + 4


@pytest.mark.slow
def test_the_evidence_is_collected_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    attribute = PathMethod.attribute

    def counted(self: Any, inputs: Tensor, *rest: Any, **options: Any) -> Any:
        calls.append(len(inputs))
        return attribute(self, inputs, *rest, **options)

    monkeypatch.setattr(PathMethod, "attribute", counted)
    got = calibrated(Rolled.misled(), cells(6), [2, 4])
    assert calls == [2, 4]
    assert got.evaluations > 17


@pytest.mark.slow
def test_batches_do_not_matter(found: DepthCalibration) -> None:
    for sizes in ([3, 5], [1] * 8):
        got = calibrated(Rolled.misled(), cells(), sizes)
        assert replace(got, score=found.score, default_score=found.default_score, held_out=found.held_out) == found
        assert got.held_out is not None
        assert found.held_out is not None
        for one, other in ((got.score, found.score), (got.held_out, found.held_out)):
            assert one.mean == pytest.approx(other.mean, abs=1e-5)
            assert one.standard_error == pytest.approx(other.standard_error, abs=1e-5)


def scored(value: Callable[[DepthWeights], list[float]]) -> Remembered:
    return Remembered(value)


START = DepthWeights(0.5, (1.0, 0.0), 0.1)


def test_a_gain_smaller_than_its_error_is_not_kept() -> None:
    def noisy(weights: DepthWeights) -> list[float]:
        return [0.5 + 0.3 * (weights.floor == 1.0), 0.5 - 0.1 * (weights.floor == 1.0)]  # 0.1 ± 0.2

    assert search_weights(scored(noisy), START) == START

    def clear(weights: DepthWeights) -> list[float]:
        return [0.5 + 0.3 * (weights.floor == 1.0), 0.5 + 0.1 * (weights.floor == 1.0)]  # 0.2 ± 0.1

    assert search_weights(scored(clear), START) == START._replace(floor=1.0)


def test_the_best_of_those_that_are_clear_is_taken() -> None:
    def judged(weights: DepthWeights) -> list[float]:
        gain = {0.0: [0.9, -0.1], 4.0: [0.2, 0.2], 1.0: [0.3, 0.3], 2.0: [0.1, 0.1]}.get(weights.pixels, [0.0, 0.0])
        return [0.1 + one for one in gain]

    assert search_weights(scored(judged), START) == START._replace(pixels=1.0)


def test_a_second_round_sees_what_the_first_has_changed() -> None:
    def judged(weights: DepthWeights) -> list[float]:
        # The last layer is worth something once the floor is 1, which comes after it.
        return [(weights.floor == 1.0) * (1.0 + (weights.layers[1] == 2.0))] * 2

    judge = scored(judged)
    assert search_weights(judge, START) == DepthWeights(0.5, (1.0, 2.0), 1.0)
    assert not any(not weights.pixels and not any(weights.layers) for weights in judge.known)  # a map of nothing


def test_held_out_images_are_scored_with_what_fits_the_others() -> None:
    """What serves the first half costs the second one, and the other way round: fitted on all, nothing gains."""

    def likes(floor: float, other: float) -> Callable[[DepthWeights], list[float]]:
        return lambda weights: [1.0 * (weights.floor == floor) - 0.5 * (weights.floor == other)] * 2

    halves = [scored(likes(1.0, 0.25)), scored(likes(0.25, 1.0))]
    best, held_out = search_in_parts(halves, START)
    assert held_out == Estimate(-0.5, 0.0, 4)
    assert best == START  # a gain of 0.25 ± 0.43
    assert search_in_parts(halves[:1], START) == (START._replace(floor=1.0), None)


def test_of_a_single_layer_the_search_starts_from_the_pixels_and_the_gate() -> None:
    model, images = Rolled.misled(), cells(4)
    method = FAMPE(model, passes=1, layers="unrolled")
    got = calibrate_depths(model, [(images, zeros(images))], method, **QUICK)
    assert got.layers == ("unrolled",)
    assert len(got.layer_weights) == 1
    for made, expected in ((method, got.default_score), (FAMPE(model, passes=1, **got.options), got.score)):
        scores = insertion_deletion(model, images, made.attribute(images, 0), 0, protocol="per_pixel", steps=8)
        assert expected.mean == pytest.approx(float((scores.insertion - scores.deletion).mean()), abs=1e-6)


# The weights in a map -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("passes", [1, 10])
def test_the_default_s_weights_are_one_and_the_gate_s_nothing_to_the_bit(passes: int) -> None:
    model, images = Rolled.misled(), cells(3)
    default = FAMPE(model, passes=passes, layers=LAYERS).attribute(images, 0)
    assert torch.equal(FAMPE(model, passes=passes, layers=LAYERS, layer_weights="1, 1,0").attribute(images, 0), default)
    other = FAMPE(model, passes=passes, layers=LAYERS, layer_weights=(0, 1, 0)).attribute(images, 0)
    assert not torch.allclose(other, default, rtol=1e-2)


def test_layers_are_weighed_as_the_formula_says() -> None:
    model, images = Rolled.misled(), cells(3)

    def made(**options: Any) -> Tensor:
        return one_pass(model, pixel_weight=0.0, gate_floor=0.5, **options).attribute(images, 0)

    parts = [made(layer_weights=weights) for weights in ("1,0,0", "0,1,0", "0,0,1")]
    whole = made(layer_weights=(0.5, 2.0, 0.25))
    torch.testing.assert_close(whole, 0.5 * parts[0] + 2 * parts[1] + 0.25 * parts[2], rtol=1e-4, atol=1e-5)


def test_weights_of_another_number_of_layers_are_refused_before_the_path() -> None:
    model = Rolled.misled()
    with pytest.raises(ValueError, match="must be 3 numbers, .* the layers rolled, unrolled, coarse; got 2"):
        FAMPE(model, passes=200, layers=LAYERS, layer_weights="1,0").attribute(cells(1), 0)
    empty = FAMPE(model, passes=1, layers=LAYERS, layer_weights="1,0").attribute(cells(1)[:0], [])
    assert empty.shape == (0, 3, 64, 64)


@pytest.mark.parametrize(
    ("weights", "error", "said"),
    [
        ("1,x", ValueError, "layer_weights must be numbers separated by commas"),
        ("", ValueError, "layer_weights must be numbers separated by commas"),
        ((), ValueError, "layer_weights must be numbers separated by commas"),
        (3.0, TypeError, "layer_weights must be numbers separated by commas"),
        ((1.0, "2"), TypeError, "layer_weights must be a number"),
        ((1.0, -1.0), ValueError, "layer_weights must be in"),
        ("nan,1", ValueError, "layer_weights must be finite"),
    ],
)
def test_weights_that_are_none_are_named(weights: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        FAMPEConfig(layer_weights=weights)


def test_a_sum_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="pixel_weight and all of layer_weights are 0"):
        FAMPEConfig(pixel_weight=0, layer_weights=(0, 0))
    with pytest.raises(ValueError, match="pixel_weight and all of layer_weights are 0"):
        FAMPEConfig(steps=0, layer_weights=(0, 0))
    assert FAMPEConfig(steps=1, layer_weights="0,0").layer_weights == (0.0, 0.0)  # the path's pixels are left


# The file -------------------------------------------------------------------------------------------------------------


def test_a_calibration_is_read_back_for_its_model_alone(found: DepthCalibration, tmp_path: Path) -> None:
    file = tmp_path / "deep" / "calibrations.json"
    found.save(file)
    model, other = Rolled.misled(), Rolled.right()
    assert DepthCalibration.load(file, model) == found
    own = identity_of(other)["fingerprint"]
    listed = rf"it has Rolled \({found.fingerprint}\)$"
    with pytest.raises(ValueError, match=rf"no calibration for Rolled \({own}\) in .*; {listed}"):
        DepthCalibration.load(file, other)
    with pytest.raises(ValueError, match=rf"is of Rolled \({found.fingerprint}\), but the model is Rolled \({own}\)"):
        FAMPE(other, calibration=found)

    second = replace(found, model="other", fingerprint=str(own), held_out=None)
    second.save(file)
    better = replace(found, gate_floor=3.0)
    better.save(str(file))
    assert DepthCalibration.load(file, model) == better
    assert DepthCalibration.load(str(file), other) == second
    assert len(json.loads(file.read_text())) == 3  # the mark, and a model each


def test_fampe_takes_a_calibration_and_what_is_given_beside_it_holds(found: DepthCalibration, tmp_path: Path) -> None:
    file = tmp_path / "calibrations.json"
    found.save(file)
    model, images = Rolled.misled(), cells(2)
    methods = [
        FAMPE(model, passes=1, calibration=file),
        FAMPE(model, passes=1, calibration=str(file)),
        FAMPE(model, passes=1, calibration=found),
        FAMPE(model, FAMPEConfig(gate_floor=7.0), passes=1, calibration=found),
        create_method("fampe", model, passes=1, calibration=str(file)),
    ]
    expected = FAMPE(model, passes=1, **found.options).attribute(images, 0)
    for method in methods:
        assert torch.equal(method.attribute(images, 0), expected)
        assert method.describe() == methods[0].describe()
    assert FAMPE(model, calibration=found, gate_floor=7.0).config.gate_floor == 7.0
    assert FAMPE(model, calibration=found, layers="coarse,rolled,unrolled").config.layer_weights == found.layer_weights
    filtered = create_method("forgrad_fampe", model, passes=1, calibration=file)
    assert filtered.describe()["filtered"] == methods[0].describe()


@pytest.mark.parametrize("options", [{"passes": 10}, {"views": 2}, {"config": FAMPEConfig(steps=4)}], ids=str)
def test_a_calibration_of_another_number_of_passes_is_used_and_said_to_be(
    options: dict[str, Any], found: DepthCalibration
) -> None:
    passes = FAMPE(Rolled.misled(), **options).passes
    with pytest.warns(FampeWarning, match=rf"found with 1 pass\(es\) per image but is used with {passes}:") as warned:
        method = FAMPE(Rolled.misled(), calibration=found, **options)
    assert len(warned) == 1
    assert method.config.layer_weights == found.layer_weights


@pytest.mark.parametrize("options", [{"layers": "rolled,coarse"}, {"config": FAMPEConfig(layers="coarse")}])
def test_a_calibration_of_other_layers_is_refused(options: dict[str, Any], found: DepthCalibration) -> None:
    with pytest.raises(ValueError, match=r"is of the layers rolled, unrolled, coarse, but the chosen layers are \w+"):
        FAMPE(Rolled.misled(), calibration=found, **options)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot read the calibrations"),
        ("nothing", "is not a file of calibrations"),
        ("[1]", "is not a file of calibrations"),
        ('{"x": {}}', "is not a file of calibrations"),
        ('{"fampe_fast": "cutoffs"}', "is not a file of calibrations"),
        ('{"fampe_fast": "calibrations", "x": {"model": "m"}}', "is not a file of calibrations"),
    ],
)
def test_what_is_no_file_of_calibrations_is_named(content: str | None, said: str, tmp_path: Path) -> None:
    file = tmp_path / "calibrations.json"
    if content is not None:
        file.write_text(content)
    for make in (FAMPE, partial(create_method, "fampe")):
        with pytest.raises(ValueError, match=said) as raised:
            make(Rolled.right(), calibration=file)
        assert str(file) in str(raised.value)


def test_files_of_others_are_left_alone(found: DepthCalibration, tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text('{"mine": 1}')
    with pytest.raises(ValueError, match="was not written by fampe_fast"):
        found.save(file)
    assert file.read_text() == '{"mine": 1}'
    with pytest.raises(ValueError, match=r"one number for each of the layers rolled, unrolled, coarse; got 1"):
        replace(found, layer_weights=(1.0,))


# What cannot be calibrated --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda m, x: calibrate_depths(m, [], one_pass(m)), ValueError, "the batches gave no images"),
        (lambda m, x: calibrate_depths(m, [x], one_pass(m)), TypeError, "pairs"),
        (lambda m, x: calibrated(m, x[:1]), ValueError, "needs at least 2 images, got 1"),
        (lambda m, x: calibrate_depths(m, [], object()), TypeError, "must be FAMPE, or another path method"),
        (
            lambda m, x: calibrate_depths(m, [], FAMPE(m, views=0, steps=1)),
            ValueError,
            "FAMPE without views has no depths to weigh",
        ),
        (
            lambda m, x: calibrate_depths(m, [], AttEXplore(m)),
            ValueError,
            "AttEXplore without views has no depths to weigh",
        ),
        (lambda m, x: calibrate_depths(m, [], FAMPE(Rolled.right())), ValueError, "made with another model"),
        (lambda m, x: calibrate_depths(lambda p: m(p), []), TypeError, "the model is a function"),
        (lambda m, x: calibrated(m, x, metric_steps=0), ValueError, "metric_steps must be at least 1"),
        (lambda m, x: calibrated(m, x, protocol="magic"), ValueError, "magic"),
        (lambda m, x: calibrated(m, x, held_out=1), TypeError, "held_out must be True or False"),
        (
            lambda m, x: calibrate_depths(m, [(x, zeros(x)), (some_images(1), zeros(x[:1]))], one_pass(m)),
            ValueError,
            "one size",
        ),
        (lambda m, x: FAMPE(m, views=0, steps=1, calibration=3), ValueError, "or leave out calibration$"),
        (
            lambda m, x: create_method("fampe", m, views=0, steps=1, calibration=calibrated(m, x)),
            ValueError,
            "or leave out calibration$",
        ),
        (lambda m, x: FAMPE(m, calibration=3), TypeError, "must be a file or a DepthCalibration, got int"),
    ],
)
def test_bad_input_is_named(call: Callable[[nn.Module, Tensor], Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        call(Rolled.misled(), cells(2))
