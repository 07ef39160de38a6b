"""Which layers a map combines."""

from __future__ import annotations

from weakref import ref

import pytest
import timm
import torch
from torch import nn

from fampe_fast.engine.levels import levels_of, spread
from fampe_fast.runtime.activations import Activation

BLOCKS = [nn.Identity() for _ in range(30)]
OTHER = nn.Flatten()


def activation(name: str, side: int, layout: str = "nchw", module: nn.Module = OTHER) -> Activation:
    return Activation(name, 0, layout, 0, (side, side), 8, ref(module))  # type: ignore[arg-type]


def names(found: list[Activation], side: int = 224) -> list[str]:
    return [one.name for one in spread(found, side, side)]


def test_each_octave_from_stride_two_on_gives_its_last() -> None:
    found = [activation(f"{side}.{k}", side) for side in (224, 112, 56, 28, 14, 7) for k in range(3)]
    assert names(found) == ["112.2", "56.2", "28.2", "14.2", "7.2"]


def test_sizes_that_rounding_makes_differ_are_one_octave() -> None:
    found = [activation(str(side), side) for side in (149, 147, 73, 71, 35, 17, 8)]
    assert names(found, 299) == ["147", "71", "35", "17", "8"]


def test_a_model_of_fine_layers_alone_gives_those() -> None:
    assert names([activation("a", 32), activation("b", 16), activation("c", 16)], 32) == ["a", "c"]
    assert names([activation("a", 16), activation("b", 8)], 32) == ["a", "b"]
    assert names([activation("a", 7)]) == ["a"]


@pytest.mark.parametrize(
    ("count", "expected"), [(11, ["2", "5", "8"]), (12, ["2", "5", "9"]), (24, ["5", "11", "18"]), (4, ["0", "1", "3"])]
)
def test_a_model_of_one_resolution_is_spread_over_its_blocks(count: int, expected: list[str]) -> None:
    blocks = [activation(str(k), 14, "tokens", BLOCKS[k]) for k in range(count)]
    assert names([activation("embedding", 14), *blocks, activation("norm", 14, "tokens")]) == expected


def test_a_long_stage_of_tokens_is_left_before_its_end() -> None:
    stem = [activation(str(side), side) for side in (56, 28)]
    blocks = [activation(f"block {k}", 14, "tokens", BLOCKS[k]) for k in range(12)]
    assert names([*stem, *blocks]) == ["56", "28", "block 9"]
    assert names([*stem, *blocks[:3]]) == ["56", "28", "block 2"]


@pytest.mark.parametrize(
    ("name", "side", "expected"),
    [
        ("resnet18", 224, ["act1", "layer1", "layer2", "layer3", "layer4"]),
        ("vit_tiny_patch16_224", 224, ["blocks.2", "blocks.5", "blocks.8"]),
    ],
)
def test_real_models_give_their_stages(name: str, side: int, expected: list[str]) -> None:
    model = timm.create_model(name).eval()
    if name.startswith("vit"):
        nn.init.normal_(model.head.weight)
    assert [one.name for one in levels_of(model, torch.rand(1, 3, side, side))] == expected
