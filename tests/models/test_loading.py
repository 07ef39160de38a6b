from __future__ import annotations

import copy
import functools
import json
import os
import pickle
import subprocess
import sys
import textwrap
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from fampe_fast.errors import WeightsUnavailableError
from fampe_fast.images import find_images, load_images, read_image
from fampe_fast.models import Classifier
from fampe_fast.models import hub as hub_module
from fampe_fast.models import load_classifier as load_classifier_as_users_do
from fampe_fast.models.checkpoints import read_state_dict
from fampe_fast.models.class_names import imagenet_class_names, timm_class_names
from fampe_fast.models.transforms import INTERPOLATIONS, PixelTransform, ResizeAndCrop

# What is loaded is compared with what was saved, weight by weight; tests/models/test_batch_norm.py folds.
load_classifier = functools.partial(load_classifier_as_users_do, fold_batch_norm=False)

SMALL = "test_resnet"  # timm's own test architecture: 0.5 million parameters, 160 px


def _net(classes: int = 5) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(3, 4, 3),
            norm=nn.BatchNorm2d(4),
            act=nn.ReLU(),
            pool=nn.AdaptiveAvgPool2d(1),
            flat=nn.Flatten(),
            head=nn.Linear(4, classes),
        )
    )


def _picture(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def _timm(name: str = SMALL, **arguments: Any) -> nn.Module:
    import timm

    torch.manual_seed(1)
    model: nn.Module = timm.create_model(name, **arguments)
    return model.eval()


def _same_parameters(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


class TestClassifier:
    def test_normalises_inside(self) -> None:
        net, mean, std = _net().eval(), (0.1, 0.5, 0.9), (0.25, 0.5, 2.0)
        pixels = torch.rand(2, 3, 12, 12, dtype=torch.float64)
        expected = torch.stack([(pixels[:, c] - mean[c]) / std[c] for c in range(3)], 1)
        double = copy.deepcopy(net).double()
        clf = Classifier(net, mean=mean, std=std)
        torch.testing.assert_close(clf(pixels.float()).double(), double(expected), atol=1e-5, rtol=0)

    def test_gradient_with_respect_to_pixels(self) -> None:
        linear = nn.Linear(3 * 4 * 4, 7)
        clf = Classifier(nn.Sequential(nn.Flatten(), linear), mean=0.5, std=(0.25, 0.5, 1.0))
        pixels = torch.rand(1, 3, 4, 4, requires_grad=True)
        (gradient,) = torch.autograd.grad(clf(pixels)[0, 3], pixels)
        expected = linear.weight[3].reshape(3, 4, 4) / torch.tensor([0.25, 0.5, 1.0]).reshape(3, 1, 1)
        torch.testing.assert_close(gradient[0], expected)

    def test_buffers(self) -> None:
        clf = Classifier(_net(), mean=0.5, std=(0.1, 0.2, 0.3))
        assert clf.mean.shape == clf.std.shape == (1, 3, 1, 1)
        assert clf.mean.dtype == torch.float32
        assert {"mean", "std"} <= set(clf.state_dict())
        torch.testing.assert_close(clf.std.flatten(), torch.tensor([0.1, 0.2, 0.3]))

    def test_defaults(self) -> None:
        clf = Classifier(_net())
        pixels = torch.rand(1, 3, 9, 9)
        assert torch.equal(clf.eval()(pixels), clf.model(pixels))
        assert (clf.name, clf.class_names, clf.num_classes) == ("Sequential", None, None)
        assert clf.input_size == (224, 224)
        assert clf.transform(_picture(300, 250)).shape == (3, 224, 224)

    def test_class_names(self) -> None:
        clf = Classifier(_net(2), class_names=["cat", "dog"])
        assert clf.class_names == ("cat", "dog")
        assert clf.class_name(1) == "dog"
        assert clf.class_name(torch.tensor(0)) == "cat"
        assert Classifier(_net()).class_name(41) == "class 41"
        for index in (-1, 2):
            with pytest.raises(IndexError, match="below 2"):
                clf.class_name(index)

    def test_copies_and_pickles(self) -> None:
        clf = Classifier(_net(), mean=0.5, class_names=list("abcde")).eval()
        pixels, picture = torch.rand(1, 3, 9, 9), _picture(260, 240)
        for other in (copy.deepcopy(clf), pickle.loads(pickle.dumps(clf))):
            assert torch.equal(other(pixels), clf(pixels))
            assert torch.equal(other.transform(picture), clf.transform(picture))

    def test_repr_names_what_matters(self) -> None:
        text = repr(Classifier(_net(), name="mine", mean=0.5, input_size=(8, 9)))
        assert "mine" in text
        assert "(8, 9)" in text
        assert "0.5" in text

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"mean": 127.5}, ValueError, r"mean must lie in \[0, 1\].*127.5.*divide mean and std by 255"),
            ({"mean": -0.1}, ValueError, r"mean must lie in \[0, 1\]"),
            ({"mean": float("nan")}, ValueError, "mean must be finite"),
            ({"std": 0.0}, ValueError, "std must be above 0"),
            ({"std": float("inf")}, ValueError, "std must be finite"),
            ({"mean": (0.5, 0.5)}, ValueError, "one number or 3.*got 2"),
            ({"mean": "0.5"}, TypeError, "mean must be a number"),
            ({"std": [None] * 3}, TypeError, "std must be a number"),
            ({"input_size": 0}, ValueError, "input_size"),
            ({"input_size": (1, 2, 3)}, ValueError, "input_size"),
            ({"input_size": 2.5}, TypeError, "input_size"),
            ({"class_names": "cat"}, TypeError, "class_names must be a sequence"),
            ({"class_names": [1, 2]}, TypeError, "class_names must be a sequence"),
            ({"class_names": []}, ValueError, "class_names is empty"),
            ({"class_names": ["a"], "num_classes": 5}, ValueError, "1 class_names were given for a model of 5"),
            ({"mean": []}, ValueError, "mean is empty"),
            ({"mean": (0.1, 0.2, 0.3), "std": (1.0, 1.0)}, ValueError, "mean has 3 values and std 2"),
            ({"channels": 0}, ValueError, "channels must be at least 1"),
            ({"channels": 1.0}, TypeError, "channels must be a whole number"),
            ({"channels": 2, "mean": (0.1, 0.2, 0.3)}, ValueError, "one number or 2, one per channel; got 3"),
        ],
    )
    def test_bad_arguments(self, arguments: dict[str, Any], error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            Classifier(_net(), **arguments)

    def test_not_a_module(self) -> None:
        with pytest.raises(TypeError, match=r"nn\.Module"):
            Classifier(lambda x: x)  # type: ignore[arg-type]


class TestChannels:
    """Classifiers of other images than RGB."""

    def test_the_first_convolution_tells(self) -> None:
        for channels in (1, 3, 4, 7):
            clf = Classifier(_any_size(channels), mean=0.5)
            assert clf.channels == channels
            assert clf.mean.shape == clf.std.shape == (1, channels, 1, 1)
        assert Classifier(nn.Sequential(nn.Conv2d(6, 6, 3, groups=3))).channels == 6
        assert Classifier(nn.Flatten()).channels == 3

    def test_several_means_tell(self) -> None:
        assert Classifier(nn.Flatten(), mean=(0.1, 0.2, 0.3, 0.4)).channels == 4
        assert Classifier(nn.Flatten(), std=(0.1, 0.2)).channels == 2
        assert Classifier(_any_size(1), mean=(0.1, 0.2, 0.3)).channels == 3  # greyscale is made inside
        assert Classifier(_any_size(1), channels=3).mean.shape == (1, 3, 1, 1)

    def test_one_channel_is_grey(self) -> None:
        clf = Classifier(_any_size(1), input_size=(20, 30))
        for picture in (_picture(50, 60), _picture(50, 60).convert("L"), _picture(50, 60).convert("CMYK")):
            pixels = clf.transform(picture)
            assert pixels.shape == (1, 20, 30)
            assert pixels.dtype == torch.float32
        colour = Image.new("RGB", (40, 40), (10, 200, 90))
        grey = round(0.299 * 10 + 0.587 * 200 + 0.114 * 90)  # ITU-R 601-2
        assert clf.transform(colour).unique().tolist() == pytest.approx([grey / 255])
        ramp = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
        exact = PixelTransform(ResizeAndCrop((16, 16), 1.0), 1)(ramp)
        assert torch.equal(exact.flatten(), torch.arange(256) / 255)

    def test_other_numbers_want_a_transform_of_the_users(self) -> None:
        clf = Classifier(_any_size(4), input_size=8)
        with pytest.raises(ValueError, match="takes 4 channels, and image files are read as RGB"):
            clf.transform(_picture(9, 9))
        own = Classifier(_any_size(4), transform=lambda image: torch.ones(4, *image.size))
        assert own.eval()(own.transform(_picture(9, 9))[None]).shape == (1, 5)


def _any_size(channels: int, classes: int = 5) -> nn.Sequential:
    torch.manual_seed(0)
    body = nn.Conv2d(channels, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten()
    return nn.Sequential(*body, nn.Linear(128, classes))


class TestTransforms:
    @pytest.mark.parametrize("size", [(640, 480), (480, 640), (301, 299), (37, 53), (20, 1000), (256, 256)])
    @pytest.mark.parametrize(("side", "share"), [(224, 0.875), (32, 1.0), (299, 299 / 342), (25, 0.9)])
    def test_square_is_torchvisions_resize_and_crop(self, size: tuple[int, int], side: int, share: float) -> None:
        from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

        picture = _picture(*size)
        for name in ("bilinear", "bicubic"):
            scaled = {224: 256, 32: 32, 299: 342, 25: 27}[side]
            peer = Compose([Resize(scaled, InterpolationMode(name)), CenterCrop(side)])
            ours = ResizeAndCrop((side, side), share, name)(picture)
            np.testing.assert_array_equal(np.asarray(ours), np.asarray(peer(picture)))

    def test_oblong_covers_the_crop(self) -> None:
        """A ramp across the covering image stays the same ramp: the crop takes its centre and nothing is padded."""
        width, height = 320, 160
        ramp = np.broadcast_to(np.linspace(0, 255, width), (height, width))
        picture = Image.fromarray(np.repeat(ramp[..., None], 3, -1).round().astype(np.uint8))
        found = np.asarray(ResizeAndCrop((60, 100), 1.0, "bilinear")(picture)).astype(float)
        assert found.shape == (60, 100, 3)
        columns = (np.arange(100) + 0.5 + 10) * width / 120 - 0.5  # resized to 120 x 60, ten columns cut at each side
        assert np.abs(found - columns[:, None] * 255 / (width - 1)).max() <= 1

    def test_oblong_without_resizing_is_a_crop(self) -> None:
        picture = _picture(50, 30)
        found = np.asarray(ResizeAndCrop((30, 40), 1.0)(picture))
        np.testing.assert_array_equal(found, np.asarray(picture)[:, 5:45])

    def test_values_are_exact_and_within_bounds(self) -> None:
        checkers = Image.fromarray(np.kron(np.indices((16, 16)).sum(0) % 2, np.ones((9, 9))).astype(np.uint8) * 255)
        for name in INTERPOLATIONS:
            pixels = PixelTransform(ResizeAndCrop((200, 200), interpolation=name))(checkers)
            assert pixels.shape == (3, 200, 200)
            assert pixels.dtype == torch.float32
            assert pixels.min() == 0.0
            assert pixels.max() == 1.0
        picture = _picture(8, 8)
        exact = torch.from_numpy(np.asarray(picture) / 255).permute(2, 0, 1).float()
        assert torch.equal(PixelTransform(ResizeAndCrop((8, 8), 1.0))(picture), exact)

    def test_float_overshoot_is_clamped(self) -> None:
        overshooting = PixelTransform(lambda image: torch.tensor([-0.2, 0.5, 1.3]))
        assert overshooting(_picture(4, 4)).tolist() == [0.0, 0.5, 1.0]

    def test_other_modes_are_converted(self) -> None:
        deep = Image.fromarray(np.full((8, 8), 25700, np.uint16))
        torch.testing.assert_close(
            PixelTransform(ResizeAndCrop((4, 4)))(deep), torch.full((3, 4, 4), 100 / 255), atol=0, rtol=0
        )
        clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
        assert (PixelTransform(ResizeAndCrop((4, 4)))(clear) == 1).all()

    def test_bad_input(self) -> None:
        transform = PixelTransform(ResizeAndCrop((4, 4)))
        with pytest.raises(TypeError, match=r"PIL image, got Tensor.*read_image"):
            transform(torch.zeros(3, 4, 4))  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="1 x 101 pixels"):
            transform(Image.new("RGB", (1, 101)))
        assert transform(Image.new("RGB", (1, 100))).shape == (3, 4, 4)


class TestTimm:
    def test_random_weights(self) -> None:
        clf = load_classifier(SMALL, pretrained=False)
        assert (clf.name, clf.input_size, clf.num_classes, clf.class_names) == (SMALL, (160, 160), 1000, None)
        assert clf.class_name(3) == "class 3"
        assert clf(torch.rand(2, 3, 160, 160)).shape == (2, 1000)

    @pytest.mark.parametrize("channels", [1, 4])
    def test_other_channels(self, tmp_path: Path, channels: int) -> None:
        args = {"in_chans": channels}
        torch.save(_timm(num_classes=3, **args).state_dict(), tmp_path / "a.pth")
        clf = load_classifier(SMALL, weights=tmp_path / "a.pth", model_args=args, fold_batch_norm=True)
        assert (clf.channels, clf.num_classes) == (channels, 3)
        assert clf(torch.rand(2, channels, 160, 160)).shape == (2, 3)
        clf = load_classifier(SMALL, pretrained=False, model_args=args, mean=[0.25] * channels)
        assert clf.mean.flatten().tolist() == [0.25] * channels
        with pytest.raises(ValueError, match=rf"one number or {channels}, one per channel; got 3 for test_resnet"):
            load_classifier(SMALL, pretrained=False, model_args=args, mean=(0.1, 0.2, 0.3))

    def test_a_format_that_changes_the_output_is_taken_back(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """timm's models keep channels-last where a pass returns the same; this one asserts that it has not got it."""
        kind = type(_timm())
        forward = kind.forward

        def strict(self: nn.Module, images: Tensor) -> Tensor:
            assert all(value.is_contiguous() for value in self.parameters())
            logits: Tensor = forward(self, images)
            return logits

        monkeypatch.setattr(kind, "forward", strict)
        clf = load_classifier(SMALL, pretrained=False)
        assert all(value.is_contiguous() for value in clf.parameters())
        assert clf(torch.rand(1, 3, 160, 160)).shape == (1, 1000)

    def test_a_size_that_the_model_does_not_take(self) -> None:
        with pytest.raises(ValueError, match="torchvision/squeezenet1_1 does not take images of 8 x 8: "):
            load_classifier("torchvision/squeezenet1_1", pretrained=False, input_size=8)

    def test_state_after_loading(self) -> None:
        clf = load_classifier(SMALL, pretrained=False)
        assert not any(module.training for module in clf.modules())
        assert {parameter.dtype for parameter in clf.parameters()} == {torch.float32}
        assert all(parameter.requires_grad for parameter in clf.parameters())
        kernels = [p for p in clf.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[2] > 1]
        assert kernels
        assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)

    def test_normalisation_and_transform_are_timms(self) -> None:
        import timm

        clf = load_classifier(SMALL, pretrained=False)
        model = clf.model
        config = timm.data.resolve_model_data_config(model)
        peer = timm.data.create_transform(**config, is_training=False)
        for seed, size in enumerate([(400, 300), (170, 200), (60, 90)]):
            picture = _picture(*size, seed)
            ours, theirs = clf.transform(picture), peer(picture)
            torch.testing.assert_close((ours[None] - clf.mean) / clf.std, theirs[None], atol=1e-6, rtol=0)

    def test_borders_keep_the_colour_of_the_mean(self) -> None:
        """Models that pad do it with the mean of the pixels, which must not be lost with the normalisation."""
        import timm

        model = _timm()
        model.pretrained_cfg = {**model.pretrained_cfg, "crop_mode": "border", "crop_pct": 1.0, "mean": (0.2, 0.4, 0.6)}  # type: ignore[assignment]
        clf = load_classifier(model)
        pixels = clf.transform(Image.new("RGB", (100, 50), "white"))
        torch.testing.assert_close(pixels[:, 0, 80], torch.tensor([51.0, 102.0, 153.0]) / 255)
        assert (pixels[:, 80, 80] == 1).all()
        peer = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)
        normalised = (pixels[None] - clf.mean) / clf.std
        torch.testing.assert_close(normalised[0], peer(Image.new("RGB", (100, 50), "white")), atol=1e-6, rtol=0)

    def test_mean_and_std_given_win(self) -> None:
        clf = load_classifier(SMALL, pretrained=False, mean=0.25, std=(0.5, 0.6, 0.7))
        assert clf.mean.flatten().tolist() == [0.25] * 3
        torch.testing.assert_close(clf.std.flatten(), torch.tensor([0.5, 0.6, 0.7]))

    def test_model_args(self) -> None:
        plain = load_classifier("mobilenetv2_050", pretrained=False, num_classes=2)
        same = load_classifier("mobilenetv2_050", pretrained=False, num_classes=2, model_args={"pad_type": "same"})
        padding = [type(m).__name__ for clf in (plain, same) for m in clf.modules() if type(m).__name__ == "Conv2dSame"]
        assert padding
        assert not [m for m in plain.modules() if type(m).__name__ == "Conv2dSame"]

    def test_input_size(self) -> None:
        clf = load_classifier(SMALL, pretrained=False, input_size=(64, 96))
        assert clf.input_size == (64, 96)
        assert clf.transform(_picture(200, 100)).shape == (3, 64, 96)

    @pytest.mark.parametrize("how", [{"input_size": 96}, {"model_args": {"img_size": 96}}])
    def test_vision_transformers_are_built_for_the_input_size(self, how: dict[str, Any]) -> None:
        how = {**how, "model_args": {"depth": 1, **how.get("model_args", {})}}
        clf = load_classifier("vit_tiny_patch16_224", pretrained=False, **how)
        assert clf.input_size == (96, 96)
        assert clf(clf.transform(_picture(120, 110))[None]).shape == (1, 1000)

    def test_interpolation(self) -> None:
        picture = _picture(300, 200)
        default = load_classifier(SMALL, pretrained=False)
        configured = default.model.pretrained_cfg["interpolation"]  # type: ignore[index]
        for name in ("nearest", "bilinear", "bicubic", "lanczos"):
            pixels = load_classifier(SMALL, pretrained=False, interpolation=name).transform(picture)
            assert torch.equal(pixels, default.transform(picture)) == (name == configured)

    @pytest.mark.parametrize("source", ["timm/test_resnet", "test_resnet.r160_in1k"])
    def test_other_spellings(self, source: str) -> None:
        clf = load_classifier(source, pretrained=False)
        assert clf.num_classes == 1000
        assert type(clf.model).__name__ == "ResNet"

    def test_a_name_comes_before_a_folder_of_that_name(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / SMALL).mkdir()
        assert load_classifier(SMALL, pretrained=False).name == SMALL
        with pytest.raises(ValueError, match=r"no config\.json"):
            load_classifier(f"./{SMALL}")

    @pytest.mark.parametrize(
        ("source", "message"),
        [
            ("resnet5O", "unknown model 'resnet5O'.*Did you mean: .*resnet50"),
            ("Mobilenetv2_10", "mobilenetv2_100"),
            ("alexnet", "torchvision/alexnet"),
            ("resnet18.a9_in1k", "unknown weights 'a9_in1k'.*a1_in1k"),
            ("timm/nothing_like_it", "unknown model"),
            ("", "empty"),
        ],
    )
    def test_unknown_names(self, source: str, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            load_classifier(source)

    def test_feature_extractors_are_refused(self) -> None:
        with pytest.raises(ValueError, match="feature extractor"):
            load_classifier("vit_small_patch14_dinov2.lvd142m")
        with pytest.raises(ValueError, match="feature extractor"):
            load_classifier("vit_small_patch14_dinov2.lvd142m", pretrained=False)

    def test_weights_that_do_not_exist(self) -> None:
        with pytest.raises(WeightsUnavailableError, match="no pretrained weights for 'vit_base_patch16_18x2_224'"):
            load_classifier("vit_base_patch16_18x2_224")

    def test_another_number_of_classes_would_be_untrained(self) -> None:
        with pytest.raises(ValueError, match=r"have 1000 classes; num_classes=3 would leave"):
            load_classifier(SMALL, num_classes=3)


class TestWeights:
    def _save(self, path: Path, content: Any) -> Path:
        if path.suffix == ".safetensors":
            from safetensors.torch import save_file

            save_file(content, path)
        else:
            torch.save(content, path)
        return path

    @pytest.mark.parametrize(
        ("name", "wrap"),
        [
            ("a.safetensors", lambda state: state),
            ("a.pth", lambda state: state),
            ("a.pt", lambda state: {"state_dict": state, "epoch": 3}),
            ("a.bin", lambda state: {"model": state, "optimizer": {"lr": 0.1}}),
            ("a.pth", lambda state: {f"module.{key}": value for key, value in state.items()}),
            ("a.pth", lambda state: {"state_dict": {f"_orig_mod.module.{k}": v for k, v in state.items()}}),
            ("a.ckpt", lambda state: {"state_dict": {f"model.{k}": v for k, v in state.items()}}),
            ("a.pth", lambda state: {"state_dict": {}, "state_dict_ema": state}),
            ("a.pth", lambda state: {k: v.half().float() for k, v in state.items() if "num_batches" not in k}),
        ],
    )
    def test_layouts(self, tmp_path: Path, name: str, wrap: Callable[[dict[str, Tensor]], Any]) -> None:
        model = _timm(num_classes=4)
        model.load_state_dict({k: v.half() for k, v in model.state_dict().items()})  # so that half() loses nothing
        path = self._save(tmp_path / name, wrap(model.state_dict()))
        clf = load_classifier(SMALL, weights=path)
        assert _same_parameters(clf.model, model)
        assert clf.num_classes == 4

    def test_averaged_weights_win_as_in_timm(self, tmp_path: Path) -> None:
        raw, averaged = _net(), _net()
        nn.init.ones_(averaged.head.weight)
        path = self._save(tmp_path / "a.pth", {"state_dict": raw.state_dict(), "state_dict_ema": averaged.state_dict()})
        clf = load_classifier(_net(), weights=path)
        assert _same_parameters(clf.model, averaged)

    def test_timms_training_checkpoints(self, tmp_path: Path) -> None:
        from argparse import Namespace

        model = _timm(num_classes=4)
        path = self._save(tmp_path / "a.pth.tar", {"state_dict": model.state_dict(), "args": Namespace(lr=0.1)})
        assert _same_parameters(load_classifier(SMALL, weights=path).model, model)

    def test_old_format(self, tmp_path: Path) -> None:
        torch.save(_net().state_dict(), tmp_path / "a.pth", _use_new_zipfile_serialization=False)
        assert _same_parameters(load_classifier(_net(), weights=tmp_path / "a.pth").model, _net())

    def test_foreign_layouts_are_translated(self, tmp_path: Path) -> None:
        """timm translates what it downloads; the same file given as a path must load too."""
        model = _timm("test_vit", num_classes=3)
        foreign = {"model": dict(model.state_dict())}
        foreign["model"]["patch_embed.proj.weight"] = model.patch_embed.proj.weight.detach().flatten(1)  # type: ignore
        path = self._save(tmp_path / "a.pth", foreign)
        clf = load_classifier("test_vit", weights=path, num_classes=3)
        assert _same_parameters(clf.model, model)

    def test_position_embeddings_are_resampled(self, tmp_path: Path) -> None:
        model = _timm("vit_tiny_patch16_224", num_classes=3, depth=1)
        nn.init.constant_(model.pos_embed, 0.25)  # type: ignore[arg-type]
        path = self._save(tmp_path / "a.pth", model.state_dict())
        clf = load_classifier(
            "vit_tiny_patch16_224", weights=path, num_classes=3, input_size=96, model_args={"depth": 1}
        )
        assert clf(torch.rand(1, 3, 96, 96)).shape == (1, 3)
        embeddings = clf.model.pos_embed
        assert isinstance(embeddings, Tensor)
        assert embeddings.shape == (1, 6 * 6 + 1, 192)
        torch.testing.assert_close(embeddings, torch.full_like(embeddings, 0.25))  # a constant stays one

    def test_predictions_are_those_of_the_saved_model(self, tmp_path: Path) -> None:
        model = _timm(num_classes=4)
        path = self._save(tmp_path / "a.safetensors", model.state_dict())
        clf = load_classifier(SMALL, weights=str(path), mean=0.5, std=0.5)
        pixels = torch.rand(2, 3, 96, 96)
        torch.testing.assert_close(clf(pixels), model((pixels - 0.5) / 0.5), atol=1e-5, rtol=1e-5)

    def test_wrong_number_of_classes(self, tmp_path: Path) -> None:
        path = self._save(tmp_path / "a.pth", _timm(num_classes=4).state_dict())
        with pytest.raises(ValueError, match=r"a\.pth have 4 classes, but 6 are needed \(test_resnet\)"):
            load_classifier(SMALL, weights=path, num_classes=6)

    def test_another_model(self, tmp_path: Path) -> None:
        path = self._save(tmp_path / "a.pth", _net().state_dict())
        with pytest.raises(
            ValueError, match=r"do not fit test_resnet: \d+ keys missing from it \(.*, \.\.\.\); 9 keys"
        ):
            load_classifier(SMALL, weights=path)

    def test_every_kind_of_mismatch_is_counted(self, tmp_path: Path) -> None:
        state = _net().state_dict()
        del state["head.bias"]
        state["extra.a"], state["extra.b"] = torch.zeros(1), torch.zeros(1)
        state["conv.weight"] = torch.zeros(4, 3, 5, 5)
        path = self._save(tmp_path / "a.pth", state)
        with pytest.raises(ValueError, match="do not fit Sequential") as caught:
            load_classifier(_net(), weights=path)
        text = str(caught.value)
        assert "1 key missing from it (head.bias)" in text
        assert "2 keys unknown to the model (extra.a, extra.b)" in text
        assert "1 of another shape (conv.weight: (4, 3, 5, 5), expected (4, 3, 3, 3))" in text

    def test_a_module_that_does_not_fit_is_left_alone(self, tmp_path: Path) -> None:
        net, before = _net(), _net()
        state = {key: value + 1 for key, value in _net().state_dict().items() if key != "head.bias"}
        with pytest.raises(ValueError, match="do not fit"):
            load_classifier(net, weights=self._save(tmp_path / "a.pth", state))
        assert _same_parameters(net, before)

    def test_damaged_files(self, tmp_path: Path) -> None:
        good = self._save(tmp_path / "a.pth", _net().state_dict()).read_bytes()
        safe = self._save(tmp_path / "a.safetensors", _net().state_dict()).read_bytes()
        (tmp_path / "cut.pth").write_bytes(good[: len(good) // 2])
        (tmp_path / "cut.safetensors").write_bytes(safe[: len(safe) // 2])
        (tmp_path / "old.pth").write_bytes(b"\x80\x02 garbage")
        (tmp_path / "empty.pth").touch()
        (tmp_path / "empty.safetensors").touch()
        (tmp_path / "text.pth").write_text("hello")
        for name in ("cut.pth", "cut.safetensors", "old.pth", "empty.pth", "empty.safetensors", "text.pth"):
            with pytest.raises(ValueError, match=rf"weights .*{name}"):
                load_classifier(SMALL, weights=tmp_path / name)

    def test_other_contents(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="holds a list"):
            read_state_dict(self._save(tmp_path / "a.pth", [torch.zeros(1)]))
        with pytest.raises(ValueError, match="no tensors; found epoch"):
            read_state_dict(self._save(tmp_path / "a.pth", {"epoch": 3}))
        with pytest.raises(ValueError, match="b holds NaN"):
            read_state_dict(self._save(tmp_path / "a.pth", {"a": torch.ones(1), "b": torch.tensor([1, torch.nan])}))
        with pytest.raises(ValueError, match="is a directory"):
            read_state_dict(tmp_path)

    def test_code_in_a_checkpoint_is_not_run(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"would run code.*state_dict\(\)"):
            load_classifier(SMALL, weights=self._save(tmp_path / "a.pth", _net()))

    @pytest.mark.parametrize("protocol", [2, 4])
    @pytest.mark.parametrize("zipped", [True, False])
    def test_a_pickled_model_is_called_one(self, tmp_path: Path, protocol: int, zipped: bool) -> None:
        """Not "weights without a model"; its classes are read from the pickle without running it."""
        path = tmp_path / "a.pth"
        for content in (_net(), {"model": _net(), "epoch": 3}):
            torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
            says = (
                r"a\.pth holds a whole model, pickled \(torch\.nn\.modules\.container\.Sequential, .*weights_only=False"
            )
            with pytest.raises(ValueError, match=says):
                load_classifier(path)
            with pytest.raises(ValueError, match="holds a whole model, pickled"):
                load_classifier(SMALL, weights=path)

    @pytest.mark.filterwarnings("ignore:Detected pickle protocol 4:UserWarning")
    @pytest.mark.parametrize("zipped", [True, False])
    def test_a_state_dict_of_a_protocol_that_torch_does_not_read_safely(self, tmp_path: Path, zipped: bool) -> None:
        """Nothing in it is a foreign class, so none is blamed."""
        path = tmp_path / "a.pth"
        torch.save(_net().state_dict(), path, pickle_protocol=4, _use_new_zipfile_serialization=zipped)
        with pytest.raises(ValueError, match=r"a\.pth is damaged, or a pickle of another protocol .*Save the state"):
            load_classifier(_net(), weights=path)

    def test_naming_the_classes_of_a_pickle_runs_nothing_of_it(self, tmp_path: Path) -> None:
        class Trap:
            def __reduce__(self) -> Any:
                return (Path.touch, (tmp_path / "ran",))

        for zipped in (True, False):
            torch.save({"model": Trap()}, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
            with pytest.raises(ValueError, match=r"holds pickled Python objects \(.*getattr"):
                load_classifier(tmp_path / "a.pth")
            assert not (tmp_path / "ran").exists()

    @pytest.mark.parametrize("protocol", [2, 4])
    def test_other_pickled_objects(self, tmp_path: Path, protocol: int) -> None:
        path = tmp_path / "a.pth"
        torch.save({"state_dict": _net().state_dict(), "where": Path("a")}, path, pickle_protocol=protocol)
        for arguments in ({"source": path}, {"source": SMALL, "weights": path}):
            with pytest.raises(ValueError, match=r"holds pickled Python objects \(pathlib\.(_local\.)?\w*Path"):
                load_classifier(**arguments)
        with (tmp_path / "b.pkl").open("wb") as stream:
            pickle.dump({"a": [1, 2]}, stream, protocol=protocol)
        for arguments in ({"source": tmp_path / "b.pkl"}, {"source": SMALL, "weights": tmp_path / "b.pkl"}):
            with pytest.raises(ValueError, match=r"b\.pkl is a pickle that torch\.save did not write"):
                load_classifier(**arguments)

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("a.pt", b"", "is empty"),
            ("a.pt", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer"),
            ("a.bin", b"\n<!DOCTYPE html><html>", "is a web page, as a failed download leaves it"),
            ("a.h5", b"\x89HDF\r\n\x1a\n" + bytes(40), "is an HDF5 file"),
            ("a.onnx", b"\x08\x07\x12\x07pytorch", "is an ONNX file"),
            ("a.txt", b"hello", "is not a file of PyTorch's"),
        ],
    )
    def test_what_other_files_are(self, tmp_path: Path, name: str, content: bytes, message: str) -> None:
        (tmp_path / name).write_bytes(content)
        for arguments in ({"source": tmp_path / name}, {"source": SMALL, "weights": tmp_path / name}):
            with pytest.raises(ValueError, match=f"{name} is not a (model|checkpoint): it {message}"):
                load_classifier(**arguments)

    def test_a_suffix_that_is_another_formats(self, tmp_path: Path) -> None:
        from safetensors.torch import save_file

        save_file(_net().state_dict(), tmp_path / "a.bin")
        assert _same_parameters(load_classifier(_net(), weights=tmp_path / "a.bin").model, _net())
        torch.save(_net().state_dict(), tmp_path / "a.safetensors")
        with pytest.raises(ValueError, match=r"written by torch\.save: give it the suffix \.pth"):
            load_classifier(_net(), weights=tmp_path / "a.safetensors")

    def test_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"nothing\.pth"):
            load_classifier(SMALL, weights=tmp_path / "nothing.pth")


class TestTorchvision:
    @pytest.mark.parametrize("source", ["torchvision/squeezenet1_1", "torchvision:squeezenet1_1"])
    def test_saved_and_loaded_back(self, tmp_path: Path, source: str) -> None:
        import torchvision

        torch.manual_seed(0)
        model = torchvision.models.squeezenet1_1(weights=None).eval()
        torch.save(model.state_dict(), tmp_path / "a.pth")
        clf = load_classifier(source, weights=tmp_path / "a.pth")
        assert _same_parameters(clf.model, model)
        assert (clf.name, clf.num_classes) == ("torchvision/squeezenet1_1", 1000)
        assert clf.class_names is not None
        assert clf.class_names[:2] == ("tench", "goldfish")

        picture = _picture(400, 300)
        peer = torchvision.models.SqueezeNet1_1_Weights.DEFAULT.transforms()
        pixels = clf.transform(picture)
        torch.testing.assert_close((pixels[None] - clf.mean) / clf.std, peer(picture)[None], atol=1e-6, rtol=0)
        torch.testing.assert_close(clf(pixels[None]), model(peer(picture)[None]), atol=1e-4, rtol=1e-4)

    def test_classes_of_the_checkpoint(self, tmp_path: Path) -> None:
        import torchvision

        model = torchvision.models.squeezenet1_1(weights=None, num_classes=3)
        torch.save(model.state_dict(), tmp_path / "a.pth")
        clf = load_classifier("torchvision/squeezenet1_1", weights=tmp_path / "a.pth", class_names=["a", "b", "c"])
        assert (clf.num_classes, clf.class_names) == (3, ("a", "b", "c"))
        with pytest.raises(ValueError, match="have 3 classes, but 7 are needed"):
            load_classifier("torchvision/squeezenet1_1", weights=tmp_path / "a.pth", num_classes=7)

    def test_cached_pretrained_weights_need_no_network(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import torchvision

        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        monkeypatch.setattr(torch.hub, "_hub_dir", None)
        entry = torchvision.models.SqueezeNet1_1_Weights.IMAGENET1K_V1
        model = torchvision.models.squeezenet1_1(weights=None)
        place = tmp_path / "hub" / "checkpoints"
        place.mkdir(parents=True)
        torch.save(model.state_dict(), place / Path(entry.url).name)
        clf = load_classifier("torchvision/squeezenet1_1.IMAGENET1K_V1")
        assert _same_parameters(clf.model, model)
        assert clf.class_names == tuple(entry.meta["categories"])

    def test_published_densenet_files(self, tmp_path: Path) -> None:
        import re

        import torchvision

        model = torchvision.models.densenet121(weights=None, num_classes=2)
        published = {
            re.sub(r"(denselayer\d+\.(?:norm|conv))([12]\.)", r"\1.\2", k): v for k, v in model.state_dict().items()
        }
        assert published.keys() != model.state_dict().keys()
        torch.save(published, tmp_path / "a.pth")
        clf = load_classifier("torchvision/densenet121", weights=tmp_path / "a.pth", num_classes=2)
        assert _same_parameters(clf.model, model)

    def test_input_size_and_interpolation(self) -> None:
        from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

        clf = load_classifier(
            "torchvision/squeezenet1_1", pretrained=False, num_classes=2, input_size=112, interpolation="bicubic"
        )
        picture = _picture(300, 200)
        peer = Compose([Resize(128, InterpolationMode.BICUBIC), CenterCrop(112)])  # 256 to 224 as 128 to 112
        expected = torch.from_numpy(np.array(peer(picture))).permute(2, 0, 1) / 255
        assert clf.input_size == (112, 112)
        torch.testing.assert_close(clf.transform(picture), expected, atol=1e-7, rtol=0)
        assert clf.class_names is None

    def test_mean_and_std_given_win(self) -> None:
        clf = load_classifier("torchvision/squeezenet1_1", pretrained=False, mean=0.5, std=0.25)
        assert clf.mean.flatten().tolist() == [0.5] * 3
        assert clf.std.flatten().tolist() == [0.25] * 3

    @pytest.mark.parametrize(
        ("source", "message"),
        [
            ("torchvision/resnt50", "unknown torchvision classifier 'resnt50'.*resnet50"),
            ("torchvision:resnet50.BEST", "unknown weights 'BEST'.*IMAGENET1K_V2"),
            ("torchvision/fcn_resnet50", "unknown torchvision classifier"),
        ],
    )
    def test_unknown_names(self, source: str, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            load_classifier(source)

    def test_another_number_of_classes_would_be_untrained(self) -> None:
        with pytest.raises(ValueError, match="would leave"):
            load_classifier("torchvision/squeezenet1_1", num_classes=3)


class TestFolders:
    def _folder(self, path: Path, model: nn.Module, **entries: Any) -> Path:
        from safetensors.torch import save_file

        path.mkdir(exist_ok=True)
        config = {
            "architecture": SMALL,
            "num_classes": model.num_classes,
            "pretrained_cfg": {"input_size": [3, 64, 64], "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
            | {"num_classes": model.num_classes, "interpolation": "bilinear", "crop_pct": 1.0, "classifier": "fc"},
            **entries,
        }
        (path / "config.json").write_text(json.dumps(config))
        save_file(model.state_dict(), path / "model.safetensors")
        return path

    def test_folder(self, tmp_path: Path) -> None:
        model = _timm(num_classes=2)
        folder = self._folder(tmp_path / "mine", model, label_names=["n1", "n2"], label_descriptions={"n1": "a cat"})
        for source in (folder, str(folder), f"local-dir:{folder}"):
            clf = load_classifier(source)
            assert _same_parameters(clf.model, model)
            assert "state_dict" not in clf.model.pretrained_cfg
            assert (clf.name, clf.input_size, clf.num_classes) == ("mine", (64, 64), 2)
            assert clf.class_names == ("a cat", "n2")
            torch.testing.assert_close(clf.mean.flatten(), torch.tensor([0.1, 0.2, 0.3]))
            picture = _picture(64, 64)
            exact = torch.from_numpy(np.asarray(picture) / 255).permute(2, 0, 1).float()
            torch.testing.assert_close(clf.transform(picture), exact, atol=1e-7, rtol=0)

    def test_folder_with_other_weights(self, tmp_path: Path) -> None:
        folder = self._folder(tmp_path / "mine", _timm(num_classes=2))
        other = _timm(num_classes=2)
        nn.init.constant_(other.fc.weight, 0.125)  # type: ignore[union-attr, arg-type]
        torch.save(other.state_dict(), tmp_path / "other.pth")
        assert _same_parameters(load_classifier(folder, weights=tmp_path / "other.pth").model, other)

    def test_class_names_given_win(self, tmp_path: Path) -> None:
        folder = self._folder(tmp_path / "mine", _timm(num_classes=2), label_names=["n1", "n2"])
        assert load_classifier(folder, class_names=["x", "y"]).class_names == ("x", "y")
        with pytest.raises(ValueError, match="3 class_names were given for a model of 2 classes"):
            load_classifier(folder, class_names=["x", "y", "z"])

    def test_bad_folders(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"no config\.json"):
            load_classifier(tmp_path)
        with pytest.raises(FileNotFoundError, match="nowhere"):
            load_classifier(f"local-dir:{tmp_path / 'nowhere'}")
        (tmp_path / "config.json").write_text("{")
        with pytest.raises(ValueError, match="not valid JSON"):
            load_classifier(tmp_path)
        for content, message in {
            '{"model_type": "vit"}': "no timm architecture .*model_type is 'vit', one of transformers'",
            "[1]": "no timm architecture; only timm's folders can be loaded",
            '{"architecture": 3}': "no timm architecture",
            '{"architecture": "test_resnet", "pretrained_cfg": [1]}': r"pretrained_cfg is not an object .*\[1\]",
        }.items():
            (tmp_path / "config.json").write_text(content)
            with pytest.raises(ValueError, match=message):
                load_classifier(tmp_path)
        (tmp_path / "config.json").write_text('{"architecture": "resnet_of_mine"}')
        for arguments in ({}, {"pretrained": False}):
            with pytest.raises(ValueError, match="unknown timm architecture, 'resnet_of_mine'"):
                load_classifier(tmp_path, **arguments)

    def test_a_folder_of_weights_alone(self, tmp_path: Path) -> None:
        torch.save(_net().state_dict(), tmp_path / "best.pth")
        with pytest.raises(ValueError, match=r"no config\.json.*best\.pth in it can be given as weights"):
            load_classifier(tmp_path)

    def test_folder_whose_weights_are_missing_or_do_not_fit(self, tmp_path: Path) -> None:
        folder = self._folder(tmp_path / "mine", _timm(num_classes=2))
        (folder / "model.safetensors").unlink()
        with pytest.raises(ValueError, match="mine: No suitable checkpoints"):
            load_classifier(folder)
        torch.save(_net(), folder / "pytorch_model.bin")
        with pytest.raises(ValueError, match=r"pytorch_model\.bin holds a whole model, pickled"):
            load_classifier(folder)
        torch.save(_net().state_dict(), folder / "pytorch_model.bin")
        with pytest.raises(ValueError, match=r"mine: .*Missing key"):
            load_classifier(folder)
        with pytest.raises(ValueError, match="have 2 classes; num_classes=5 would leave"):
            load_classifier(folder, num_classes=5)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
class TestPrograms:
    @pytest.fixture
    def archive(self, tmp_path: Path) -> Path:
        torch.jit.trace(_net().eval(), torch.rand(1, 3, 16, 16)).save(str(tmp_path / "script.pt"))
        return tmp_path / "script.pt"

    @pytest.fixture
    def exported(self, tmp_path: Path) -> Path:
        torch._dynamo.reset()  # torch 2.6 counts every export of this process against one limit
        batch = torch.export.Dim("batch", min=1, max=64)
        program = torch.export.export(_net().eval(), (torch.rand(2, 3, 16, 16),), dynamic_shapes=({0: batch},))
        torch.export.save(program, tmp_path / "exported.pt2")
        return tmp_path / "exported.pt2"

    @pytest.mark.parametrize("kind", ["archive", "exported"])
    def test_program(self, kind: str, request: pytest.FixtureRequest) -> None:
        path = request.getfixturevalue(kind)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            clf = load_classifier(path, mean=0.5, std=0.25, input_size=16, class_names=list("abcde"))
        assert not [warning for warning in caught if "torch.jit" in str(warning.message)]  # nothing users could act on
        assert (clf.name, clf.input_size, clf.num_classes) == (path.stem, (16, 16), 5)
        assert not any(module.training for module in clf.modules())
        pixels = torch.rand(3, 3, 16, 16, requires_grad=True)
        expected = _net().eval()((pixels - 0.5) / 0.25)
        torch.testing.assert_close(clf(pixels), expected, atol=1e-5, rtol=1e-5)
        (ours,) = torch.autograd.grad(clf(pixels)[:, 1].sum(), pixels)
        (theirs,) = torch.autograd.grad(expected[:, 1].sum(), pixels)
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)

    def test_identity_normalisation_by_default(self, exported: Path) -> None:
        clf = load_classifier(str(exported))
        assert clf.mean.flatten().tolist() == [0.0] * 3
        assert clf.std.flatten().tolist() == [1.0] * 3

    def test_exported_for_one_batch_size(self, tmp_path: Path) -> None:
        program = torch.export.export(_net().eval(), (torch.rand(2, 3, 16, 16),))
        torch.export.save(program, tmp_path / "a.pt2")
        clf = load_classifier(tmp_path / "a.pt2", input_size=16)
        assert clf(torch.rand(2, 3, 16, 16)).shape == (2, 5)
        with pytest.raises(ValueError, match=r"\(3, 3, 16, 16\).*dynamic batch size"):
            clf(torch.rand(3, 3, 16, 16))

    @pytest.mark.parametrize("how", ["script", "trace", "freeze", "frozen file", "exported"])
    @pytest.mark.parametrize("channels", [1, 3, 4])
    def test_every_kind_of_program_is_explained(self, tmp_path: Path, how: str, channels: int) -> None:
        """With `view` on feature maps, which fail in channels-last format; frozen ones have no parameters to ask."""
        torch.manual_seed(0)
        net, pixels = Tutorial(channels).eval(), torch.rand(2, channels, 32, 32)
        source: Any = tmp_path / "program.pt"
        if how == "exported":
            torch._dynamo.reset()
            batch = torch.export.Dim("batch", min=1, max=64)
            torch.export.save(torch.export.export(net, (pixels,), dynamic_shapes=({0: batch},)), source)
        elif how == "trace":
            torch.jit.trace(net, pixels).save(str(source))
        else:
            source = torch.jit.script(net)
            source = torch.jit.freeze(source) if how != "script" else source
            if how == "frozen file":
                source.save(str(tmp_path / "program.pt"))
                source = tmp_path / "program.pt"
        clf = load_classifier(source, mean=0.5, input_size=32, class_names=[str(i) for i in range(10)])
        assert (clf.channels, clf.num_classes) == (channels, 10)
        assert not any(module.training for module in clf.modules())
        pixels.requires_grad_()
        expected = net(pixels - 0.5)
        torch.testing.assert_close(clf(pixels), expected, atol=1e-5, rtol=1e-5)
        (ours,) = torch.autograd.grad(clf(pixels)[:, 1].sum(), pixels)
        (theirs,) = torch.autograd.grad(expected[:, 1].sum(), pixels)
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("batch", [1, 3])
    def test_what_a_program_was_exported_for(self, tmp_path: Path, batch: int) -> None:
        """Size and channels come from its graph, and as many images as it takes tell the classes."""
        program = torch.export.export(_any_size(4).eval(), (torch.rand(batch, 4, 16, 24),))
        torch.export.save(program, tmp_path / "a.pt2")
        clf = load_classifier(tmp_path / "a.pt2")
        assert (clf.channels, clf.input_size, clf.num_classes) == (4, (16, 24), 5)
        with pytest.raises(ValueError, match="4 class_names were given for a model of 5 classes"):
            load_classifier(tmp_path / "a.pt2", class_names=list("abcd"))
        with pytest.raises(ValueError, match=r"\(7, 4, 16, 24\).*dynamic batch size"):
            clf(torch.rand(7, 4, 16, 24))
        with pytest.raises(ValueError, match=r"the size that it was exported for \(input_size="):
            clf(torch.rand(batch, 4, 16, 16))

    def test_exported_module_as_source(self, exported: Path) -> None:
        clf = load_classifier(torch.export.load(str(exported)).module())
        assert clf(torch.rand(3, 3, 16, 16)).shape == (3, 5)
        with pytest.raises(ValueError, match="training mode"):
            clf.train()

    @pytest.mark.parametrize("argument", [{"weights": "x.pth"}, {"pretrained": True}, {"model_args": {"a": 1}}])
    def test_programs_have_everything(self, exported: Path, argument: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=next(iter(argument))):
            load_classifier(exported, **argument)

    def test_programs_are_not_weights(self, archive: Path, exported: Path) -> None:
        for path in (archive, exported):
            with pytest.raises(ValueError, match="program, not a state dict"):
                load_classifier(SMALL, weights=path)

    @pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
    def test_weights_are_not_programs(self, tmp_path: Path, name: str) -> None:
        from safetensors.torch import save_file

        (save_file if name.endswith("safetensors") else torch.save)(_net().state_dict(), tmp_path / name)
        with pytest.raises(ValueError, match=r"weights without a model.*--weights"):
            load_classifier(tmp_path / name)

    def test_other_files(self, tmp_path: Path, exported: Path) -> None:
        (tmp_path / "a.txt").write_text("hello")
        with pytest.raises(ValueError, match="is not a model"):
            load_classifier(tmp_path / "a.txt")
        (tmp_path / "cut.pt2").write_bytes(exported.read_bytes()[:500])
        with pytest.raises(ValueError, match=r"cut\.pt2"):
            load_classifier(tmp_path / "cut.pt2")
        with pytest.raises(FileNotFoundError, match=r"gone\.pt"):
            load_classifier(tmp_path / "gone.pt")
        with pytest.raises(FileNotFoundError, match="hf-hub:someone/model"):
            load_classifier("someone/model")


class TestModules:
    def test_identity_normalisation_by_default(self) -> None:
        net = _net()
        clf = load_classifier(net)
        pixels = torch.rand(2, 3, 9, 9)
        assert clf.model is net
        assert not net.training
        assert torch.equal(clf(pixels), net(pixels))
        assert (clf.name, clf.input_size, clf.class_names) == ("Sequential", (224, 224), None)

    def test_arguments(self) -> None:
        clf = load_classifier(_net(), mean=0.5, std=0.25, class_names=list("abcde"), input_size=(20, 30))
        assert clf.mean.flatten().tolist() == [0.5] * 3
        assert clf.class_name(4) == "e"
        assert clf.transform(_picture(50, 60)).shape == (3, 20, 30)

    def test_timm_module_brings_its_configuration(self) -> None:
        model = _timm("test_vit")
        clf = load_classifier(model)
        assert clf.model is model
        assert clf.input_size == (160, 160)
        torch.testing.assert_close(clf.mean.flatten(), torch.tensor(model.pretrained_cfg["mean"]))  # type: ignore
        assert clf.class_names is not None
        assert clf.class_names[0] == "tench"
        assert load_classifier(_timm("test_vit"), mean=0.1).mean.flatten().tolist() == pytest.approx([0.1] * 3)

    @pytest.mark.parametrize("wrap", [nn.DataParallel, torch.optim.swa_utils.AveragedModel])
    def test_a_wrapper_of_torch_hides_no_configuration(self, wrap: Any, tmp_path: Path) -> None:
        model = _timm("test_resnet")
        known, wrapped = load_classifier(model), load_classifier(wrap(model))
        assert type(wrapped.model) is wrap
        assert (wrapped.input_size, wrapped.num_classes, wrapped.name) == (known.input_size, 1000, known.name)
        assert wrapped.class_names == known.class_names
        images = torch.rand(2, 3, *known.input_size)
        assert torch.equal(wrapped(images), known(images))
        other = _timm("test_resnet")
        nn.init.normal_(other.get_classifier().weight)
        torch.save(other.state_dict(), tmp_path / "weights.pth")
        again = load_classifier(wrap(_timm("test_resnet")), weights=tmp_path / "weights.pth")
        assert torch.equal(again(images), load_classifier(other)(images))

    def test_timm_module_with_another_head_has_no_imagenet_names(self) -> None:
        clf = load_classifier(_timm(num_classes=7))
        assert (clf.num_classes, clf.class_names) == (7, None)

    def test_half_precision_becomes_single(self) -> None:
        clf = load_classifier(_net().half())
        assert {parameter.dtype for parameter in clf.parameters()} == {torch.float32}

    @pytest.mark.parametrize("dtype", [torch.half, torch.bfloat16, torch.double])
    def test_another_precision_is_copied(self, dtype: torch.dtype) -> None:
        net = _net().to(dtype)
        net[1].weight = net[1].bias  # tied
        before = copy.deepcopy(net.state_dict())
        clf = load_classifier(net, input_size=16)
        assert {value.dtype for value in clf.parameters()} == {torch.float32}
        assert clf.model[1].weight is clf.model[1].bias
        assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
        assert {value.dtype for value in net.parameters()} == {dtype}
        pixels = torch.rand(2, 3, 16, 16)
        torch.testing.assert_close(clf(pixels), net.float()(pixels), atol=1e-5, rtol=1e-5)

    def test_a_precision_that_the_code_wants_is_kept(self) -> None:
        class Casting(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv = nn.Conv2d(3, 5, 3).to(torch.bfloat16)

            def forward(self, images: Tensor) -> Tensor:
                return self.conv(images.to(torch.bfloat16)).mean((2, 3))

        clf = load_classifier(Casting(), mean=0.5, input_size=16)
        assert {value.dtype for value in clf.state_dict().values()} == {torch.bfloat16}
        assert clf.num_classes == 5
        pixels = torch.rand(2, 3, 16, 16, dtype=torch.bfloat16, requires_grad=True)
        (gradient,) = torch.autograd.grad(clf(pixels)[:, 0].sum(), pixels)
        assert gradient.abs().sum() > 0

    def test_requires_grad_is_left_alone(self) -> None:
        net = _net()
        net.conv.weight.requires_grad_(False)
        clf = load_classifier(net)
        assert [p.requires_grad for p in clf.parameters()] == [False, *[True] * 5]

    def test_weights(self, tmp_path: Path) -> None:
        other = _net()
        nn.init.ones_(other.head.weight)
        torch.save(other.state_dict(), tmp_path / "a.pth")
        assert _same_parameters(load_classifier(_net(), weights=tmp_path / "a.pth").model, other)

    def test_classifier_is_returned_itself(self) -> None:
        clf = load_classifier(_net(), mean=0.5)
        assert load_classifier(clf) is clf
        assert load_classifier(clf, device="cpu") is clf
        with pytest.raises(ValueError, match="mean, weights cannot be given here: a Classifier has its own"):
            load_classifier(clf, mean=0.5, weights="a.pth")

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"pretrained": True}, "pretrained"),
            ({"model_args": {"a": 1}}, "model_args"),
            ({"num_classes": 3}, "7 classes"),
        ],
    )
    def test_contradictions(self, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            load_classifier(_timm(num_classes=7), **arguments)

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
    def test_device(self) -> None:
        clf = load_classifier(_net(), device="cuda", mean=0.5)
        assert {t.device.type for t in [*clf.parameters(), *clf.buffers()]} == {"cuda"}
        assert clf(torch.rand(1, 3, 9, 9, device="cuda")).is_cuda
        assert load_classifier(_net().cuda()).mean.is_cuda
        built = load_classifier(SMALL, pretrained=False, device="cuda")
        weights = [p for p in built.parameters() if p.ndim == 4 and p.shape[1] > 1 and p.shape[-1] > 1]
        assert all(p.is_contiguous(memory_format=torch.channels_last) for p in weights)


class Tutorial(nn.Module):
    """The first convolutional network of many: it asks feature maps for a view."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(channels, 6, 5), nn.Conv2d(6, 8, 5), nn.Linear(8 * 5 * 5, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.max_pool2d(torch.relu(self.first(images)), 2)
        x = torch.max_pool2d(torch.relu(self.second(x)), 2)
        logits: Tensor = self.head(x.view(x.shape[0], -1))
        return logits


class Strided(nn.Module):
    """Asserts strides, as code around hand-written kernels does."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = _any_size(3)
        self.register_buffer("kernel", torch.randn(2, 3, 3, 3))

    def forward(self, images: Tensor) -> Tensor:
        assert self.inner[0].weight.is_contiguous()
        assert self.kernel.stride() == (27, 9, 3, 1)
        logits: Tensor = self.inner(images)
        return logits + self.kernel.view(-1).sum()


class Counting(nn.Module):
    """Writes to its buffers, puts another in a buffer's place and draws at random, in evaluation mode, too."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = _any_size(3)
        self.register_buffer("written", torch.zeros(1))
        self.register_buffer("replaced", torch.zeros(2))

    def forward(self, images: Tensor) -> Tensor:
        self.written += 1
        self.replaced = self.replaced + 1
        logits: Tensor = self.inner(images)
        return logits + torch.rand(())


def _state(module: nn.Module) -> list[object]:
    """All that can be seen of a module's tensors and modes."""
    return [
        *((name, id(v), v.dtype, v.stride(), v.device, v.tolist(), v.requires_grad) for name, v in _named(module)),
        *((name, part.training) for name, part in module.named_modules()),
    ]


def _named(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


class TestSomebodysModules:
    """The user's module is the user's."""

    @pytest.mark.parametrize("make", [Tutorial, Strided, Counting, lambda: nn.DataParallel(Tutorial(), [0])])
    def test_a_module_is_not_changed_but_for_its_mode(self, make: Callable[[], nn.Module]) -> None:
        torch.manual_seed(0)
        net = make().eval()
        before, random_before = _state(net), torch.get_rng_state()
        clf = load_classifier(net, input_size=32)
        assert _state(net) == before
        assert torch.equal(torch.get_rng_state(), random_before)
        assert clf.model is net
        assert clf.num_classes in (5, 10)
        device = next(net.parameters()).device  # DataParallel moves it to the GPU where there is one
        for run in (net, clf):
            pixels = torch.rand(2, 3, 32, 32, device=device, requires_grad=True)
            (gradient,) = torch.autograd.grad(run(pixels)[:, 1].sum(), pixels)
            assert gradient.abs().sum() > 0

    def test_channels_last_weights_stay_so(self) -> None:
        net = _net().to(memory_format=torch.channels_last)
        load_classifier(net, input_size=16)
        assert net.conv.weight.is_contiguous(memory_format=torch.channels_last)

    @pytest.mark.parametrize(
        "arguments", [{"num_classes": 4}, {"class_names": ["a", "b"]}, {"class_names": list("abcdefg")}]
    )
    def test_failure_takes_everything_back(self, tmp_path: Path, arguments: dict[str, Any]) -> None:
        net = _net().train()
        net[1].eval()
        other = {key: value + 1 for key, value in _net().state_dict().items()}
        torch.save(other, tmp_path / "a.pth")
        before = _state(net)
        with pytest.raises(ValueError, match="of 5 classes"):
            load_classifier(net, weights=tmp_path / "a.pth", input_size=16, **arguments)
        assert _state(net) == before
        assert not net[1].training

    def test_a_classifier_keeps_its_precision_and_format(self) -> None:
        clf = Classifier(_net().double())
        before = [(v.dtype, v.stride()) for v in clf.state_dict().values()]
        assert load_classifier(clf) is clf
        assert [(v.dtype, v.stride()) for v in clf.state_dict().values()] == before
        assert not any(part.training for part in clf.modules())

    def test_built_under_inference_mode(self) -> None:
        with torch.inference_mode():
            net, half = Tutorial(), Tutorial().half()
        for module in (net, half):
            clf = load_classifier(module, input_size=32)
            assert all(value.is_inference() for value in module.parameters())
            pixels = torch.rand(2, 3, 32, 32, requires_grad=True)
            (gradient,) = torch.autograd.grad(clf(pixels)[:, 1].sum(), pixels)
            assert gradient.abs().sum() > 0
            assert {value.dtype for value in clf.parameters()} == {torch.float32}
            for value in clf.parameters():
                value.requires_grad_(False)
        with torch.inference_mode():
            expected = net.eval()(pixels)
        assert torch.equal(load_classifier(net, input_size=32)(pixels), expected.clone())

    def test_weights_for_a_module_built_under_inference_mode(self, tmp_path: Path) -> None:
        torch.save(_net().state_dict(), tmp_path / "a.pth")
        with torch.inference_mode():
            net = _net()
        with pytest.raises(ValueError, match="built under inference_mode, so weights cannot be read into it"):
            load_classifier(net, weights=tmp_path / "a.pth", input_size=16)

    @pytest.mark.parametrize("channels", [1, 2, 4, 5])
    def test_any_number_of_channels(self, channels: int) -> None:
        clf = load_classifier(_any_size(channels), input_size=20, class_names=list("abcde"))
        assert clf.channels == channels
        pixels = torch.rand(2, channels, 20, 20, requires_grad=True)
        assert torch.autograd.grad(clf(pixels)[:, 1].sum(), pixels)[0].abs().sum() > 0
        if channels == 1:
            assert clf.transform(_picture(30, 40)).shape == (1, 20, 20)
        else:
            with pytest.raises(ValueError, match=f"takes {channels} channels"):
                clf.transform(_picture(30, 40))
        several = load_classifier(_any_size(channels), input_size=20, mean=[0.25] * channels, std=0.5)
        assert several.mean.flatten().tolist() == [0.25] * channels

    def test_greyscale_that_is_made_inside(self) -> None:
        class Grey(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = _any_size(1)

            def forward(self, images: Tensor) -> Tensor:
                logits: Tensor = self.inner(0.3 * images[:, :1] + 0.6 * images[:, 1:2] + 0.1 * images[:, 2:3])
                return logits

        clf = load_classifier(Grey(), input_size=20)
        assert clf.channels == 3
        assert clf.transform(_picture(30, 40)).shape == (3, 20, 20)

    def test_a_size_that_the_module_does_not_take(self) -> None:
        """It may be meant for tensors of its own size; nothing is known of its classes."""
        clf = load_classifier(Tutorial(1))
        assert (clf.channels, clf.num_classes) == (1, None)
        assert clf(torch.rand(2, 1, 32, 32)).shape == (2, 10)

    def test_timm_modules_of_other_channels(self) -> None:
        model = _timm(in_chans=1, num_classes=3)
        clf = load_classifier(model)
        assert clf.channels == 1
        assert clf.mean.flatten().tolist() == pytest.approx([sum(model.pretrained_cfg["mean"]) / 3])  # type: ignore
        assert clf.transform(_picture(200, 300)).shape == (1, 160, 160)

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: _net().to("meta"), "9 weights on the meta device.*'conv.weight' first"),
            (lambda: nn.Sequential(_net(), nn.LazyLinear(3)), "2 weights without a shape yet"),
        ],
    )
    def test_weights_without_values(self, make: Callable[[], nn.Module], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            load_classifier(make(), input_size=16)

    def test_a_module_that_torch_cannot_copy(self) -> None:
        net = _any_size(3).half()
        net.extra = net[0].weight * 2  # made by an operation, with a graph
        with pytest.raises(ValueError, match=r"computes in float16 .*cannot copy it .*\.float\(\)"):
            load_classifier(net, input_size=16)

    def test_compiled_modules_are_not_compiled_for_a_trial(self) -> None:
        calls: list[int] = []

        def backend(graph: Any, inputs: Any) -> Any:
            calls.append(1)
            return graph

        net = torch.compile(_any_size(3), backend=backend)
        clf = load_classifier(net, input_size=16)
        assert clf.num_classes == 5
        assert not calls
        assert clf(torch.rand(1, 3, 16, 16)).shape == (1, 5)
        assert calls

    def test_quantised_modules(self) -> None:
        quantisation = pytest.importorskip("torch.ao.quantization")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            net = quantisation.quantize_dynamic(_any_size(3).eval(), {nn.Linear})
            pixels = torch.rand(2, 3, 16, 16)
            clf = load_classifier(net, input_size=16)
            assert torch.equal(clf(pixels), net(pixels))
        assert clf.num_classes == 5

    @pytest.mark.parametrize("inplace", [lambda x: x.sub_(0.5).div_(0.2), lambda x: x.relu_()])
    def test_modules_that_begin_in_place(self, inplace: Callable[[Tensor], Tensor]) -> None:
        class InPlace(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = _any_size(3)

            def forward(self, images: Tensor) -> Tensor:
                logits: Tensor = self.inner(inplace(images))
                return logits

        clf = load_classifier(InPlace(), input_size=16)
        pixels = torch.rand(2, 3, 16, 16)
        before = pixels.clone()
        leaf = pixels.requires_grad_()
        assert torch.autograd.grad(clf(leaf)[:, 1].sum(), leaf)[0].abs().sum() > 0
        assert torch.equal(pixels, before)


class TestNumberOfClasses:
    """A pass tells it, so that names which do not fit are refused before any work."""

    @pytest.mark.parametrize("names", [["a"], list("abcd"), list("abcdef")])
    def test_names_that_do_not_fit(self, tmp_path: Path, names: list[str]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.trace(_net().eval(), torch.rand(1, 3, 16, 16)).save(str(tmp_path / "script.pt"))
        for source in (_net(), tmp_path / "script.pt"):
            with pytest.raises(ValueError, match=f"{len(names)} class_names were given for a model of 5 classes"):
                load_classifier(source, class_names=names, input_size=16)

    def test_it_is_what_the_model_returns(self) -> None:
        net = _net()
        net.num_classes = 1000  # stale, as after a new head
        assert load_classifier(net, input_size=16).num_classes == 5
        with pytest.raises(ValueError, match="num_classes=6 was given for a model of 5 classes"):
            load_classifier(_net(), input_size=16, num_classes=6)

    def test_outputs_that_are_no_table_of_classes(self) -> None:
        maps = nn.Conv2d(3, 5, 3)
        assert load_classifier(maps, input_size=16).num_classes is None
        assert load_classifier(maps, input_size=16, class_names=["a", "b"]).num_classes == 2


class TestNumbersOfNumPy:
    def test_numbers_of_numpy_and_torch_are_numbers(self) -> None:
        module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(1), nn.LazyLinear(5)).eval()
        module(torch.zeros(1, 3, 16, 16))
        plain = load_classifier(module, input_size=16, mean=0.5, std=0.25, num_classes=5)
        for size, mean, std in (
            (np.int64(16), np.float32(0.5), np.float64(0.25)),
            (np.array(16), np.array([0.5, 0.5, 0.5]), np.float32(0.25)),
            ((np.int32(16), 16), torch.tensor(0.5), torch.tensor([0.25])),
        ):
            found = load_classifier(module, input_size=size, mean=mean, std=std, num_classes=np.int64(5))
            assert found.input_size == plain.input_size
            assert all(type(side) is int for side in found.input_size)
            assert type(found.num_classes) is int
            assert torch.equal(found.mean.expand(1, 3, 1, 1), plain.mean.expand(1, 3, 1, 1))
            assert torch.equal(found.std.expand(1, 3, 1, 1), plain.std.expand(1, 3, 1, 1))
        for wrong in (True, 16.0, (16, True), "16", np.array(True)):
            with pytest.raises(TypeError, match="input_size must be an integer or"):
                load_classifier(module, input_size=wrong)


class TestBadArguments:
    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"pretrained": 1}, TypeError, "pretrained must be"),
            ({"weights": 3}, TypeError, "weights must be the path"),
            ({"weights": "a.pth", "pretrained": True}, ValueError, "contradict"),
            ({"num_classes": 0}, ValueError, "at least 1, got 0"),
            ({"num_classes": 2.0}, TypeError, "num_classes must be a whole number"),
            ({"num_classes": True}, TypeError, "num_classes must be a whole number"),
            ({"mean": 124}, ValueError, "divide mean and std by 255"),
            ({"std": 0}, ValueError, "std must be above 0"),
            ({"input_size": -3}, ValueError, "input_size"),
            ({"interpolation": "cubic"}, ValueError, "'cubic'; expected one of .*bicubic"),
            ({"class_names": ["a"], "num_classes": 2}, ValueError, "1 class_names were given for a model of 2"),
            ({"device": "nonsense"}, ValueError, "device 'nonsense' cannot be used"),
            ({"model_args": {"num_classes": 3}}, ValueError, "use num_classes="),
            ({"model_args": {"checkpoint_path": "x"}}, ValueError, "use weights="),
            ({"model_args": {"in_chans": 1}}, ValueError, "3 channels"),
            ({"model_args": {"features_only": True}}, ValueError, "not logits"),
            ({"model_args": {1: 2}}, TypeError, "keyword arguments"),
            ({"model_args": {"colour": "red"}, "pretrained": False}, ValueError, "do not suit test_resnet: .*colour"),
        ],
    )
    def test_message(self, arguments: dict[str, Any], error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            load_classifier(SMALL, **arguments)

    def test_torchvision_arguments(self) -> None:
        with pytest.raises(ValueError, match=r"do not suit torchvision/squeezenet1_1: .*colour"):
            load_classifier("torchvision/squeezenet1_1", pretrained=False, model_args={"colour": "red"})

    def test_source(self) -> None:
        with pytest.raises(TypeError, match="got int"):
            load_classifier(3)  # type: ignore[arg-type]


class TestClassNames:
    def test_imagenet_names_are_short_and_distinct(self) -> None:
        from timm.data import ImageNetInfo

        names = timm_class_names({}, 1000)
        assert names is not None
        assert len(set(names)) == 1000
        assert (names[0], names[45], names[999]) == ("tench", "Gila monster", "toilet tissue")
        assert names[134] == "crane (n02012849)"  # the bird; 517 is the machine
        assert names[638:640] == ("maillot", "maillot, tank suit")
        assert len(set(imagenet_class_names(ImageNetInfo("imagenet-12k")))) == 11821

    def test_agrees_with_torchvision_but_for_the_ambiguous_ones(self) -> None:
        import torchvision

        theirs = torchvision.models.ResNet18_Weights.DEFAULT.meta["categories"]
        ours = timm_class_names({}, 1000)
        assert ours is not None
        assert {a for a, b in zip(ours, theirs, strict=True) if a != b} <= {
            "crane (n02012849)",
            "crane (n03126707)",
            "maillot",
            "maillot, tank suit",
        }

    def test_unknown_numbers_of_classes(self) -> None:
        assert timm_class_names({}, 17) is None

    def test_names_of_the_configuration(self) -> None:
        assert timm_class_names({"label_names": ["a", "b"]}, 2) == ("a", "b")
        assert timm_class_names({"label_names": ["a", "b"], "label_descriptions": ["x", "y"]}, 2) == ("x", "y")
        assert timm_class_names({"label_names": ["a", "b"]}, 3) is None


class TestDownloads:
    def test_unreachable_hub_fails_at_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """One request, no retries: neither of the two files is asked for."""
        import huggingface_hub

        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        requests: list[str] = []

        class Session:
            def head(self, url: str, **_: Any) -> None:
                requests.append(url)
                raise ConnectionError("no route to host")

        monkeypatch.setattr("huggingface_hub.utils.get_session", Session)
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: pytest.fail("a download was begun"))
        with pytest.raises(WeightsUnavailableError) as caught:
            load_classifier("test_resnet.r160_in1k")
        text = str(caught.value)
        assert len(requests) == 1
        for part in ("test_resnet.r160_in1k", "no route to host", "weights=PATH", "--weights", "HF_HOME", "pretrained"):
            assert part in text
        assert isinstance(caught.value.__cause__, ConnectionError)

    def test_silent_network_ends_after_the_deadline(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        release = threading.Event()

        class Session:
            def head(self, url: str, **_: Any) -> None:
                release.wait(60)

        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr("huggingface_hub.utils.get_session", Session)
        monkeypatch.setattr(hub_module, "REACH_SECONDS", 0.05)
        with pytest.raises(WeightsUnavailableError, match=r"no answer within 0\.05 seconds"):
            load_classifier("test_resnet")
        release.set()

    def test_connection_lost_is_not_taken_for_a_missing_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import huggingface_hub
        from huggingface_hub.errors import LocalEntryNotFoundError

        class Session:
            def head(self, url: str, **_: Any) -> None: ...

        asked: list[str] = []

        def lose(repository: str, file: str, **_: Any) -> None:
            asked.append(file)
            raise LocalEntryNotFoundError("the connection was lost")

        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr("huggingface_hub.utils.get_session", Session)
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", lose)
        with pytest.raises(WeightsUnavailableError, match="the connection was lost"):
            load_classifier(SMALL)
        assert asked == ["model.safetensors"]

    def test_url(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
        monkeypatch.setattr(torch.hub, "_hub_dir", None)
        (tmp_path / "served.pth").write_bytes(b"weights")
        url = (tmp_path / "served.pth").as_uri()
        file = hub_module.url_file(url, what="x")
        assert file.read_bytes() == b"weights"
        (tmp_path / "served.pth").unlink()
        assert hub_module.url_file(url, what="x") == file  # from the cache
        with pytest.raises(WeightsUnavailableError, match=r"of x are not in torch.hub's cache .*TORCH_HOME.*gone\.pth"):
            hub_module.url_file((tmp_path / "gone.pth").as_uri(), what="x")

    def test_wrong_checksum(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
        monkeypatch.setattr(torch.hub, "_hub_dir", None)
        (tmp_path / "served-00000000.pth").write_bytes(b"not these")
        with pytest.raises(WeightsUnavailableError, match="invalid hash value"):
            hub_module.url_file((tmp_path / "served-00000000.pth").as_uri(), what="x")
        assert not list((tmp_path / "home").rglob("*.pth"))

    @pytest.mark.slow
    def test_the_real_client_against_a_local_server(self, tmp_path: Path) -> None:
        """Download, then cache, then failure, with the libraries' own clients, in a process of its own."""
        from safetensors.torch import save_file

        model = _timm()
        save_file(model.state_dict(), tmp_path / "model.safetensors")
        config = {
            "architecture": SMALL,
            "num_classes": 1000,
            "pretrained_cfg": {"num_classes": 1000, "classifier": "fc"},
        }
        (tmp_path / "config.json").write_text(json.dumps(config))
        script = textwrap.dedent(
            """
            import http.server, os, sys, threading
            from pathlib import Path
            folder = Path(sys.argv[1])
            asked = []

            class Handler(http.server.BaseHTTPRequestHandler):
                def answer(self, body):
                    asked.append((self.command, self.path))
                    file = folder / Path(self.path).name
                    known = "/timm/test_resnet.r160_in1k/" in self.path or "/someone/mine/" in self.path
                    data = file.read_bytes() if known and file.is_file() else None
                    self.send_response(200 if data is not None or self.path == "/" else 404)
                    self.send_header("X-Repo-Commit", "0" * 40)
                    if data is not None:
                        self.send_header("ETag", '"' + file.name + '"')
                    else:
                        self.send_header("X-Error-Code", "EntryNotFound" if known else "RepoNotFound")
                    self.send_header("Content-Length", str(len(data or b"")))
                    self.end_headers()
                    if body and data:
                        self.wfile.write(data)
                def do_HEAD(self): self.answer(False)
                def do_GET(self): self.answer(True)
                def log_message(self, *_): pass

            server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
            threading.Thread(target=server.serve_forever, daemon=True).start()
            os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_port}"
            os.environ["HF_HOME"] = str(folder / "hf")
            os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
            for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE"):
                os.environ.pop(name, None)
            for name in ("http_proxy", "https_proxy", "all_proxy"):
                os.environ.pop(name, None)
                os.environ.pop(name.upper(), None)

            import torch
            from fampe_fast.errors import WeightsUnavailableError
            from fampe_fast.models import load_classifier
            from safetensors.torch import load_file

            state = load_file(folder / "model.safetensors")
            def check(source):
                clf = load_classifier(source, fold_batch_norm=False)
                assert all(torch.equal(clf.model.state_dict()[key], state[key]) for key in state), source
                return clf

            assert check("test_resnet.r160_in1k").class_name(0) == "tench"
            assert any(path.endswith("model.safetensors") for _, path in asked), asked
            assert check("hf-hub:someone/mine").input_size == (224, 224)
            try:
                load_classifier("hf-hub:someone/else")
                raise SystemExit("a repository that does not exist was loaded")
            except WeightsUnavailableError as error:
                assert "someone/else" in str(error), error

            server.shutdown()
            server.server_close()
            before = len(asked)
            check("test_resnet")  # the same weights, by the default tag: from the cache, no server
            check("hf-hub:someone/mine")
            assert len(asked) == before
            try:
                load_classifier("test_vit")
                raise SystemExit("weights came from nowhere")
            except WeightsUnavailableError as error:
                assert "test_vit" in str(error) and "weights=PATH" in str(error), error
            print("all well")
            """
        )
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        command = [sys.executable, "-c", script, str(tmp_path)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip().endswith("all well")


@pytest.mark.slow
def test_importing_is_light() -> None:
    code = (
        "import sys, fampe_fast.models, fampe_fast.images\n"
        "from fampe_fast.models import Classifier, load_classifier\n"
        "heavy = {'timm', 'torchvision', 'triton', 'matplotlib', 'captum', 'rich', 'huggingface_hub'}\n"
        "import torch\n"
        "print(sorted(heavy & set(sys.modules)), torch.cuda.is_initialized())"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[] False", done.stderr


def test_unknown_attribute() -> None:
    import fampe_fast.models

    assert {"Classifier", "load_classifier"} <= set(dir(fampe_fast.models))
    with pytest.raises(AttributeError, match="nonsense"):
        fampe_fast.models.nonsense  # noqa: B018


MODEL = {"source": "mobilenetv2_100", "mean": 0.5, "std": 0.5, "model_args": {"pad_type": "same"}}
CHECKPOINT = "mobilenetv2_100_same.imagenet.safetensors"


@pytest.fixture(scope="module")
def labels(shared_dir: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = json.loads((shared_dir / "images" / "labels.json").read_text())
    return found


@pytest.mark.shared
class TestRealModel:
    @pytest.mark.slow
    def test_recorded_probabilities(self, shared_dir: Path, labels: dict[str, dict[str, Any]]) -> None:
        """They were recorded with bilinear resizing, to four decimals: half a unit of the last, and float32's noise."""
        clf = load_classifier(**MODEL, weights=shared_dir / "models" / CHECKPOINT, interpolation="bilinear")
        names = sorted(labels)[:24]
        pictures = [clf.transform(read_image(shared_dir / "images" / name)) for name in names]
        with torch.no_grad():
            probabilities = clf(torch.stack(pictures)).softmax(-1)
        index = torch.tensor([labels[name]["index"] for name in names])
        assert torch.equal(probabilities.argmax(-1), index)
        recorded = torch.tensor([labels[name]["p"] for name in names])
        found = probabilities.gather(-1, index[:, None])[:, 0]
        torch.testing.assert_close(found, recorded, atol=5e-5 + 1e-6, rtol=0)
        for label in labels.values():
            assert clf.class_name(label["index"]).split(",")[0].split(" (")[0] == label["name"]

    @pytest.mark.slow
    def test_equal_to_timms_own_pipeline(
        self, shared_dir: Path, mobilenet: Classifier, labels: dict[str, dict[str, Any]]
    ) -> None:
        """Nothing is clamped: Pillow resizes in bytes and clips the bicubic overshoot itself, as in timm's pipeline."""
        import timm

        model = timm.create_model(
            "mobilenetv2_100", pad_type="same", checkpoint_path=shared_dir / "models" / CHECKPOINT
        ).eval()
        config = timm.data.resolve_model_data_config(model)
        config |= {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": _interpolation(mobilenet)}
        peer = timm.data.create_transform(**config, is_training=False)
        files = find_images(shared_dir / "images")[::4]
        loaded = dict(load_images(files, mobilenet.transform))
        ours = torch.stack([pixels for pixels in loaded.values() if isinstance(pixels, Tensor)])
        theirs = torch.stack([peer(Image.open(file).convert("RGB")) for file in files])
        assert len(files) == 16
        assert ours.shape == theirs.shape
        assert 0 <= ours.min() <= ours.max() <= 1
        torch.testing.assert_close(ours * 2 - 1, theirs, atol=1e-6, rtol=0)
        with torch.no_grad():
            logits, expected = mobilenet(ours), model(theirs)
        torch.testing.assert_close(logits.softmax(-1), expected.softmax(-1), atol=1e-5, rtol=0)
        assert logits.argmax(-1).tolist() == [labels[file.name]["index"] for file in files]


def _interpolation(classifier: Classifier) -> str:
    """The resizing filter of the shared fixture, whichever it was loaded with."""
    [resize] = [step for step in classifier.transform.resize.transforms if hasattr(step, "interpolation")]  # type: ignore
    return str(resize.interpolation.value)
