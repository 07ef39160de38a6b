"""Models as they come: hidden training mode, in-place layers, outputs of other libraries, models of one size."""

from __future__ import annotations

import copy
import functools
import json
import warnings
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fampe_fast import (
    FAMPE,
    AttEXplore,
    FampeWarning,
    OccludedFrequency,
    create_method,
    insertion_deletion,
    mu_fidelity,
)
from fampe_fast.engine.placements import padded_size, resize_matrix
from fampe_fast.robustness import BandLimitedAttack
from fampe_fast.runtime.model_probe import probe, takes_size

from ..models_for_tests import Smooth, published, some_images


def calls(model: Any) -> dict[str, Callable[[Tensor], object]]:
    """Everything that asks a model about images."""
    return {
        "fampe": lambda images: FAMPE(model, steps=1, samples=2, views=0).attribute(images, 1),
        "fampe, own choice": lambda images: FAMPE(model, steps=1, samples=2, views=0).attribute(images),
        "saliency": lambda images: create_method("saliency", model).attribute(images, 1),
        "attack": lambda images: BandLimitedAttack(model)(images, 1),
        "occluded frequency": lambda images: OccludedFrequency(model, 2)(images, 1),
        "insertion and deletion": lambda images: insertion_deletion(model, images, images, 1, mean=0.5, steps=2),
        "mu-fidelity": lambda images: mu_fidelity(model, images, images, 1, grid_size=2, samples=4),
    }


ASKING = list(calls(None))

# Training mode, hidden -----------------------------------------------------------------------------------------------


def with_batch_norm() -> nn.Sequential:
    torch.manual_seed(1)  # of some weights no layer has evidence, which is said by a warning
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(*net, nn.Linear(6, 4))


def with_dropout() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 24 * 24, 16), nn.Dropout(0.5), nn.Linear(16, 4))


class Holder:
    """A callable object with a method and a list."""

    def __init__(self, net: nn.Module) -> None:
        self.parts = [net]

    def __call__(self, pixels: Tensor) -> Tensor:
        return self.predict(pixels)

    def predict(self, pixels: Tensor) -> Tensor:
        return self.parts[0](pixels)


class PlainList(nn.Module):
    """A module whose parts are not registered: ``eval()`` does not reach them."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.parts = [net]

    def forward(self, pixels: Tensor) -> Tensor:
        return self.parts[0](pixels)


HIDDEN: dict[str, Callable[[nn.Module], Any]] = {
    "lambda": lambda net: lambda pixels: net(pixels),
    "bound method": lambda net: Holder(net).predict,
    "forward": lambda net: net.forward,
    "callable": Holder,
    "partial": lambda net: functools.partial(torch.nn.Module.__call__, net),
    "plain list": lambda net: PlainList(net).eval(),
}


@pytest.mark.parametrize("make", [with_batch_norm, with_dropout])
@pytest.mark.parametrize("hide", HIDDEN)
def test_training_mode_is_found_wherever_it_hides_and_nothing_has_moved(
    hide: str, make: Callable[[], nn.Module]
) -> None:
    net, images = make(), some_images(2)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    for name, call in calls(HIDDEN[hide](net)).items():
        with pytest.raises(ValueError, match="training mode, where dropout and batch statistics"):
            call(images)
        after = net.state_dict()
        assert all(torch.equal(value, after[key]) for key, value in before.items()), name
    net.eval()
    for call in calls(HIDDEN[hide](net)).values():
        call(images)
    depths = FAMPE(HIDDEN[hide](net), passes=1)
    if make is with_batch_norm:
        torch.testing.assert_close(depths.attribute(images, 1), FAMPE(net, passes=1).attribute(images, 1))
    else:
        with pytest.raises(ValueError, match=r"found no activation .* the path alone, views=0"):
            depths.attribute(images, 1)


def test_a_hidden_part_that_turns_to_training_later_is_found_too() -> None:
    net, images = with_batch_norm().eval(), some_images(2)
    model = PlainList(net).eval()
    FAMPE(model, steps=1, samples=1).attribute(images, 1)
    net.train()
    with pytest.raises(ValueError, match="BatchNorm2d in training mode"):
        FAMPE(model, steps=1, samples=1).attribute(images, 1)


@pytest.mark.parametrize(
    "layer",
    [
        lambda features: F.dropout(features, 0.5),
        lambda features: F.batch_norm(features, None, None, training=True),
        lambda features: features + torch.randn_like(features),
        lambda features: features - features.mean(0, keepdim=True),
    ],
    ids=["dropout", "batch norm", "noise", "mean of the batch"],
)
@pytest.mark.parametrize("asking", ASKING)
def test_outputs_that_change_between_equal_passes_are_refused(layer: Callable[[Tensor], Tensor], asking: str) -> None:
    """Functions have no mode to look at: the image is shown again, beside another."""

    class Net(Smooth):
        def forward(self, pixels: Tensor) -> Tensor:
            return self.head(layer(self.features(pixels)).mean((2, 3)))

    with pytest.raises(ValueError, match="changed by .* (in an equal pass|beside another image), so maps would"):
        calls(Net())[asking](some_images(2))


def test_modules_whose_mode_changes_nothing_may_be_in_training_mode() -> None:
    """A transform from a library is a module in training mode, and nobody calls eval() on it."""
    normalise, net = nn.Sequential(nn.Identity(), nn.Dropout(0.0), nn.InstanceNorm2d(3)), Smooth()
    assert normalise.training
    for call in calls(lambda pixels: net(normalise(pixels))).values():
        call(some_images(2))


def test_models_quantised_as_they_run_serve_where_scores_are_asked() -> None:
    """They find the range of their numbers in each batch, which moves an output by half a percent."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 4)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own advice to use another library
        model = torch.ao.quantization.quantize_dynamic(net, {nn.Linear}).eval()
    for name, call in calls(model).items():
        if name in ("occluded frequency", "insertion and deletion", "mu-fidelity"):
            call(some_images(2))
        else:
            with pytest.raises(ValueError, match="the model's output has no gradient with respect to the image"):
                call(some_images(2))


class Keeps(Smooth):
    """Counts its passes in a buffer and keeps a tensor for every batch size, as position tables are kept."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("passes", torch.zeros(()))
        self.kept: dict[int, Tensor] = {}

    def forward(self, pixels: Tensor) -> Tensor:
        self.passes = self.passes + 1
        ones = self.kept.setdefault(len(pixels), torch.ones(len(pixels), 1))
        return super().forward(pixels) * ones


def test_what_a_model_keeps_of_a_score_serves_its_training() -> None:
    model, images = Keeps(), some_images(5)
    for call in calls(model).values():
        call(images)
    assert not model.passes.is_inference()
    for count in model.kept:
        loss = model(some_images(count)).sum()
        torch.autograd.grad(loss, model.head.weight)


# In place ------------------------------------------------------------------------------------------------------------


class Normalises(Smooth):
    """Writes to the images it is given."""

    def forward(self, pixels: Tensor) -> Tensor:
        return super().forward(pixels.sub_(0.5).div_(0.25))


class FirstReLU(Smooth):
    """Its first layer works in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.ReLU(inplace=True).eval()

    def forward(self, pixels: Tensor) -> Tensor:
        return super().forward(self.first(pixels))


class Copies(Normalises):
    """The same function, on a copy."""

    def forward(self, pixels: Tensor) -> Tensor:
        return super().forward(pixels.clone())


@pytest.mark.parametrize(
    "wrap", [lambda model: model, lambda model: lambda pixels: model(pixels)], ids=["module", "lambda"]
)
@pytest.mark.parametrize("asking", ASKING)
def test_a_model_that_writes_to_its_input_writes_to_nobody_elses(asking: str, wrap: Callable[[nn.Module], Any]) -> None:
    images = some_images(2)
    kept = images.clone()
    found = [calls(wrap(model))[asking](images) for model in (Normalises(), Copies())]
    assert torch.equal(images, kept)
    tensors = [each if isinstance(each, Tensor) else first_tensor(each) for each in found]
    torch.testing.assert_close(*tensors)
    calls(wrap(FirstReLU()))[asking](images)
    assert torch.equal(images, kept)


def first_tensor(found: Any) -> Tensor:
    return next(value for value in vars(found).values() if isinstance(value, Tensor))


# Outputs of other libraries ------------------------------------------------------------------------------------------


class ModelOutput(dict):  # type: ignore[type-arg]
    """As Hugging Face's: a mapping whose keys are attributes too."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


@dataclass
class Answer:
    logits: Tensor
    loss: None = None


Outputs = namedtuple("Outputs", ["logits", "aux_logits"])

TAKEN: dict[str, Callable[[Tensor], Any]] = {
    "model output": lambda logits: ModelOutput(loss=None, logits=logits, hidden_states=(logits,)),
    "dict": lambda logits: {"logits": logits, "features": logits},
    "dataclass": Answer,
    "named tuple": lambda logits: Outputs(logits, logits * 0),
    "tuple of one": lambda logits: (logits,),
    "tuple with no loss": lambda logits: (None, logits),
}


class Wrapped(nn.Module):
    def __init__(self, wrap: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.net, self.wrap = Smooth(), wrap
        self.eval()

    def forward(self, pixels: Tensor) -> Any:
        return self.wrap(self.net(pixels))


@pytest.mark.parametrize("kind", TAKEN)
@pytest.mark.parametrize("asking", ASKING)
def test_outputs_that_hold_logits_are_taken(asking: str, kind: str) -> None:
    images = some_images(2)
    found, plain = (calls(model)[asking](images) for model in (Wrapped(TAKEN[kind]), Smooth()))
    tensors = [each if isinstance(each, Tensor) else first_tensor(each) for each in (found, plain)]
    torch.testing.assert_close(*tensors)


@pytest.mark.slow
def test_a_compiled_loop_takes_them_too() -> None:
    images = some_images(2)
    maps = FAMPE(Wrapped(TAKEN["model output"]), steps=1, samples=2, compile="on").attribute(images, 1)
    plain = FAMPE(Smooth(), steps=1, samples=2).attribute(images, 1)
    assert float(torch.corrcoef(torch.stack([maps.flatten(), plain.flatten()]))[0, 1]) > 0.999


@pytest.mark.parametrize(
    ("wrap", "got"),
    [
        (lambda logits: {"scores": logits, "x": 1}, "got dict with the keys 'scores', 'x'"),
        (lambda logits: (logits, logits), r"got tuple of Tensor \(\d, 5\), Tensor \(\d, 5\)"),
        (lambda logits: [], "got list of nothing"),
        (lambda logits: None, "got NoneType"),
        (lambda logits: logits.detach().numpy(), "got ndarray"),
        (lambda logits: {"logits": "a"}, "got dict with the keys 'logits'"),
    ],
)
@pytest.mark.parametrize("asking", ASKING)
def test_everything_else_says_what_was_got(asking: str, wrap: Callable[[Tensor], Any], got: str) -> None:
    with pytest.raises(TypeError, match=f"must return a tensor of logits .*{got}"):
        calls(Wrapped(wrap))[asking](some_images(2))


# Without gradients, without batches ----------------------------------------------------------------------------------


def detaching(pixels: Tensor) -> Tensor:
    return NET(pixels.detach())


@torch.no_grad()
def under_no_grad(pixels: Tensor) -> Tensor:
    return NET(pixels)


@torch.inference_mode()
def under_inference_mode(pixels: Tensor) -> Tensor:
    return NET(pixels)


def through_numpy(pixels: Tensor) -> Tensor:
    return torch.from_numpy(np.asarray(pixels.numpy(), dtype=np.float32).mean((2, 3))) @ torch.ones(3, 4)


NET = Smooth()


@pytest.mark.parametrize("model", [detaching, under_no_grad, under_inference_mode, through_numpy])
def test_models_without_gradients_get_a_sentence_and_serve_where_scores_are_asked(
    model: Callable[[Tensor], Tensor],
) -> None:
    images = some_images(2)
    for name, call in calls(model).items():
        if name in ("occluded frequency", "insertion and deletion", "mu-fidelity"):
            call(images)
        else:
            with pytest.raises(ValueError, match="the model's output has no gradient with respect to the image"):
                call(images)


class OneRow(Smooth):
    """Gives one row whatever it is shown."""

    def forward(self, pixels: Tensor) -> Tensor:
        return super().forward(pixels)[:1]


class OneAtATime(Smooth):
    """Made for one image."""

    def forward(self, pixels: Tensor) -> Tensor:
        if len(pixels) != 1:
            raise ValueError("expected a batch of 1")
        return super().forward(pixels)


@pytest.mark.parametrize("model", [OneRow, OneAtATime])
@pytest.mark.parametrize("asking", [name for name in ASKING if name != "mu-fidelity"])
def test_models_of_one_image_are_asked_one_by_one_and_say_so(asking: str, model: type) -> None:
    images = some_images(2)
    with pytest.warns(UserWarning, match="takes one image at a time .*every pass has one image"):
        found = calls(model())[asking](images)
    tensors = [
        each if isinstance(each, Tensor) else first_tensor(each) for each in (found, calls(Smooth())[asking](images))
    ]
    torch.testing.assert_close(*tensors)
    with pytest.raises(ValueError, match="takes one image at a time .*internal_batch_size is 2: set it to 1"):
        FAMPE(model(), steps=1, samples=2).attribute(images, 1, internal_batch_size=2)


def test_parameters_made_in_inference_mode_get_a_sentence() -> None:
    with torch.inference_mode():
        model = Smooth()
    with pytest.raises(ValueError, match=r"was made under torch.inference_mode.*copy.deepcopy\(model\)"):
        FAMPE(model, steps=1, samples=1).attribute(some_images(1), 1)
    assert OccludedFrequency(model, 2)(some_images(1), 1).drops.isfinite().all()
    plain = FAMPE(Smooth(), steps=1, samples=1).attribute(some_images(1), 1)
    assert torch.equal(FAMPE(copy.deepcopy(model), steps=1, samples=1).attribute(some_images(1), 1), plain)


def test_frozen_programs_are_explained() -> None:
    images, model = some_images(2), Smooth()
    frozen = torch.jit.freeze(torch.jit.script(model))
    assert not hasattr(frozen, "training")
    with pytest.raises(ValueError, match=r"found no activation .* the path alone, views=0"):
        FAMPE(frozen).attribute(images, 1)
    for name, call in calls(frozen).items():
        found, plain = call(images), calls(model)[name](images)
        tensors = [each if isinstance(each, Tensor) else first_tensor(each) for each in (found, plain)]
        torch.testing.assert_close(*tensors, rtol=1e-3, atol=1e-5)


def test_exported_programs_are_explained_as_they_come() -> None:
    """They say that they train, and their eval() raises."""
    images, model = some_images(2), Smooth()
    program = torch.export.export(model, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
    assert program.training
    with pytest.raises(ValueError, match=r"found no activation .* the path alone, views=0"):
        FAMPE(program).attribute(images, 1)
    for name, call in calls(program).items():
        found, plain = call(images), calls(model)[name](images)
        tensors = [each if isinstance(each, Tensor) else first_tensor(each) for each in (found, plain)]
        torch.testing.assert_close(*tensors, rtol=1e-3, atol=1e-5)
    trained = nn.Sequential(program, nn.Dropout(0.5)).requires_grad_(False)
    with pytest.raises(ValueError, match=r"training mode \(2 modules"):  # the parts around one still count
        FAMPE(trained, steps=1, samples=1).attribute(images, 1)


# One image size ------------------------------------------------------------------------------------------------------


class Resizes(nn.Module):
    """Resizes every image to a square, as many a deployed model does."""

    def __init__(self, inner: nn.Module, side: int) -> None:
        super().__init__()
        self.inner, self.side = inner, side
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        return self.inner(F.interpolate(pixels, size=(self.side, self.side), mode="bilinear", antialias=True))


@pytest.mark.parametrize("method", ["fampe", "gradcam", "attention_rollout", "attention_gradient"])
@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
@pytest.mark.parametrize("shape", [(150, 200), (240, 160)])
def test_a_model_that_changes_the_proportions_has_its_own_map_stretched(
    name: str, shape: tuple[int, int], method: str
) -> None:
    """With tokens a grid of the image's proportions was read, of other places."""
    timm = pytest.importorskip("timm")
    if method == "gradcam":
        pytest.importorskip("pytorch_grad_cam")
    if name == "test_resnet" and method.startswith("attention"):
        return
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = timm.create_model(name, num_classes=5).eval()
    side = net.pretrained_cfg["input_size"][-1]
    model, images = Resizes(net, side), some_images(2, height=shape[0], width=shape[1])
    inside = F.interpolate(images, size=(side, side), mode="bilinear", antialias=True)
    expected = create_method(method, net).attribute(inside).mean(1, keepdim=True)
    expected = F.interpolate(expected, size=shape, mode="bilinear")
    with pytest.warns(
        FampeWarning, match=rf"an image of {shape[0]} x {shape[1]}, to {side} x {side}: maps are stretched"
    ):
        found = create_method(method, model).attribute(images).mean(1, keepdim=True)
    for one, other in zip(found, expected, strict=True):
        assert float(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1]) > 0.98
    create_method(method, model).attribute(images)  # it is said once


class InPieces(Smooth):
    """Passes its images on in pieces of two."""

    def forward(self, pixels: Tensor) -> Tensor:
        return torch.cat([super(InPieces, self).forward(part) for part in pixels.split(2)])


@pytest.mark.parametrize("method", ["fampe", "gradcam"])
def test_a_model_that_works_in_pieces_says_what_to_set(method: str) -> None:
    if method == "gradcam":
        pytest.importorskip("pytorch_grad_cam")
    images, made = some_images(3), create_method(method, InPieces())
    with pytest.raises(ValueError, match=r"was shown [12] of 3 images: .* in pieces; set internal_batch_size=1"):
        made.attribute(images, 0)
    found = made.attribute(images, 0, internal_batch_size=1)
    assert torch.allclose(found, create_method(method, Smooth()).attribute(images, 0, internal_batch_size=1), atol=1e-5)


@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "test_resnet"])
@pytest.mark.parametrize("method", ["fampe", "gradcam", "attention_gradient", "fampe_published"])
def test_models_that_compute_activations_again_have_the_same_maps(name: str, method: str) -> None:
    timm = pytest.importorskip("timm")
    if method == "gradcam":
        pytest.importorskip("pytorch_grad_cam")
    if method == "attention_gradient" and name != "test_vit":
        return
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = timm.create_model(name, num_classes=5).eval()
    side = net.pretrained_cfg["input_size"][-1]
    images = some_images(2, height=side, width=side)
    options = {"steps": 1, "samples": 2} if method == "fampe_published" else {}
    plain = create_method(method, net, **options).attribute(images)
    net = copy.deepcopy(net)
    net.set_grad_checkpointing(True)
    if method == "attention_gradient":
        with pytest.raises(ValueError, match=r"switch its gradient checkpointing off"):
            create_method(method, net).attribute(images)
        return
    for _ in range(2):
        found = create_method(method, net, **options).attribute(images)
        torch.testing.assert_close(found, plain, rtol=1e-3, atol=1e-3 * float(plain.abs().max()))


class OneSize(Smooth):
    """As transformers do, it refuses every size but its own."""

    def forward(self, pixels: Tensor) -> Tensor:
        assert pixels.shape[-2:] == (24, 20), f"Input size {tuple(pixels.shape[-2:])} doesn't match model (24, 20)."
        return super().forward(pixels)


@pytest.mark.slow
@pytest.mark.parametrize("method", [AttEXplore, published])
@pytest.mark.parametrize("compile", ["off", "on"])
def test_models_of_one_size_see_input_diversity_in_their_own_size(method: Any, compile: str) -> None:
    """Against the same network whose frames are resized by torch's own bilinear filter, and its gradient."""

    class Resizing(Smooth):
        def forward(self, pixels: Tensor) -> Tensor:
            if pixels.shape[-2:] != (24, 20):
                pixels = F.interpolate(pixels, size=(24, 20), mode="bilinear", align_corners=False)
            return super().forward(pixels)

    images, options = some_images(2, height=24, width=20), {"steps": 2, "samples": 6, "input_diversity": True}
    maps = method(OneSize(), compile=compile, **options).attribute(images, [1, 2], internal_batch_size=4)
    expected = method(Resizing(), **options).attribute(images, [1, 2], internal_batch_size=4)
    assert float(torch.corrcoef(torch.stack([maps.flatten(), expected.flatten()]))[0, 1]) > 0.9999
    if compile == "off":
        torch.testing.assert_close(maps, expected, rtol=1e-2, atol=1e-3 * float(expected.abs().max()))


@pytest.mark.parametrize(("size", "new_size"), [(27, 24), (23, 20), (257, 224), (12, 12), (9, 8)])
def test_the_matrix_is_torchs_bilinear_resize(size: int, new_size: int) -> None:
    matrix = resize_matrix(size, new_size, torch.device("cpu"))
    line = torch.rand(1, 1, size, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = F.interpolate(line, size=(new_size, 3), mode="bilinear", align_corners=False)
    torch.testing.assert_close(matrix.double() @ line[0, 0], expected[0, 0], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(matrix.sum(1), torch.ones(new_size))


def test_a_models_size_is_asked_once_and_memory_is_no_size() -> None:
    images, model = some_images(1, height=24, width=20), OneSize()
    assert not takes_size(model, images, probe(model, images), 27, 23)
    assert takes_size(Smooth(), images, probe(Smooth(), images), 27, 23)

    class Full(Smooth):
        def forward(self, pixels: Tensor) -> Tensor:
            if pixels.shape[-1] > 20:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return super().forward(pixels)

    with pytest.raises(torch.OutOfMemoryError, match="give a smaller internal_batch_size"):
        AttEXplore(Full(), steps=1, samples=2).attribute(images, 0)


TRANSFORMERS = {
    "vit_tiny_patch16_224": 224,
    "deit_tiny_patch16_224": 224,
    "swin_tiny_patch4_window7_224": 224,
    "maxvit_rmlp_pico_rw_256": 256,
    "torchvision/maxvit_t": 224,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers_of_one_size_are_explained_by_every_path_method(name: str) -> None:
    """With random weights: that they run, and that diversified samples have a part in the map."""
    timm = pytest.importorskip("timm")
    size = TRANSFORMERS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if name.startswith("torchvision/"):
            from torchvision.models import get_model

            net = get_model(name.removeprefix("torchvision/"), weights=None).eval()
        else:
            net = timm.create_model(name, pretrained=False).eval()
    images = some_images(1, height=size, width=size)
    assert not takes_size(net, images, probe(net, images), padded_size(size), padded_size(size))
    for method in (AttEXplore, published):
        maps = method(net, steps=1, samples=2).attribute(images, 0)
        assert maps.shape == images.shape
        assert maps.isfinite().all()
        assert maps.abs().sum() > 0


@pytest.mark.slow
@pytest.mark.shared
def test_the_transformer_of_the_photographs_is_explained(shared_dir: Any) -> None:
    from fampe_fast import load_classifier
    from fampe_fast.images import read_image

    file = shared_dir / "models" / "vit_tiny_patch16_224.imagenet.safetensors"
    model = load_classifier("vit_tiny_patch16_224", weights=file, mean=0.5, std=0.5)
    name = min(json.loads((shared_dir / "images" / "labels.json").read_text()))
    image = model.transform(read_image(shared_dir / "images" / name))[None]
    for method in (AttEXplore, published):
        maps = method(model, steps=2, samples=4).attribute(image)
        assert maps.isfinite().all()
        assert maps.abs().sum() > 0
