"""Activations are found in autograd's graph, without a layer's name, and captured without a trace."""

from __future__ import annotations

import threading

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from fampe_fast.runtime.activations import Capture, capture, find_activations, named_activations, uncompiled
from fampe_fast.runtime.autograd_graph import cut_nodes, nodes_between


class Net(nn.Module):
    """Two convolutions, a residual block whose branch is no cut, a shared activation, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.second = nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.branch = nn.Conv2d(8, 8, 3, padding=1)
        self.act = nn.ReLU()
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.second(self.act(self.first(x))))
        x = x + self.branch(x)
        return self.head(self.act(x).mean((2, 3)))


def outputs_of(captured: Capture) -> list[Tensor]:
    """All that was captured; it must be all that was wanted."""
    found = [one.output for one in captured.found if one is not None]
    assert len(found) == len(captured.found)
    return found


def test_ways_meet_at_cut_nodes() -> None:
    leaf = torch.ones(2, requires_grad=True)
    root = leaf * 2
    left, right = root.exp(), root.sin()
    joined = left + right
    out = joined.cos()
    assert cut_nodes(out, leaf)[:2] == [out.grad_fn, joined.grad_fn]
    assert root.grad_fn in cut_nodes(out, leaf)
    assert left.grad_fn not in cut_nodes(out, leaf)
    between = nodes_between(out, leaf)
    assert left.grad_fn in between
    assert right.grad_fn in between


def test_what_does_not_lead_to_the_image_cuts_nothing() -> None:
    leaf, other = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    out = leaf.exp() * other.sin().cos()
    assert len(nodes_between(out, leaf)) == 3  # the product, the exponential and the leaf itself
    assert nodes_between(other.sin(), leaf) == {}
    assert cut_nodes(other.sin(), leaf) == []


def test_a_branch_beside_a_shortcut_is_left_out_and_calls_are_counted() -> None:
    found = find_activations(Net().eval(), torch.rand(1, 3, 16, 24))
    assert [(one.name, one.call, one.size, one.channels) for one in found] == [
        ("first", 0, (8, 12), 4),
        ("act", 0, (8, 12), 4),
        ("second", 0, (4, 6), 8),
        ("act", 1, (4, 6), 8),
        ("act", 2, (4, 6), 8),
    ]


def test_captured_outputs_are_those_of_the_pass() -> None:
    net = Net().eval()
    images = torch.rand(3, 3, 16, 24)
    found = find_activations(net, images)
    with capture(found) as captured:
        net(images)
    x = net.act(net.second(net.act(net.first(images))))
    outputs = outputs_of(captured)
    torch.testing.assert_close(outputs[3], x)
    torch.testing.assert_close(outputs[4], net.act(x + net.branch(x)))
    assert not any(module._forward_hooks for module in net.modules())


def test_hooks_are_gone_after_an_error() -> None:
    net = Net().eval()
    found = find_activations(net, torch.rand(1, 3, 16, 24))
    with pytest.raises(RuntimeError, match="size"), capture(found):
        net(torch.rand(1, 4, 16, 24))
    assert not any(module._forward_hooks for module in net.modules())


def test_another_threads_pass_is_not_captured() -> None:
    net = Net().eval()
    own, others = torch.rand(1, 3, 16, 24), torch.rand(1, 3, 16, 24)
    found = find_activations(net, own)
    with capture(found) as captured:
        thread = threading.Thread(target=net, args=(others,))
        thread.start()
        thread.join()
        assert captured.found == [None] * len(found)
        net(own)
    torch.testing.assert_close(outputs_of(captured)[0], net.first(own))


def test_a_function_of_modules_is_seen_into() -> None:
    net = Net().eval()
    found = find_activations(lambda pixels: net((pixels - 0.5) / 0.25), torch.rand(1, 3, 16, 24))
    assert [one.name for one in found] == ["Conv2d", "ReLU", "Conv2d", "ReLU", "ReLU"]


class Spatial(nn.Module):
    """Hand on what a function makes of a convolution's output, under the name ``seen``."""

    def __init__(self, back: object) -> None:
        super().__init__()
        self.conv, self.seen, self.back = nn.Conv2d(3, 7, 4, stride=4), nn.Identity(), back

    def forward(self, x: Tensor) -> Tensor:
        return self.seen(self.back(self.conv(x))).flatten(1)


def with_prefix(x: Tensor) -> Tensor:
    tokens = x.flatten(2).transpose(1, 2)
    return torch.cat([tokens.mean(1, keepdim=True), tokens], 1)


@pytest.mark.parametrize("size", [(24, 24), (24, 40), (20, 36)])
@pytest.mark.parametrize(
    ("layout", "prefix", "back"),
    [
        ("nchw", 0, lambda x: x * 2),
        ("nhwc", 0, lambda x: x.permute(0, 2, 3, 1) * 2),
        ("tokens", 0, lambda x: x.flatten(2).transpose(1, 2) * 2),
        ("tokens", 1, with_prefix),
    ],
)
def test_layouts_are_read_from_the_shape(layout: str, prefix: int, back: object, size: tuple[int, int]) -> None:
    net = Spatial(back).eval()
    images = torch.rand(2, 3, *size)
    found = {one.name: one for one in find_activations(net, images)}
    assert (found["seen"].layout, found["seen"].prefix) == (layout, prefix)
    expected = net.conv(images) * (1 if prefix else 2)
    with capture([found["seen"]]) as captured:
        net(images)
    (output,) = outputs_of(captured)
    torch.testing.assert_close(found["seen"].spatial(output), expected)


def with_head(model: nn.Module) -> nn.Module:
    """Give a model a head that is not zero, which some start with."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return model.eval()


def test_behind_a_class_token_the_last_block_gets_no_gradient() -> None:
    model = with_head(timm.create_model("vit_tiny_patch16_224", img_size=64))
    found = find_activations(model, torch.rand(1, 3, 64, 64))
    names = [one.name for one in found]
    assert "blocks.10" in names
    assert "blocks.11" not in names
    blocks = [one for one in found if one.name.startswith("blocks.")]
    assert {(one.layout, one.prefix, one.size) for one in blocks} == {("tokens", 1, (4, 4))}


FAMILIES = {
    "resnet18": (96, "layer4", "nchw"),
    "mobilenetv3_small_050": (96, "blocks", "nchw"),
    "convnext_atto": (96, "norm_pre", "nchw"),
    "densenet121": (96, "features", "nchw"),
    "swin_tiny_patch4_window7_224": (224, "norm", "nhwc"),
    "coatnet_nano_rw_224": (224, "norm", "nchw"),
    "mixer_s32_224": (224, "norm", "tokens"),
    "pit_ti_224": (224, "transformers.2.blocks.2", "tokens"),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_families_of_timm_have_their_last_spatial_layer(name: str) -> None:
    side, expected, layout = FAMILIES[name]
    last = find_activations(with_head(timm.create_model(name)), torch.rand(1, 3, side, side))[-1]
    assert (last.name, last.layout) == (expected, layout)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "last"), [("vgg11", "avgpool"), ("swin_t", "permute"), ("vit_b_16", None)])
def test_families_of_torchvision_have_their_last_spatial_layer(name: str, last: str | None) -> None:
    model = with_head(torchvision.models.get_model(name, weights=None))
    found = find_activations(model, torch.rand(1, 3, 224, 224))[-1]
    assert last in (None, found.name)
    assert min(found.size) > 1


def test_layers_by_name_may_lie_beside_a_shortcut() -> None:
    net, images = Net().eval(), torch.rand(2, 3, 16, 24)
    found = named_activations(net, images, ["branch", "act#1", "first"])
    assert [(one.name, one.call) for one in found] == [("first", 0), ("act#1", 1), ("branch", 0)]
    with capture(found) as captured:
        net(images)
    x = net.act(net.second(net.act(net.first(images))))
    torch.testing.assert_close(outputs_of(captured), [net.first(images), x, net.branch(x)])


def test_activations_are_found_where_the_caller_asks_for_no_gradients() -> None:
    with torch.no_grad():
        found = find_activations(Net().eval(), torch.rand(1, 3, 16, 24))
    assert [one.name for one in found] == [one.name for one in find_activations(Net().eval(), torch.rand(1, 3, 16, 24))]


class Unused(Net):
    """A module that never runs, and one behind which the image is cut off."""

    def __init__(self) -> None:
        super().__init__()
        self.spare, self.blind = nn.Identity(), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0 * self.blind(x * 1).detach().sum()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("fist", "no layer 'fist'; near it are 'first'"),
        ("spare", "'spare' does not run"),
        ("act", "runs 3 times in a pass: choose act#0 to act#2"),
        ("act#7", "'act' has no call '7'"),
        ("head", r"'head' gives \(1, 5\) for an image, without spatial positions"),
        ("blind", "'blind' has no gradient"),
    ],
)
def test_a_layer_that_will_not_do_is_refused_with_what_to_give(name: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        named_activations(Unused().eval(), torch.rand(1, 3, 16, 24), [name])


def test_a_function_has_no_layers_names() -> None:
    with pytest.raises(TypeError, match="layer names need an nn.Module"):
        named_activations(lambda x: x.mean((2, 3)), torch.rand(1, 3, 16, 24), ["first"])


@pytest.mark.slow
def test_a_model_its_owner_has_compiled_is_seen_into() -> None:
    net, images = Net().eval(), torch.rand(2, 3, 16, 24)
    compiled = torch.compile(net, backend="eager")
    compiled(images)
    found = find_activations(compiled, images)
    assert [one.call for one in found] == [0, 0, 0, 1, 2]
    with capture(found) as captured, uncompiled(compiled):
        compiled(images)
    torch.testing.assert_close(outputs_of(captured)[0], net.first(images))


class Patches(nn.Module):
    """Patches in a grid that their number alone does not tell, behind a class token and two registers."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.block = nn.Conv2d(3, 5, 8, stride=8), nn.Linear(5, 5)
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        tokens = self.patches(pixels).flatten(2).transpose(1, 2)
        return self.block(torch.cat([tokens[:, :3] * 0, tokens], 1)).tanh().mean(1)


def test_tokens_lie_as_their_patches_do() -> None:
    model = Patches()
    images = torch.rand(1, 3, 24, 32)  # 12 patches and 3 tokens before them: 15 would be 3 x 5
    found = {one.name: one for one in find_activations(model, images)}["block"]
    assert (found.prefix, found.size) == (3, (3, 4))
