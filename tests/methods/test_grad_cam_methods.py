"""pytorch-grad-cam's methods behind our call: its own maps, and nothing left on the user's model."""

from __future__ import annotations

import copy
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fampe_fast import create_method
from fampe_fast.errors import FampeWarning
from fampe_fast.methods.grad_cam_methods import GradCAMMethod
from fampe_fast.models.classifier import Classifier
from fampe_fast.runtime.activations import find_activations

from ..models_for_tests import some_images

package = pytest.importorskip("pytorch_grad_cam")
KINDS = {
    "gradcam": "GradCAM", "gradcam_plus_plus": "GradCAMPlusPlus", "hirescam": "HiResCAM", "layercam": "LayerCAM",
}  # fmt: skip
ALL = (*KINDS, "fullgrad")


class Net(nn.Module):
    """Convolutions, batch norms with statistics, a shortcut, ReLUs in place, pooling and a head."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
            self.body = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8))
            self.act = nn.ReLU(inplace=True)
            self.last = nn.Conv2d(8, 12, 3, 2, 1)
            self.head = nn.Linear(12, classes)
            for norm in (self.stem[1], self.body[1]):
                nn.init.normal_(norm.running_mean, std=0.2)
                nn.init.uniform_(norm.running_var, 0.5, 2)
                nn.init.normal_(norm.bias, std=0.3)
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        early = self.stem(pixels)
        return self.head(self.last(self.act(self.body(early) + early)).relu_().mean((2, 3)))


def by_hand(name: str, model: nn.Module, images: Tensor, targets: list[int], layer: str, **options: Any) -> Tensor:
    """What a user of the package writes, on a copy of the model."""
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    model = copy.deepcopy(model)
    if name == "fullgrad":
        cam = package.FullGrad(model, [])
    else:
        # Without a copy the package sees what an operation in place makes of the layer's output.
        options = {"reshape_transform": torch.clone, **options}
        cam = getattr(package, KINDS[name])(model, [model.get_submodule(layer)], **options)
    return torch.from_numpy(cam(images, [ClassifierOutputTarget(target) for target in targets]))


@pytest.mark.parametrize("name", ALL)
def test_a_map_is_the_package_s_on_the_same_layer(name: str) -> None:
    model, images = Net(), some_images(3, height=40, width=56)
    maps = create_method(name, model).attribute(images, [0, 2, 3])
    assert maps.shape == images.shape
    assert torch.equal(maps[:, 0], maps[:, 2])
    last = find_activations(model, images)[-1].name
    assert last == "last"
    torch.testing.assert_close(maps[:, 0], by_hand(name, model, images, [0, 2, 3], last), rtol=0, atol=2e-6)
    assert 0 <= maps.min() < maps.max() <= 1
    if name != "fullgrad":
        for layer in ("stem", "stem.1", "act"):
            early = create_method(name, model, layer=layer).attribute(images, [0, 2, 3])
            torch.testing.assert_close(early[:, 0], by_hand(name, model, images, [0, 2, 3], layer), rtol=0, atol=2e-6)
            assert not torch.allclose(early, maps, atol=0.05)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(
    "kind", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "convnext_atto"], ids=["vit", "swin", "convnext"]
)
def test_tokens_and_channels_last_have_places_too(name: str, kind: str) -> None:
    """The last block of a vision transformer gets no gradient at its patches; the one before it is explained."""
    timm = pytest.importorskip("timm")
    sizes = {"vit": {"depth": 3}, "swin": {"depths": (1, 1, 2, 1)}, "convnext": {"depths": (1, 1, 2, 1)}}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model(kind, num_classes=5, **sizes[kind[: kind.index("_")]]).eval()
        for parameter in model.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.1)
    images = some_images(1, height=224, width=224)
    explained = find_activations(model, images)[-1]
    size, layout = {"vit": ((14, 14), "tokens"), "swin": ((7, 7), "nhwc"), "convnext": ((7, 7), "nchw")}[
        kind[: kind.index("_")]
    ]
    assert (explained.size, explained.layout) == (size, layout)

    def places(output: Tensor) -> Tensor:
        if layout == "tokens":
            return output[:, 1:].reshape(len(output), *size, -1).permute(0, 3, 1, 2)
        return output.permute(0, 3, 1, 2) if layout == "nhwc" else output

    maps = create_method(name, model).attribute(images, 1)
    expected = by_hand(name, model, images, [1], explained.name, reshape_transform=places)
    torch.testing.assert_close(maps[:, 1], expected, rtol=0, atol=1e-6)


class Pooled(nn.Module):
    """Logits linear in the mean of the activations: Grad-CAM and HiResCAM are one, ``relu(sum_k w_k a_k)``."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.features = nn.Sequential(nn.Conv2d(3, 6, 8, 8), nn.ReLU())
            self.head = nn.Linear(6, 3)
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.features(pixels).mean((2, 3)))


def test_grad_cam_and_hirescam_are_the_weighted_sum_where_the_head_is_linear() -> None:
    model, images = Pooled(), some_images(2, height=64, width=64)
    with torch.no_grad():
        evidence = torch.einsum("bkhw,k->bhw", model.features(images), model.head.weight[1]).relu()
    assert (evidence.flatten(1).amax(1) > 0).all()
    for name in ("gradcam", "hirescam"):
        maps = create_method(name, model).attribute(images, 1)
        lowest, highest = evidence.flatten(1).aminmax(dim=1)
        scaled = (evidence - lowest[:, None, None]) / (highest - lowest)[:, None, None]
        expected = nn.functional.interpolate(scaled[:, None], size=(64, 64), mode="bilinear", align_corners=False)
        lowest, highest = expected.flatten(1).aminmax(dim=1)
        expected = (expected - lowest[:, None, None, None]) / (highest - lowest)[:, None, None, None]
        torch.testing.assert_close(maps[:, :1], expected, rtol=0, atol=1e-5)


class Sleeping(Net):
    """The same net with a convolution that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.spare = nn.Conv2d(3, 5, 1).eval()


class Reordered(Net):
    """The same net with its layers registered in another order than they run in."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("stem", "body"):
            self._modules[name] = self._modules.pop(name)  # last comes first, then


def test_full_grad_s_biases_meet_the_gradients_of_their_own_layers() -> None:
    """The package alone pairs them by the order of the modules, which need not be that of the pass."""
    images, sleeping = some_images(2, height=32, width=32), Sleeping()
    maps = create_method("fullgrad", Net()).attribute(images, 2)
    torch.testing.assert_close(create_method("fullgrad", Reordered()).attribute(images, 2), maps)
    with torch.device("meta"):  # which is no business of the zero that stands for what was not reached
        quiet = create_method("fullgrad", sleeping).attribute(images, 2)
    torch.testing.assert_close(quiet, maps)


@pytest.mark.parametrize("name", ALL)
def test_a_map_depends_neither_on_company_nor_on_chunks(name: str) -> None:
    model, images = Net(), some_images(5, height=32, width=32)
    maps = create_method(name, model).attribute(images, [0, 1, 2, 3, 0], internal_batch_size=2)
    for index in range(5):
        alone = create_method(name, model).attribute(images[index : index + 1], index % 4)
        torch.testing.assert_close(alone[0], maps[index], rtol=0, atol=2e-6)


def state_of(model: nn.Module) -> dict[str, Any]:
    return {
        "grads": {name: parameter.grad for name, parameter in model.named_parameters()},
        "trainable": {name: parameter.requires_grad for name, parameter in model.named_parameters()},
        "training": {name: module.training for name, module in model.named_modules()},
        "hooks": {
            name: [len(getattr(module, kind)) for kind in vars(module) if kind.endswith("hooks")]
            for name, module in model.named_modules()
        },
        "names": [list(vars(module)) for module in model.modules()],
    }


@pytest.mark.parametrize("name", ALL)
def test_the_model_is_left_as_it_was_found(name: str) -> None:
    """With gradients of a training step on it, and one parameter frozen by the user."""
    model, images = Net(), some_images(2)
    model(images).sum().backward()
    model.stem[0].weight.requires_grad_(False)
    before = state_of(model)
    values = {key: value.clone() for key, value in before["grads"].items()}
    create_method(name, model).attribute(images, 1)
    after = state_of(model)
    assert all(after["grads"][key] is before["grads"][key] for key in values)
    assert all(torch.equal(after["grads"][key], values[key]) for key in values)
    assert {key: after[key] for key in after if key != "grads"} == {
        key: before[key] for key in before if key != "grads"
    }


@pytest.mark.parametrize("name", ALL)
def test_a_layer_that_fails_leaves_no_hook(name: str) -> None:
    model, images = Net(), some_images(1)
    method = create_method(name, model)
    method.attribute(images, 1)
    before, broken = state_of(model), nn.Module.register_forward_hook

    def fails(module: nn.Module, arguments: object, output: object) -> None:
        raise RuntimeError("broken")

    handle = broken(model.head, fails)
    with pytest.raises(RuntimeError, match="broken"):
        method.attribute(images, 1)
    handle.remove()
    assert state_of(model)["hooks"] == before["hooks"]


class Names(nn.Module):
    """A net with layers that cannot be explained by name: one that runs twice, one without places, one that sleeps."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()
        self.twice = nn.Conv2d(3, 3, 3, padding=1)
        self.asleep = nn.Conv2d(3, 3, 1)
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        return self.net(self.twice(self.twice(pixels)))


@pytest.mark.parametrize(
    ("layer", "error", "message"),
    [
        ("net.lst", ValueError, "the model has no layer 'net.lst'; near it are 'net.last', "),
        ("twice", ValueError, "the layer 'twice' runs 2 times in a pass: choose twice#0 to twice#1"),
        ("twice#2", ValueError, "the layer 'twice' has no call '2' in a pass"),
        ("asleep", ValueError, "the layer 'asleep' does not run in a pass"),
        ("net.head", ValueError, r"the layer 'net.head' gives \(1, 4\) for an image, without spatial positions"),
        (7, TypeError, "layer must be the name of a module or None, got 7"),
    ],
)
def test_a_layer_that_cannot_be_explained_is_named(layer: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        create_method("gradcam", Names(), layer=layer).attribute(some_images(2), 0)


def test_the_call_of_a_layer_that_runs_twice_can_be_named() -> None:
    model, images = Names(), some_images(2)
    maps = [create_method("hirescam", model, layer=f"twice#{call}").attribute(images, 1) for call in (0, 1)]
    for call in (0, 1):
        pixels = images.clone().requires_grad_()
        outputs = [model.twice(pixels)]
        outputs.append(model.twice(outputs[0]))
        (gradient,) = torch.autograd.grad(model.net(outputs[1])[:, 1].sum(), [outputs[call]])
        evidence = (gradient * outputs[call]).sum(1).relu().detach()
        torch.testing.assert_close(maps[call][:, 0], evidence / evidence.amax((1, 2), keepdim=True), rtol=0, atol=1e-5)


def test_models_that_cannot_be_explained_are_named() -> None:
    images = some_images(1)
    with pytest.raises(TypeError, match="gradcam reads the model's layers: it needs an nn.Module, got function"):
        create_method("gradcam", lambda pixels: pixels.mean((2, 3)))
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 24 * 24, 4)).eval()
    with pytest.raises(ValueError, match="hirescam found no activation of Sequential with spatial positions that"):
        create_method("hirescam", flat).attribute(images, 0)
    with pytest.raises(ValueError, match="fullgrad counts the biases of Conv2d .* and Sequential has none"):
        create_method("fullgrad", flat).attribute(images, 0)
    with pytest.raises(TypeError, match="fullgrad explains all layers with a bias, and takes no layer"):
        GradCAMMethod(Net(), "fullgrad", layer="last")
    with pytest.raises(ValueError, match="unknown method 'scorecam' of pytorch-grad-cam; known are gradcam"):
        GradCAMMethod(Net(), "scorecam")  # type: ignore[arg-type]


def test_images_that_no_gradient_reaches_are_named() -> None:
    """Behind a dead ReLU; and the last block's patches behind the head of a class token."""

    class Dark(Pooled):
        def forward(self, pixels: Tensor) -> Tensor:
            return self.head(self.features(pixels).mean((2, 3)) * (pixels.mean((1, 2, 3)) > 0.1)[:, None])

    images = torch.stack([some_images(1)[0], torch.zeros(3, 24, 24)])
    with pytest.warns(FampeWarning, match=r"map of image\(s\) \[7\] is 0 everywhere: no gradient .* 'features'"):
        maps = create_method("gradcam", Dark()).attribute(images, 1, image_ids=[3, 7])
    assert torch.equal(maps[1], torch.zeros(3, 24, 24))


def test_half_of_the_memory_is_tried_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    class Large(Net):
        def forward(self, pixels: Tensor) -> Tensor:
            sizes.append(len(pixels))
            if len(pixels) > 3:
                raise torch.OutOfMemoryError("too many")
            return super().forward(pixels)

    model, images = Large(), some_images(5)
    with pytest.warns(FampeWarning, match="out of memory with 5 images per model pass: continuing with 2"):
        maps = create_method("gradcam", model).attribute(images, 1)
    assert sizes[-3:] == [2, 2, 1]
    torch.testing.assert_close(maps, create_method("gradcam", Net()).attribute(images, 1), rtol=0, atol=2e-6)


def test_a_compiled_model_is_explained_as_it_is() -> None:
    model, images = Net(), some_images(2)
    compiled = torch.compile(Net(), backend="eager")
    expected = create_method("layercam", model).attribute(images, 1)
    torch.testing.assert_close(create_method("layercam", compiled).attribute(images, 1), expected)


def test_a_classifier_s_layers_are_found_inside_it() -> None:
    images = some_images(2)
    classifier = Classifier(Net(), mean=(0.5,), std=(0.5,))
    with_name = create_method("gradcam", classifier, layer="model.last").attribute(images, 1)
    torch.testing.assert_close(create_method("gradcam", classifier).attribute(images, 1), with_name)


def test_a_missing_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_grad_cam", None)
    with pytest.raises(ImportError, match="come from pytorch-grad-cam, .*: pip install grad-cam$"):
        create_method("gradcam", Net())


def test_maps_are_ordinary_arrays() -> None:
    maps = create_method("gradcam", Net()).attribute(some_images(1), 1)
    assert maps.dtype == torch.float32
    assert maps.is_contiguous()
    assert np.isfinite(maps.numpy()).all()
