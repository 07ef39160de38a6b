from __future__ import annotations

import copy
import random
import sys
import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fampe_fast import load_classifier
from fampe_fast.models import fold_batch_norm

pytestmark = pytest.mark.usefixtures("few_objects")
X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def used(model: nn.Module) -> nn.Module:
    """In float64 and evaluation mode, with statistics and factors that are not one and zero."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            size = module.num_features
            if module.running_mean is not None:
                module.running_mean = torch.randn(size, generator=generator)
                module.running_var = torch.rand(size, generator=generator) + 0.5
            if module.affine:
                module.weight.data = torch.randn(size, generator=generator)
                module.bias.data = torch.randn(size, generator=generator)
    return model.double().eval()


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def head(*body: nn.Module, channels: int = 4) -> nn.Sequential:
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * channels, 5))


def test_activations_that_autograd_would_copy_the_input_of_write_to_new_memory() -> None:
    kinds = [nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish]
    parts = [(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), kind(inplace=True)) for kind in kinds]
    model = used(head(*(module for part in parts for module in part), channels=3))
    folded = fold_batch_norm(model, X[:1])
    in_place = [[m.inplace for m in whole.modules() if type(m) in kinds] for whole in (model, folded)]
    assert in_place == [[True] * 4, [True, False, False, False]]
    torch.testing.assert_close(folded(X), model(X))


def test_the_copy_is_the_same_function_with_the_same_gradient() -> None:
    torch.manual_seed(0)
    model = used(
        head(
            nn.Conv2d(3, 6, 3, padding=1, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU6(inplace=True),
            nn.Conv2d(6, 6, 3, stride=2, padding=1, groups=6),
            nn.BatchNorm2d(6, affine=False),
            nn.SiLU(),
            nn.Conv2d(6, 4, 1, dilation=1),
            nn.BatchNorm2d(4),
        )
    )
    before = copy.deepcopy(model.state_dict())
    folded = fold_batch_norm(model, X[:1])
    assert norms(model) == 3
    assert norms(folded) == 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    results = []
    for each in (model, folded):
        leaf = X.clone().requires_grad_()
        logits = each(leaf)
        results.append((logits, torch.autograd.grad(logits.square().sum(), leaf)[0]))
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


class Residual(nn.Module):
    """The first convolution's output is used past its normalisation, too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.again, self.after = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x + self.after(self.again(self.norm(x)))


class Twice(nn.Module):
    """One convolution, called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.other = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) + self.other(self.conv(2 * x))


class InPlace(nn.Module):
    """Something works on the output in place before it is normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(F.relu_(self.conv(x)))


class Standardised(nn.Conv2d):
    """Takes no notice of the scale of its weight."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight / self.weight.flatten(1).norm(dim=1)[:, None, None, None]
        return F.conv2d(x, weight, self.bias, padding=1)


def with_a_hook() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    model[1].register_forward_hook(lambda module, inputs, output: None)
    return model


def parametrized() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4))


@pytest.mark.parametrize(
    ("body", "kept"),
    [
        (Residual, 1),
        (Twice, 2),
        (InPlace, 1),
        (lambda: nn.Sequential(Standardised(3, 4, 3), nn.BatchNorm2d(4)), 1),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)), 1),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)), 1),
        (with_a_hook, 1),
        (parametrized, 1),
    ],
)
def test_what_cannot_be_folded_stays(body: object, kept: int) -> None:
    torch.manual_seed(0)
    model = used(head(body()))  # type: ignore[operator]
    folded = fold_batch_norm(model, X)
    assert norms(folded) == kept
    torch.testing.assert_close(folded(X), model(X), rtol=1e-11, atol=1e-11)


class Block(nn.Module):
    """A convolution, its normalisation and another one: what happens with them is the subclass's forward."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.other = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.register_buffer("seen", torch.zeros(4))
        self.outputs: list[Tensor] = []
        self.calls = 0


KEPT_BY_A_CLOSURE: list[Callable[[], Tensor]] = []


def by_value(net: Block, x: Tensor) -> Tensor:
    y = net.conv(x)
    return net.norm(y) if x.mean() > -9 else net.other(y)


def by_item(net: Block, x: Tensor) -> Tensor:
    y = net.conv(x)
    return net.norm(y) if x.mean().item() > -9 else y


def by_float(net: Block, x: Tensor) -> Tensor:
    y = net.conv(x)
    return net.norm(y) if float(x.max()) > -9 else y


def by_array(net: Block, x: Tensor) -> Tensor:
    y = net.conv(x)
    try:
        small = x.detach().cpu().numpy().mean() < -9
    except Exception:
        small = False
    return y if small else net.norm(y)


def by_a_caught_error(net: Block, x: Tensor) -> Tensor:
    y = net.conv(x)
    try:
        if x.mean() < -9:
            return y
    except Exception:
        pass
    return net.norm(y)


def by_value_of_tensors_only(net: Block, x: Tensor) -> Tensor:
    y = net.conv(x)
    return y if isinstance(x, Tensor) and x.mean() < -9 else net.norm(y)


def by_a_loop(net: Block, x: Tensor) -> Tensor:
    y = net.conv(x)
    while y.abs().max() > 99:
        y = y / 2
    return net.norm(y)


def by_batch_size(net: Block, x: Tensor) -> Tensor:
    y = net.conv(x)
    return net.norm(y) if x.shape[0] < 3 else y


def by_length(net: Block, x: Tensor) -> Tensor:
    y = net.conv(x)
    return net.norm(y) if len(x) < 3 else y


def by_image_size(net: Block, x: Tensor) -> Tensor:
    y = net.conv(x)
    return net.norm(y) if x.size(-1) == 16 else y


def by_gradient_mode(net: Block, x: Tensor) -> Tensor:
    y = net.conv(x)
    return net.norm(y) if not torch.is_grad_enabled() else y


def by_wanted_gradient(net: Block, x: Tensor) -> Tensor:
    y = net.conv(x)
    return net.norm(y) if not x.requires_grad else y


def by_torchs_chance(net: Block, x: Tensor) -> Tensor:
    y = net.conv(x)
    return net.norm(y) if torch.rand(()) < 2 else y


def by_pythons_chance(net: Block, x: Tensor) -> Tensor:
    y = net.conv(x)
    return net.norm(y) if random.random() < 2 else y


def by_numpys_chance(net: Block, x: Tensor) -> Tensor:
    y = net.conv(x)
    return net.norm(y) if np.random.rand() < 2 else y  # noqa: NPY002 (what foreign code does)


def by_a_counter(net: Block, x: Tensor) -> Tensor:
    net.calls += 1
    y = net.conv(x)
    return net.norm(y) if net.calls < 99 else y


def kept_on_the_module(net: Block, x: Tensor) -> Tensor:
    net.last = y = net.conv(x)
    return net.norm(y)


def kept_in_a_list(net: Block, x: Tensor) -> Tensor:
    y = net.conv(x)
    net.outputs.append(y)
    return net.norm(y)


def kept_in_a_closure(net: Block, x: Tensor) -> Tensor:
    y = net.conv(x)
    KEPT_BY_A_CLOSURE.append(lambda: y)
    return net.norm(y)


def read_into_a_buffer(net: Block, x: Tensor) -> Tensor:
    y = net.conv(x)
    net.seen.copy_(y.detach()[0].mean((1, 2)))
    return net.norm(y)


def in_two_branches(net: Block, x: Tensor) -> Tensor:
    y = net.conv(x)
    return net.norm(y) + net.other(y)


@pytest.mark.parametrize(
    "forward",
    [
        by_value,
        by_item,
        by_float,
        by_array,
        by_a_caught_error,
        by_value_of_tensors_only,
        by_a_loop,
        by_batch_size,
        by_length,
        by_image_size,
        by_gradient_mode,
        by_wanted_gradient,
        by_torchs_chance,
        by_pythons_chance,
        by_numpys_chance,
        by_a_counter,
        kept_on_the_module,
        kept_in_a_list,
        kept_in_a_closure,
        read_into_a_buffer,
        in_two_branches,
    ],
    ids=lambda forward: forward.__name__,
)
def test_what_another_input_could_change_is_not_folded(forward: Callable[[Block, Tensor], Tensor]) -> None:
    """The example takes the branch that could be folded, so no comparison of outputs shows that it must not be."""
    torch.manual_seed(0)
    model = used(head(type("Net", (Block,), {"forward": forward})()))
    before = copy.deepcopy(model.state_dict())
    folded = fold_batch_norm(model, X[:1])
    assert norms(folded) == norms(model) == 2
    model[0].seen.copy_(before["0.seen"])  # which running the model changes, as it does without us
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    KEPT_BY_A_CLOSURE.clear()


def by_mode(net: Block, x: Tensor) -> Tensor:
    y = net.conv(x)
    return net.norm(y) if not net.training else y


def with_unpacked_shape(net: Block, x: Tensor) -> Tensor:
    batch, _, height, width = x.shape
    return net.norm(net.conv(x)).view(batch, 4, height * width).view(x.size(0), 4, height, width)


def with_an_option(net: Block, x: Tensor, mask: Tensor | None = None) -> Tensor:
    y = net.norm(net.conv(x))
    return y if mask is None else y * mask


def with_a_choice_of_values(net: Block, x: Tensor) -> Tensor:
    y = net.norm(net.conv(x))
    return torch.where(x.mean() > 0, y, -y)


def with_a_constant(net: Block, x: Tensor) -> Tensor:
    return net.norm(net.conv(x)) + net.other.weight.sum() + torch.tensor(2.0)


@pytest.mark.parametrize(
    "forward",
    [by_mode, with_unpacked_shape, with_an_option, with_a_choice_of_values, with_a_constant],
    ids=lambda forward: forward.__name__,
)
def test_what_is_the_same_for_every_input_is_folded(forward: Callable[[Block, Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    model = used(head(type("Net", (Block,), {"forward": forward})()))
    folded = fold_batch_norm(model, X[:1])
    assert norms(folded) == 1 < norms(model)
    for pixels in (X, -X):
        torch.testing.assert_close(folded(pixels), model(pixels), rtol=1e-11, atol=1e-11)


class OnABackbone(nn.Module):
    """Somebody's module around a library's: the inside is the library's, the rest is traced."""

    def __init__(self, by_value: bool) -> None:
        import timm

        super().__init__()
        self.backbone, self.by_value = timm.create_model("test_efficientnet", num_classes=7), by_value

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.backbone.forward_head(self.backbone.forward_features(x))
        return y if not self.by_value or y.mean() > -9 else self.backbone(-x)


@pytest.mark.slow
def test_a_librarys_network_in_somebodys_module() -> None:
    torch.manual_seed(0)
    model = used(OnABackbone(by_value=False))
    folded = fold_batch_norm(model, X)
    assert norms(folded) == 0 < norms(model)
    torch.testing.assert_close(folded(X), model(X), rtol=1e-9, atol=1e-9)
    deciding = used(OnABackbone(by_value=True))
    assert fold_batch_norm(deciding, X) is deciding


def test_what_users_put_on_a_librarys_model() -> None:
    """A method of the instance, a subclass and a hook are somebody's code and are traced."""
    import timm

    torch.manual_seed(0)
    model = used(timm.create_model("test_efficientnet", num_classes=7))
    plain = type(model).forward
    model.forward_head = lambda x: plain(model, x) if x.mean() > -9 else x
    assert fold_batch_norm(model, X) is model
    del vars(model)["forward_head"]
    model.__class__ = type("Mine", (type(model),), {"forward": lambda self, x: plain(self, x) if x[0, 0, 0, 0] else x})
    assert fold_batch_norm(model, X) is model
    model.__class__ = type("Mine", (plain_class := type(model).__mro__[1],), {})
    assert norms(fold_batch_norm(model, X)) == 0
    model.__class__ = plain_class
    handle = model.global_pool.register_forward_hook(lambda module, inputs, output: output if output.sum() else None)
    assert fold_batch_norm(model, X) is model
    handle.remove()
    seen: list[Tensor] = []
    model.global_pool.register_forward_hook(lambda module, inputs, output: seen.append(output))
    assert norms(fold_batch_norm(model, X)) == 0


def test_a_convolution_that_is_replaced_on_the_instance_is_not_folded() -> None:
    model = used(head(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)))
    convolution = model[0]
    convolution.forward = lambda x: F.conv2d(x, convolution.weight.sign(), None, padding=1)
    assert fold_batch_norm(model, X) is model


def test_a_name_is_not_a_class() -> None:
    """A user's own Conv2dSame may standardise its weight."""
    mine = type("Conv2dSame", (Standardised,), {})
    model = used(head(mine(3, 4, 3), nn.BatchNorm2d(4)))
    assert norms(fold_batch_norm(model, X)) == 1


def test_a_convolution_of_two_names_is_replaced_under_both() -> None:
    class Named(Block):
        def __init__(self) -> None:
            super().__init__()
            self.also = self.conv

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.also(x))

    model = used(head(Named()))
    folded = fold_batch_norm(model, X)
    assert norms(folded) == 1
    torch.testing.assert_close(folded(X), model(X), rtol=1e-11, atol=1e-11)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_programs_are_returned_as_they_are() -> None:
    model = used(head(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    traced = torch.jit.trace(model, X)
    for program in (traced, torch.jit.freeze(torch.jit.trace(model, X))):
        assert fold_batch_norm(program, X) is program


@pytest.mark.slow
def test_other_threads_models_are_not_traced() -> None:
    """torch.fx patches nn.Module for the time of a trace."""
    torch.manual_seed(0)
    model, other = (used(head(type("Net", (Block,), {"forward": by_mode})())) for _ in range(2))
    expected, wrong, done = other(X), [], threading.Event()

    def work() -> None:
        while not done.is_set():
            try:
                if not torch.equal(other(X), expected):
                    wrong.append("another result")
            except Exception as error:
                wrong.append(repr(error))

    thread = threading.Thread(target=work)
    usual = sys.getswitchinterval()
    sys.setswitchinterval(usual / 50)  # the threads take turns more often, and wait less for each other
    thread.start()
    try:
        for _ in range(4):
            assert norms(fold_batch_norm(model, X[:1])) == 1
    finally:
        done.set()
        thread.join()
        sys.setswitchinterval(usual)
    assert not wrong


def test_a_copy_that_disagrees_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    model = used(head(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    wrong = nn.utils.fusion.fuse_conv_bn_eval

    def without_offset(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
        fused = wrong(conv, norm)
        fused.bias.data.zero_()
        return fused

    monkeypatch.setattr("fampe_fast.models.batch_norm.fuse_conv_bn_eval", without_offset)
    assert fold_batch_norm(model, X) is model


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpus_coarser_products_do_not_hinder_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch allows a GPU's convolutions tf32 unless told otherwise, which moves logits by more than a fold may."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)  # conftest switches it off where there is a GPU
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()) for _ in range(12)]
    model = used(head(nn.Conv2d(3, 16, 1), *blocks, channels=16)).float().cuda()
    assert norms(fold_batch_norm(model, X.float().cuda())) == 0
    assert torch.backends.cudnn.allow_tf32


def test_products_are_compared_in_full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU's test shows, seen without one: the switch is off around both passes."""
    seen: list[bool] = []

    class Watched(nn.Sequential):
        def forward(self, pixels: Tensor) -> Tensor:
            seen.append(torch.backends.cudnn.allow_tf32)
            return super().forward(pixels)

    model = Watched(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten()).eval()
    monkeypatch.setattr(Tensor, "is_cuda", property(lambda self: True))
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)  # conftest switches it off where there is a GPU
    assert norms(fold_batch_norm(model, X.float())) == 0
    assert len(seen) >= 2
    assert not any(seen)
    assert torch.backends.cudnn.allow_tf32


def test_a_model_without_normalisation_is_returned_as_it_is() -> None:
    model = head(nn.Conv2d(3, 4, 3)).eval()
    assert fold_batch_norm(model, X.float()) is model


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.eval\(\)"):
        fold_batch_norm(head(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), X)
    with pytest.raises(TypeError, match=r"nn\.Module, got function"):
        fold_batch_norm(lambda x: x, X)  # type: ignore[arg-type]


def test_loaded_classifiers_are_folded_and_given_ones_are_not() -> None:
    by_name = load_classifier("test_efficientnet", pretrained=False)
    plain = load_classifier("test_efficientnet", pretrained=False, fold_batch_norm=False)
    assert norms(by_name) == 0 < norms(plain)
    used(plain).float()
    given = load_classifier(plain.model)
    assert given.model is plain.model
    copied = load_classifier(plain.model, fold_batch_norm=True)
    assert norms(copied) == 0 < norms(plain)
    pixels = torch.rand(2, 3, *plain.input_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(copied(pixels), given(pixels), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="fold_batch_norm cannot be given here"):
        load_classifier(plain, fold_batch_norm=True)


@pytest.mark.parametrize(
    ("name", "kept"), [("torchvision/resnet18", 0), ("torchvision/densenet121", 62), ("resnet26t", 0)]
)
def test_networks_that_people_use(name: str, kept: int) -> None:
    torch.manual_seed(0)
    plain = load_classifier(name, pretrained=False, fold_batch_norm=False, input_size=64)
    model = used(plain).model
    noise = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    folded = fold_batch_norm(model, noise)
    assert norms(folded) == kept
    with torch.no_grad():
        torch.testing.assert_close(folded(noise), model(noise), rtol=1e-9, atol=1e-9)


@pytest.mark.shared
def test_the_real_classifier_says_the_same(mobilenet, published_mobilenet, photographs) -> None:
    assert norms(mobilenet) == 0 < norms(published_mobilenet)
    images, _ = photographs(4)
    with torch.no_grad():
        expected, found = published_mobilenet(images), mobilenet(images)
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5
