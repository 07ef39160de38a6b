"""Evidence of every depth: formulas written out by hand, models whose answer is known, and what must not matter."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fampe_fast import FAMPE, AttEXplore, Classifier, FAMPEConfig, load_embedded_classifier
from fampe_fast.errors import FampeWarning
from fampe_fast.images.generated import generate
from fampe_fast.methods.explained import explain_batch


class Net(nn.Module):
    """Strides 4, 8 and 16, global pooling and a linear head, in any float type."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.fine = nn.Sequential(nn.Conv2d(3, 8, 5, stride=4, padding=2), nn.ReLU())
            self.middle = nn.Sequential(nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.ReLU(inplace=True))
            self.coarse = nn.Sequential(nn.Conv2d(12, 16, 3, stride=2, padding=1), nn.Softplus())
            self.head = nn.Linear(16, 6)
            nn.init.normal_(self.head.weight, std=2)
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.coarse(self.middle(self.fine(pixels))).mean((2, 3)))


def images(count: int = 3, height: int = 64, width: int = 80, seed: int = 1) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def share(level: Tensor) -> Tensor:
    """Divide by the mean over the image; nothing stays nothing."""
    return (level / level.mean((-2, -1), keepdim=True)).nan_to_num(0.0)


def by_hand(net: Net, x: Tensor, target: Tensor, weight: float = 0.0, floor: float = 0.5) -> Tensor:
    """The map of one pass in float64, every step written out."""
    net = net.double()
    pixels = x.double().requires_grad_()
    fine = net.fine(pixels)
    middle = net.middle(fine)
    coarse = net.coarse(middle)
    loss = F.cross_entropy(net.head(coarse.mean((2, 3))), target, reduction="sum")
    own, *gradients = torch.autograd.grad(loss, [pixels, fine, middle, coarse])
    parts = [own.abs().sum(1, keepdim=True)]
    for activation, gradient in zip((fine, middle, coarse), gradients, strict=True):
        evidence = (-(activation * gradient).sum(1, keepdim=True)).clamp(min=0).detach()
        parts.append(F.interpolate(share(evidence), x.shape[-2:], mode="bilinear"))
    net.float()
    return (weight * share(parts[0]) + parts[1] + parts[2]) * (floor + parts[3])


def test_one_pass_is_the_formula() -> None:
    net, x, target = Net(), images(), torch.tensor([1, 4, 0])
    expected = by_hand(net, x, target)
    maps = FAMPE(net, passes=1).attribute(x, target)
    assert maps.shape == x.shape
    torch.testing.assert_close(maps.double(), expected.expand_as(x), rtol=2e-5, atol=1e-6)
    other = FAMPE(net, passes=1, pixel_weight=2.0, gate_floor=1.5).attribute(x, target)
    torch.testing.assert_close(other.double(), by_hand(net, x, target, 2.0, 1.5).expand_as(x), rtol=2e-5, atol=1e-6)


def test_the_last_layer_is_hirescams_which_pooling_makes_the_class_activation_map() -> None:
    net, x, target = Net(), images(), torch.tensor([1, 4, 0])
    _, details = FAMPE(net, passes=1).attribute(x, target, return_details=True)
    depths = details.depths
    assert depths is not None
    assert depths.names == ("fine", "middle", "coarse")
    assert depths.sizes == (16, 20, 8, 10, 4, 5)
    with torch.no_grad():
        activation = net.coarse(net.middle(net.fine(x)))
        chances = net(x).softmax(1)
        # d loss / d mean_c = sum_k (p_k - [k = y]) w_kc: the class activation map of the contrast.
        contrast = (F.one_hot(target, 6) - chances) @ net.head.weight / 20
        expected = torch.einsum("bc,bchw->bhw", contrast, activation).clamp(min=0)
    torch.testing.assert_close(depths.layers[:, -20:].view(-1, 4, 5), expected, rtol=1e-4, atol=1e-6)


class Quadrant(nn.Module):
    """Class k counts what is bright in quadrant k."""

    def __init__(self) -> None:
        super().__init__()
        self.small, self.smaller = nn.AvgPool2d(4), nn.AvgPool2d(4)
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(self.smaller(self.small(pixels)), 2).sum(1).flatten(1) * 20


@pytest.mark.parametrize("options", [{"passes": 1}, {"passes": 10, "views": 1}])
def test_a_map_lies_where_its_class_is_decided(options: dict[str, int]) -> None:
    x = 0.1 + 0.8 * images(4, 64, 64)
    maps = FAMPE(Quadrant(), gate_floor=0.0, **options).attribute(x, torch.arange(4)).sum(1)
    quarters = F.avg_pool2d(maps[:, None], 32).flatten(1)
    shares = quarters / quarters.sum(1, keepdim=True)
    assert shares.diagonal().min() > 0.85  # the rest is bilinear resizing at the quarters' borders


def test_with_the_mirror_image_a_mirrored_image_has_the_mirrored_map() -> None:
    net, x = Net(), images()
    method = FAMPE(net, passes=2)
    torch.testing.assert_close(method.attribute(x.flip(-1), 1), method.attribute(x, 1).flip(-1), rtol=1e-4, atol=1e-5)
    one = FAMPE(net, passes=1)
    assert not torch.allclose(one.attribute(x.flip(-1), 1), one.attribute(x, 1).flip(-1), rtol=1e-2)


def test_the_mirror_image_is_averaged_part_by_part() -> None:
    net, x = Net(), images()
    one = FAMPE(net, passes=1)
    two = FAMPE(net, passes=2).attribute(x, 1, return_details=True)[1].depths
    own = one.attribute(x, 1, return_details=True)[1].depths
    mirrored = one.attribute(x.flip(-1), 1, return_details=True)[1].depths
    assert own is not None
    assert mirrored is not None
    assert two is not None
    expected = (share(own.pixels) + share(mirrored.pixels).flip(-1)) / 2
    torch.testing.assert_close(two.pixels, expected, rtol=1e-4, atol=1e-5)
    last = share(own.layers[:, -20:].view(-1, 4, 5)), share(mirrored.layers[:, -20:].view(-1, 4, 5)).flip(-1)
    torch.testing.assert_close(two.layers[:, -20:].view(-1, 4, 5), (last[0] + last[1]) / 2, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("passes", [1, 2, 10])
def test_a_map_is_the_same_alone_in_company_and_in_any_chunk(passes: int) -> None:
    net, x = Net(), images(5)
    method = FAMPE(net, passes=passes)
    whole = method.attribute(x, [0, 1, 2, 3, 4])
    alone = [method.attribute(x[k : k + 1], k, image_ids=[k]) for k in range(5)]
    torch.testing.assert_close(whole, torch.cat(alone), rtol=1e-4, atol=1e-5)
    for chunk in (1, 2, 3, 64):
        again = method.attribute(x, [0, 1, 2, 3, 4], internal_batch_size=chunk)
        torch.testing.assert_close(again, whole, rtol=1e-4, atol=1e-5)


def test_the_path_gives_the_pixels_beside_the_depths() -> None:
    net, x = Net(), images()
    maps, details = FAMPE(net, passes=10, pixel_weight=1000.0, gate_floor=1e6).attribute(x, 1, return_details=True)
    path = FAMPE(net, views=0, steps=4, samples=2, area_cutoff=None).attribute(x, 1).sum(1, keepdim=True)
    torch.testing.assert_close(
        maps / maps.mean((1, 2, 3), keepdim=True),
        (path.clamp(min=0) / path.clamp(min=0).mean((1, 2, 3), keepdim=True)).expand_as(maps),
        rtol=1e-2,
        atol=1e-2,
    )
    assert details.model_passes == 10


def test_attexplore_takes_depths_as_well() -> None:
    net, x = Net(), images()
    method = AttEXplore(net, steps=2, samples=2, views=1)
    assert method.passes == 5
    maps, details = method.attribute(x, 1, return_details=True)
    assert details.depths is not None
    assert bool((maps >= 0).all())


@pytest.mark.parametrize(
    ("passes", "expected"),
    [
        (1, (1, 0, 2)),
        (2, (2, 0, 2)),
        (3, (1, 1, 2)),
        (4, (2, 1, 2)),
        (10, (2, 4, 2)),
        (13, (1, 6, 2)),
        (39, (1, 2, 19)),
        (200, (2, 9, 22)),
        (202, (2, 10, 20)),
    ],
)
def test_a_number_of_passes_is_split(passes: int, expected: tuple[int, int, int]) -> None:
    method = FAMPE(Net(), passes=passes)
    assert (method.config.views, method.config.steps, method.config.samples) == expected
    assert method.passes == passes
    assert FAMPE(Net(), passes=passes, samples=3).config.samples == 3


def test_every_number_of_passes_is_split_exactly_and_over_as_many_steps_as_can_be() -> None:
    for passes in range(3, 301):
        found = FAMPEConfig.budget(passes)
        views, steps, samples = found["views"], found["steps"], found["samples"]
        assert FAMPEConfig(**found).passes == passes
        assert views in (1, 2)
        assert samples >= 2
        able = [t for t in range(1, 11) for rest in (passes - 1, passes - 2) if rest in range(2 * t, rest + 1, t)]
        assert steps == max(able)


@pytest.mark.parametrize("passes", [0, -1, 1.5, "ten"])
def test_a_number_of_passes_that_is_none_is_refused(passes: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="passes"):
        FAMPE(Net(), passes=passes)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"views": 3}, "views must be 0, 1"),
        ({"views": 0, "steps": 0}, "steps and views are both 0"),
        ({"pixel_weight": -1.0}, "pixel_weight"),
        ({"gate_floor": float("nan")}, "gate_floor"),
        ({"layers": ""}, "layers must be non-empty names"),
        ({"layers": "a,a"}, "layers must be non-empty names"),
        (
            {"views": 0, "steps": 1, "layers": "a", "pixel_weight": 0.5, "layer_weights": "1,0", "gate_floor": 0.2},
            "views=0 leaves out the depths: .* leave out layers, pixel_weight, layer_weights, gate_floor$",
        ),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        FAMPEConfig(**options)


@pytest.mark.parametrize("make", [FAMPE.published, AttEXplore])
def test_weights_of_depths_are_refused_where_there_are_none(make: Any) -> None:
    assert make(Net(), gate_floor=0.5).config.views == 0
    assert make(Net(), gate_floor=0.2, views=1).config.gate_floor == 0.2
    with pytest.raises(ValueError, match="views=0 leaves out the depths: give views=1 or 2, or leave out gate_floor$"):
        make(Net(), gate_floor=0.2)


def test_layers_may_be_given_in_any_order() -> None:
    net, x = Net(), images()
    found = FAMPE(net, passes=1, layers="coarse,fine").attribute(x, 1, return_details=True)[1].depths
    assert found is not None
    assert found.names == ("fine", "coarse")
    assert FAMPEConfig(layers="coarse, fine") == FAMPEConfig(layers=("coarse", "fine"))
    with pytest.raises(ValueError, match="no layer 'corse'; near it are 'coarse'"):
        FAMPE(net, passes=1, layers="corse").attribute(x, 1)


class Flat(nn.Module):
    """No activation has places: the image is flattened first."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Flatten(), nn.LazyLinear(5), nn.Tanh(), nn.Linear(5, 4))
        self.head(torch.zeros(1, 3, 64, 80))
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(pixels)


class OnePlace(Flat):
    """The only activations have 1 x 1 places."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(pixels) + self.pool(pixels).flatten(1).sum(1, keepdim=True)


@pytest.mark.parametrize("model", [Flat(), OnePlace()])
def test_a_model_without_places_is_refused_with_what_to_give(model: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"no activation .* name layers, .* views=0"):
        FAMPE(model, passes=1).attribute(images(), 1)
    assert FAMPE(model, views=0, steps=1).attribute(images(), 1).any()


class Silent(Net):
    """No gradient for dark images, an infinite one for bright ones."""

    def forward(self, pixels: Tensor) -> Tensor:
        mean = pixels.mean((1, 2, 3), keepdim=True)
        scale = torch.where(mean < 0.1, 0.0, torch.where(mean > 0.9, torch.inf, 1.0))
        logits = super().forward(pixels)
        return logits.detach() + scale.flatten(1) * (logits - logits.detach())


def test_images_without_evidence_are_named_and_the_others_are_as_alone() -> None:
    net, x = Silent(), images(4)
    x[1] *= 0.1
    x[2] = 0.95 + 0.05 * x[2]
    with pytest.warns(FampeWarning) as warned:
        maps = FAMPE(net, passes=1).attribute(x, 1, image_ids=[7, 8, 9, 10])
    said = " ".join(str(one.message) for one in warned)
    assert "image(s) [8] is zero in every layer" in said
    assert "image(s) [9] was NaN or infinite" in said
    assert not maps[1].any()
    assert not maps[2].any()
    torch.testing.assert_close(maps[3:], FAMPE(net, passes=1).attribute(x[3:], 1), rtol=1e-4, atol=1e-5)


class _NoWayBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pixels: Tensor) -> Tensor:
        return pixels.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        raise RuntimeError("asked for the image's gradient")


class NoWayBack(Net):
    """Whoever asks for the image's gradient is told so."""

    def forward(self, pixels: Tensor) -> Tensor:
        return super().forward(_NoWayBack.apply(pixels))


@pytest.mark.parametrize("passes", [1, 2])
def test_the_image_s_gradient_is_asked_for_only_where_it_is_used(passes: int) -> None:
    net, x = NoWayBack(), images()
    maps = FAMPE(net, passes=passes).attribute(x, 1)
    torch.testing.assert_close(maps, FAMPE(Net(), passes=passes).attribute(x, 1), rtol=0, atol=0)
    for options in ({"pixel_weight": 0.5}, {"layers": "coarse"}):  # beside one layer, the pixels are all the detail
        with pytest.raises(RuntimeError, match="asked for the image's gradient"):
            FAMPE(net, passes=passes, **options).attribute(x, 1)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="asked for the image's gradient"):
        FAMPE(net, passes=passes).attribute(x, 1, return_details=True)


def test_files_and_data_sets_are_explained_at_the_cost_of_a_map() -> None:
    net, x = NoWayBack(), images()
    method = FAMPE(net, passes=1)
    found = explain_batch(method, net, x, [1, 1, 1], image_ids=[0, 1, 2])
    assert torch.equal(found.maps, method.attribute(x, 1))
    _, details = FAMPE(Net(), passes=1).attribute(x, 1, return_details=True)
    assert found.cutoffs is not None
    assert torch.equal(found.cutoffs, details.cutoff)


def test_details_change_no_bit_of_a_map() -> None:
    net, x = Net(), images()
    maps, details = FAMPE(net, passes=1).attribute(x, 1, return_details=True)
    assert torch.equal(maps, FAMPE(net, passes=1).attribute(x, 1))
    assert details.depths is not None
    assert details.depths.pixels.flatten(1).any(1).all()


class Rooted(Net):
    """The gradient of a black pixel is infinite."""

    def forward(self, pixels: Tensor) -> Tensor:
        return super().forward(pixels.sqrt())


def test_pixels_that_do_not_enter_a_map_do_not_clear_it() -> None:
    net, x = Rooted(), images()
    x[1, :, 3, 4] = 0
    expected = FAMPE(Net(), passes=1).attribute(x.sqrt(), 1)
    torch.testing.assert_close(FAMPE(net, passes=1).attribute(x, 1), expected, rtol=0, atol=0)
    with pytest.warns(FampeWarning, match="at pixels, which the map does not use"):
        maps, details = FAMPE(net, passes=1).attribute(x, 1, return_details=True)
    torch.testing.assert_close(maps, expected, rtol=0, atol=0)
    assert details.depths is not None
    assert details.depths.pixels.flatten(1).any(1).tolist() == [True, False, True]
    with pytest.warns(FampeWarning, match=r"image\(s\) \[1\] was NaN or infinite: it is left out"):
        maps = FAMPE(net, passes=1, pixel_weight=1.0).attribute(x, 1)
    assert maps.flatten(1).any(1).tolist() == [True, False, True]


class Shifted(Net):
    """What follows a layer changes it, in place or not."""

    def __init__(self, after: tuple[str, ...], *, in_place: bool) -> None:
        super().__init__()
        self.after, self.in_place = after, in_place
        self.fine, self.middle, self.coarse = self.fine[0], self.middle[0], self.coarse[0]

    def forward(self, pixels: Tensor) -> Tensor:
        x = pixels
        for name in ("fine", "middle", "coarse"):
            x = getattr(self, name)(x)
            if name in self.after:
                x = x.add_(0.5) if self.in_place else x + 0.5
            x = F.softplus(x)
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("after", [("fine",), ("middle", "coarse")])
@pytest.mark.parametrize("compiled", ["off", "on"])
@pytest.mark.parametrize("names", [None, "fine,middle,coarse"])
def test_a_layer_is_taken_as_it_was_returned(after: tuple[str, ...], compiled: Any, names: str | None) -> None:
    x = images()
    expected = FAMPE(Shifted(after, in_place=False), passes=1, layers="fine,middle,coarse").attribute(x, 1)
    net = Shifted(after, in_place=True)
    maps, details = FAMPE(net, passes=1, layers=names, compile=compiled).attribute(x, 1, return_details=True)
    assert details.depths is not None
    assert details.depths.names == ("fine", "middle", "coarse")
    torch.testing.assert_close(maps, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(FAMPE(net, passes=1, layers=names).attribute(x, 1), expected, rtol=1e-5, atol=1e-6)


class Early(Net):
    """A part of what the first layer gives is computed before the module that hands it on returns it."""

    def __init__(self) -> None:
        super().__init__()
        self.side, self.same = nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.Identity()
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        fine = self.fine(pixels)
        side = self.side(fine)
        return self.head(self.coarse(self.middle(self.same(fine)) + side.tanh()).mean((2, 3)))


def test_a_layer_has_the_gradient_of_all_that_is_computed_of_it() -> None:
    torch.manual_seed(0)
    net, x = Early(), images()
    _, details = FAMPE(net, passes=1).attribute(x, 1, return_details=True)
    assert details.depths is not None
    assert details.depths.names[0] == "same"
    fine = net.fine(x)
    later = net.coarse(net.middle(fine) + net.side(fine).tanh())
    (gradient,) = torch.autograd.grad(F.cross_entropy(net.head(later.mean((2, 3))), torch.ones(3).long()), fine)
    maps = FAMPE(net, passes=1).attribute(x, 1)
    _, again = FAMPE(net, passes=1, pixel_weight=0.0).attribute(x, 1, return_details=True)
    assert again.depths is not None
    expected = (-3 * (gradient * fine).sum(1)).clamp(min=0).flatten(1)
    torch.testing.assert_close(again.depths.layers[:, : expected.shape[1]], expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(maps, FAMPE(net, passes=1, layers="fine,coarse").attribute(x, 1), rtol=1e-4, atol=1e-5)


class Sometimes(Net):
    """Cuts the image off where it is bright, or leaves a layer out."""

    def __init__(self, leaves_out: bool) -> None:
        super().__init__()
        self.leaves_out = leaves_out

    def forward(self, pixels: Tensor) -> Tensor:
        bright = float(pixels.detach().mean()) > 0.9
        fine = self.fine[1](self.fine[0](pixels)) if bright and self.leaves_out else self.fine(pixels)
        logits = self.head(self.coarse(self.middle(fine)).mean((2, 3)))
        return logits.detach() if bright else logits


@pytest.mark.parametrize(("leaves_out", "said"), [(False, "the model detaches a tensor"), (True, "'fine' did not run")])
def test_a_pass_that_is_unlike_the_first_one_is_refused(leaves_out: bool, said: str) -> None:
    x = images(2)
    x[1] = 0.95 + 0.05 * x[1]
    with pytest.raises(ValueError, match=said):
        FAMPE(Sometimes(leaves_out), passes=1).attribute(x, 1, internal_batch_size=1)


def test_channels_last_and_lower_precision_move_a_map_by_rounding() -> None:
    net, x = Net(), images()
    maps = FAMPE(net, passes=1).attribute(x, 1)
    last = FAMPE(Net().to(memory_format=torch.channels_last), passes=1).attribute(x, 1)
    torch.testing.assert_close(last, maps, rtol=1e-3, atol=1e-4)
    for precision in ("bf16", "fp16"):
        half = FAMPE(net, passes=1, precision=precision).attribute(x, 1)
        assert torch.corrcoef(torch.stack([half.flatten(), maps.flatten()]))[0, 1] > 0.99
    exact = FAMPE(Net().double(), passes=1).attribute(x, 1)
    assert exact.dtype == torch.float32
    torch.testing.assert_close(exact, maps, rtol=1e-3, atol=1e-4)


def test_the_compiler_changes_last_bits_alone_and_one_graph_serves_all() -> None:
    from fampe_fast.runtime.compilation import compiled_graphs

    net, x = Net(), images(5)
    before = compiled_graphs()
    maps = FAMPE(net, passes=2, compile="on").attribute(x, 1)
    torch.testing.assert_close(maps, FAMPE(net, passes=2).attribute(x, 1), rtol=1e-3, atol=1e-4)
    assert compiled_graphs() == before + 1
    FAMPE(net, passes=1, compile="on", gate_floor=0.5).attribute(x[:3], 2)
    assert compiled_graphs() == before + 1
    assert not any(module._forward_hooks for module in net.modules())


def test_threads_explain_with_one_model_at_once() -> None:
    net, x = Net(), images(6)
    expected = [FAMPE(net, passes=2).attribute(x[k : k + 1], k) for k in range(6)]
    found: dict[int, Tensor] = {}

    def work(k: int) -> None:
        for _ in range(5):
            found[k] = FAMPE(net, passes=2).attribute(x[k : k + 1], k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k in range(6):
        torch.testing.assert_close(found[k], expected[k], rtol=1e-4, atol=1e-5)
    assert not any(module._forward_hooks for module in net.modules())


def test_a_function_around_a_model_is_explained_as_the_model() -> None:
    net, x = Net(), images()
    wrapped = FAMPE(lambda pixels: net((pixels - 0.5) / 0.25), passes=2).attribute(x, 1)
    expected = FAMPE(Classifier(net, mean=0.5, std=0.25, input_size=(64, 80)), passes=2).attribute(x, 1)
    torch.testing.assert_close(wrapped, expected, rtol=1e-4, atol=1e-5)


def test_a_function_s_layers_are_looked_for_once_and_again_where_it_runs_others() -> None:
    nets, shown, x = [Net(0), Net(1)], [], images()

    def function(pixels: Tensor) -> Tensor:
        shown.append(len(pixels))
        return nets[0](pixels)

    first = FAMPE(function, passes=1).attribute(x, 1)
    torch.testing.assert_close(first, FAMPE(nets[0], passes=1).attribute(x, 1), rtol=0, atol=0)
    shown.clear()
    assert torch.equal(FAMPE(function, passes=1).attribute(x, 1), first)
    assert shown == [1, 3]  # what is it like, in every call, and the images
    nets.reverse()
    other = FAMPE(function, passes=1).attribute(x, 1)
    torch.testing.assert_close(other, FAMPE(nets[0], passes=1).attribute(x, 1), rtol=0, atol=0)


def test_the_user_s_model_is_left_as_it_was() -> None:
    net, x = Net(), images()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    FAMPE(net, passes=2).attribute(x, 1)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in net.parameters())
    assert not any(module._forward_hooks for module in net.modules())


def test_no_image_gives_no_map() -> None:
    assert FAMPE(Net(), passes=2).attribute(images(0), []).shape == (0, 3, 64, 80)


def test_one_pass_of_the_classifier_that_ships_finds_the_object() -> None:
    classifier, data = load_embedded_classifier(), generate(4)
    maps = FAMPE(classifier, passes=1).attribute(data.images, data.labels).sum(1)
    inside = torch.stack([one[mask].mean() / one.mean() for one, mask in zip(maps, data.masks, strict=True)])
    assert inside.mean() > 1.5
