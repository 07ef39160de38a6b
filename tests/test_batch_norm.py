from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fampe_fast import load_classifier
from fampe_fast.models import fold_batch_norm

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
def test_a_gpus_coarser_products_do_not_hinder_it() -> None:
    """torch allows a GPU's convolutions tf32 unless told otherwise, which moves logits by more than a fold may."""
    before = torch.backends.cudnn.allow_tf32
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()) for _ in range(12)]
    model = used(head(nn.Conv2d(3, 16, 1), *blocks, channels=16)).float().cuda()
    assert norms(fold_batch_norm(model, X.float().cuda())) == 0
    assert torch.backends.cudnn.allow_tf32 == before


def test_products_are_compared_in_full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU's test shows, seen without one: the switch is off around both passes."""
    seen: list[bool] = []

    class Watched(nn.Sequential):
        def forward(self, pixels: Tensor) -> Tensor:
            seen.append(torch.backends.cudnn.allow_tf32)
            return super().forward(pixels)

    model = Watched(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten()).eval()
    monkeypatch.setattr(Tensor, "is_cuda", property(lambda self: True))
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
