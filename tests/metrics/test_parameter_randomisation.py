"""Parameter randomisation against methods and models whose maps are known, and what it must leave alone."""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from fampe_fast import FAMPE, FORGrad, create_method
from fampe_fast.cli import DONE, main
from fampe_fast.metrics import parameter_randomisation
from fampe_fast.models.embedded import load_embedded_classifier
from fampe_fast.models.programs import Exported
from fampe_fast.runs.evaluate import evaluate_files
from fampe_fast.runs.measurement import Measurement

from ..images_for_tests import draw
from ..models_for_tests import Smooth, TwoClassLinear, some_images


class Method:
    """A map that is a function of the model and the image; the function is not copied, and sees all copies."""

    def __init__(self, model: object, function: Callable[[nn.Module, Tensor], Tensor]) -> None:
        self.forward_func, self.function = model, function

    def attribute(self, inputs: Tensor, target: object = None) -> Tensor:
        return self.function(self.forward_func, inputs)


class Backwards(nn.Module):
    """A convolution and then a head, registered the other way round."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.head = nn.Linear(600, 4)
            self.convolution = nn.Conv2d(1, 600, 1)
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.convolution(pixels[:, :1]).mean((2, 3)))


def as_map(values: Tensor, inputs: Tensor) -> Tensor:
    """Show the first numbers of a parameter as the map of every image."""
    count = inputs.shape[2] * inputs.shape[3]
    return values.detach().flatten()[:count].reshape(1, 1, *inputs.shape[2:]).expand(len(inputs), -1, -1, -1)


@pytest.mark.parametrize("values", ["absolute", "signed"])
def test_a_map_that_ignores_the_model_stays_as_it_is(values: str) -> None:
    images = some_images(2)
    for function in (lambda model, x: x - 0.5, lambda model, x: torch.ones_like(x)):
        found = parameter_randomisation(Method(Smooth(), function), images, 0, values=values)
        assert found.correlations.tolist() == [[1, 1, 1]] * 2
        assert found.scores.tolist() == [1, 1]


@pytest.mark.parametrize("values", ["absolute", "signed"])
def test_the_gradient_of_a_linear_model_is_that_of_random_weights(values: str) -> None:
    pytest.importorskip("captum")
    stats = pytest.importorskip("scipy.stats")
    weight = torch.randn(3, 24, 24, generator=torch.Generator().manual_seed(1))
    method = create_method("saliency", TwoClassLinear(weight.clone()), absolute=False)
    found = parameter_randomisation(method, some_images(2), 0, values=values, seed=7)
    drawn = torch.randn(3, 24, 24, generator=torch.Generator().manual_seed(7))
    rows = [part.double().sum(0).flatten() for part in (weight, drawn)]
    expected = stats.spearmanr(*(row.abs() if values == "absolute" else row for row in rows))[0]
    assert found.layers == (1,)  # no more stages than layers
    assert found.correlations.tolist() == [[pytest.approx(expected, abs=1e-12)]] * 2
    assert abs(expected) < 5 / 24  # of 576 pixels


def test_layers_are_drawn_from_the_last_that_runs_to_the_first() -> None:
    images, model = some_images(1, 1), Backwards()
    head = Method(model, lambda m, x: as_map(m.head.weight, x))
    convolution = Method(model, lambda m, x: as_map(m.convolution.weight, x))
    at_head = parameter_randomisation(head, images, 0, stages=2)
    at_convolution = parameter_randomisation(convolution, images, 0, stages=2)
    assert at_head.layers == (1, 2)
    first, second = at_head.correlations[0].tolist()
    assert first == second  # the first stage draws it, and the second leaves it
    assert abs(first) < 5 / 24
    first, second = at_convolution.correlations[0].tolist()
    assert first == 1
    assert abs(second) < 5 / 24
    assert at_convolution.scores.tolist() == [(1 + second) / 2]


def test_stages_are_parts_of_one_cascade() -> None:
    def gradient(model: nn.Module, x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        return torch.autograd.grad(model(x).sum(), x)[0]

    images, method = some_images(2), Method(Smooth(), gradient)
    thrice = parameter_randomisation(method, images, 0, stages=3)
    once = parameter_randomisation(method, images, 0, stages=1)
    assert (thrice.layers, once.layers) == ((1, 2, 3), (3,))
    assert torch.equal(once.correlations[:, 0], thrice.correlations[:, 2])
    assert torch.equal(once.scores, once.correlations[:, 0])
    assert torch.equal(thrice.scores, thrice.correlations.mean(1))
    assert not torch.equal(parameter_randomisation(method, images, 0, stages=1, seed=1).scores, once.scores)
    assert torch.equal(parameter_randomisation(method, images, 0, stages=9).scores, thrice.scores)


class Normalised(nn.Module):
    """Every kind of parameter, in a class that is no normalisation itself."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 64, 3)
        self.norm = nn.BatchNorm2d(64)
        self.attention = nn.MultiheadAttention(64, 4, batch_first=True)
        self.layer_norm = nn.LayerNorm(64)
        self.scale = nn.Parameter(torch.full((64,), 1e-3))
        self.temperature = nn.Parameter(torch.tensor(2.0))
        self.head = nn.Linear(64, 5)
        with torch.no_grad():
            for parameter in self.parameters():
                if parameter.ndim:
                    parameter += 0.5
            self.norm.running_mean.fill_(0.25)
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        tokens = self.norm(self.convolution(pixels)).flatten(2).transpose(1, 2)
        tokens = self.scale * self.attention(tokens, tokens, tokens)[0]
        return self.temperature * self.head(self.layer_norm(tokens).mean(1))


def test_what_is_drawn_keeps_its_size_and_what_is_not_learnt_stays() -> None:
    model, states = Normalised(), []

    def remember(m: nn.Module, x: Tensor) -> Tensor:
        states.append(copy.deepcopy(m.state_dict()))
        return x

    parameter_randomisation(Method(model, remember), some_images(1, 3, 8, 8), 0)
    before, *_, after = states
    for name in ("convolution.weight", "attention.in_proj_weight", "attention.out_proj.weight", "head.weight", "scale"):
        old, new = before[name].flatten(), after[name].flatten()
        assert float(new.square().mean()) == pytest.approx(float(old.square().mean()), rel=0.5)
        assert abs(float(new.mean())) < 5 * float(old.square().mean() / len(old)) ** 0.5
        assert not torch.equal(old, new)
    for name in ("convolution", "attention.in_proj", "attention.out_proj", "norm", "layer_norm", "head"):
        bias = f"{name}_bias" if name.endswith("in_proj") else f"{name}.bias"
        assert before[bias].any()
        assert not after[bias].any()
    for name in ("norm", "layer_norm"):
        assert (before[f"{name}.weight"] != 1).all()
        assert (after[f"{name}.weight"] == 1).all()
    for name in ("norm.running_mean", "norm.running_var", "temperature"):
        assert torch.equal(before[name], after[name])


def test_a_transformer_loses_its_head_first_and_its_embedding_last() -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False, img_size=32, depth=2, num_classes=7).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.01
    changed: list[set[str]] = []

    def compare(m: nn.Module, x: Tensor) -> Tensor:
        own = dict(model.named_parameters())
        changed.append({name for name, value in m.named_parameters() if not torch.equal(value, own[name])})
        return x

    found = parameter_randomisation(Method(model, compare), some_images(1, 3, 32, 32), 0, stages=100)
    untouched, *stages = changed
    assert not untouched
    new = [now - then for then, now in zip(changed, stages, strict=False)]
    assert len(new) == found.layers[-1]
    assert new[0] == {"head.weight", "head.bias"}
    assert new[1] == {"norm.weight", "norm.bias"}
    assert {"patch_embed.proj.weight", "patch_embed.proj.bias"} in new[-2:]
    assert {"cls_token", "pos_embed"} in new[-2:]
    order = [min(k for k, names in enumerate(new) if any(part in name for name in names)) for part in ("s.1.", "s.0.")]
    assert order[0] < order[1]
    assert set.union(*new) == set(dict(model.named_parameters()))


@pytest.mark.parametrize("make", ["fampe", "forgrad_saliency", "smoothgrad"])
def test_the_user_s_model_and_generators_are_left_alone(make: str) -> None:
    pytest.importorskip("captum")
    model = Smooth()
    options = {"steps": 1, "samples": 2} if make == "fampe" else {"passes": 2} if make == "smoothgrad" else {}
    method = create_method(make, model, **options)
    images, before, state = some_images(2), copy.deepcopy(model.state_dict()), torch.get_rng_state()
    maps = method.attribute(images, 1)
    found = parameter_randomisation(method, images, 1)
    assert (found.correlations < 0.99).all()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(method.attribute(images, 1), maps)
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert not torch_module._global_forward_pre_hooks


def test_methods_of_captum_are_copied_with_what_they_hold_of_the_model() -> None:
    captum_attr = pytest.importorskip("captum.attr")
    model, images = Smooth(), some_images(2)
    before = copy.deepcopy(model.state_dict())
    theirs = parameter_randomisation(captum_attr.Saliency(model), images, 1)
    ours = parameter_randomisation(create_method("saliency", model), images, 1)
    torch.testing.assert_close(theirs.correlations, ours.correlations, rtol=1e-4, atol=1e-4)
    inner = [captum_attr.Saliency(model), captum_attr.IntegratedGradients(model)]
    held = [captum_attr.LayerGradCam(model, model.features[2]), captum_attr.DeepLift(model)]
    for method in (*inner, captum_attr.NoiseTunnel(inner[0]), *held, FORGrad(FORGrad(inner[1]))):
        found = parameter_randomisation(method, images, 1, stages=1)
        assert (found.scores < 0.999).all(), type(method).__name__
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_score_is_the_same_alone_and_in_company() -> None:
    pytest.importorskip("captum")
    images = some_images(3)
    for method in (create_method("saliency", Smooth()), FAMPE(Smooth(), steps=1, samples=2)):
        whole = parameter_randomisation(method, images, [0, 1, 2], image_ids=[4, 5, 9], seed=3)
        for k in range(3):
            one = parameter_randomisation(method, images[k : k + 1], [k], image_ids=[[4, 5, 9][k]], seed=3)
            torch.testing.assert_close(one.correlations[0], whole.correlations[k], rtol=0, atol=1e-3)


def test_models_from_a_file_and_in_inference_mode_are_taken() -> None:
    pytest.importorskip("captum")
    model, images = Smooth(), some_images(2)
    traced = torch.jit.trace(model, images)
    shapes = {"pixels": {0: torch.export.Dim("batch", min=1, max=64)}}
    exported = Exported(torch.export.export(model, (images,), dynamic_shapes=shapes).module())
    with torch.inference_mode():
        plain = parameter_randomisation(create_method("saliency", model), images, 1)
    for other in (traced, exported):
        found = parameter_randomisation(create_method("saliency", other), images, 1)
        assert found.layers == plain.layers == (1, 2, 3)
        torch.testing.assert_close(found.correlations, plain.correlations, rtol=0, atol=1e-3)


def test_threads_randomise_one_model_side_by_side() -> None:
    pytest.importorskip("captum")
    method, images = create_method("saliency", Smooth()), some_images(2)
    alone = parameter_randomisation(method, images, 1).correlations
    found: list[Tensor] = []
    threads = [
        threading.Thread(target=lambda: found.append(parameter_randomisation(method, images, 1).correlations))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for other in found:
        torch.testing.assert_close(other, alone, rtol=0, atol=1e-3)


class Selfish(Smooth):
    def __deepcopy__(self, memo: dict) -> Selfish:
        return self


class Patched(nn.Module):
    """Computes with another module's parameters than its own."""

    def __init__(self) -> None:
        super().__init__()
        model = Smooth()
        self.head = nn.Linear(4, 4)
        self.forward = lambda pixels: model(pixels)
        self.eval()


def never(model: nn.Module, images: Tensor) -> Tensor:
    raise AssertionError("explained")


IMAGES = some_images(2)
HELD = Method(Smooth(), never)
HELD.lock = threading.Lock()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"method": Smooth()}, TypeError, "method must have a method 'attribute', got Smooth"),
        ({"method": Method(lambda x: x.mean((2, 3)), never)}, ValueError,
         "the model of Method, its forward_func, must be an nn.Module, got function"),
        ({"method": FORGrad(Method(None, never))}, ValueError, "the model of FORGrad, .* got NoneType"),
        ({"method": HELD}, TypeError, "Method cannot be copied with its model: cannot pickle '_thread.lock' object"),
        ({"method": Method(Selfish(), never)}, ValueError, "the copy of Method shares its model's parameters: Selfish"),
        ({"method": Method(nn.Flatten().eval(), never)}, ValueError, "Flatten has no parameters to randomise"),
        ({"images": IMAGES * 2}, ValueError, r"images must lie in \[0, 1\]"),
        ({"targets": [0, 1, 2]}, ValueError, "one entry per image"),
        ({"stages": 0}, ValueError, "stages must be at least 1, got 0"),
        ({"stages": 1.5}, TypeError, "stages must be a whole number"),
        ({"values": "both"}, ValueError, "values must be one of absolute, signed; got 'both'"),
        ({"seed": "one"}, TypeError, "seed must be a whole number"),
        ({"image_ids": [1]}, ValueError, "one entry per image"),
        ({"internal_batch_size": 0}, ValueError, "internal_batch_size must be at least 1"),
    ],
)  # fmt: skip
def test_bad_input_is_named_before_work_and_without_images(change: dict, error: type[Exception], message: str) -> None:
    arguments = {"method": Method(Smooth(), never), "images": IMAGES, "targets": [0, 1]} | change
    with pytest.raises(error, match=message):
        parameter_randomisation(**arguments)
    if "method" in change:
        with pytest.raises(error, match=message):
            parameter_randomisation(arguments["method"], IMAGES[:0], [])


def test_a_model_in_training_mode_or_without_use_for_its_parameters_is_named() -> None:
    method = Method(Smooth().train(), lambda m, x: x)
    with pytest.raises(ValueError, match="the model is in training mode"):
        parameter_randomisation(method, IMAGES, 0)
    method = Method(Patched(), lambda m, x: x)
    with pytest.raises(
        ValueError, match="randomising the last 1 of its 1 layers does not change the output of Patched"
    ):
        parameter_randomisation(method, IMAGES, 0)
    method = Method(Smooth(), lambda m, x: x / 0)
    with pytest.raises(ValueError, match="maps must be finite"):
        parameter_randomisation(method, IMAGES, 0)


def test_no_images_give_no_scores() -> None:
    found = parameter_randomisation(Method(Smooth(), never), IMAGES[:0], [])
    assert found.scores.shape == (0,)
    assert found.correlations.shape == (0, 3)


# In runs --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_scores_in_count_of_any_size_and_refuses_methods_before_work(tmp_path: Path) -> None:
    classifier = load_embedded_classifier()
    paths = sorted(draw(tmp_path / "photos", 3).iterdir())
    measurement = Measurement(("parameter_randomisation",), {"parameter_randomisation": {"stages": 2}})
    found = []
    for size in (1, 3):
        method = FAMPE(classifier, steps=1, samples=2)
        result = evaluate_files(
            classifier, {"fampe": method}, paths, tmp_path / str(size), measurement=measurement, batch_size=size
        )
        found.append(result.scores["fampe"].values["parameter_randomisation"])
    assert found[0] == pytest.approx(found[1], abs=1e-2)
    assert all(-1 < score < 0.9 for score in found[0])
    with pytest.raises(ValueError, match="parameter_randomisation: the model of Method, its forward_func, must be"):
        evaluate_files(classifier, {"other": Method(len, never)}, paths, tmp_path / "other", measurement=measurement)


def test_both_commands_measure_it(model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    given = [str(draw(tmp_path / "photos", 2)), "--model", str(model_file), "--steps", "1", "--samples", "1"]
    given += [
        "--input-size",
        "64",
        "--views",
        "0",
        "--metric",
        "parameter_randomisation",
        "--parameter-randomisation-values",
        "signed",
        "--seed",
        "5",
    ]
    study = ["study", "methods", "--variant", "fampe, path"]  # the model file, a program, has no layers
    for command, name in ((["evaluate"], "scores.json"), (study, "study.json")):
        out = tmp_path / command[0]
        assert main([*command, *given, "--parameter-randomisation-stages", "1", "--out", str(out)]) == DONE
        written = json.loads((out / name).read_text())
        assert written["metrics"]["parameter_randomisation"] == {"stages": 1, "values": "signed", "seed": 5}
        for image in written["images"]:
            assert all(-1 <= image["parameter_randomisation"][label] < 1 for label in written["methods"])
        assert "random" in capsys.readouterr().out
