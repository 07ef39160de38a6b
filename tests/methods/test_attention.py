"""Attention rollout and gradient-weighted attention: the papers' formulas, on attention that is known."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torchvision.models import VisionTransformer as TorchvisionTransformer

from fampe_fast import create_method
from fampe_fast.methods.attention import AttentionMethod

from ..models_for_tests import Smooth, some_images, suited

NAMES = ("attention_rollout", "attention_gradient")


def transformer(**options: Any) -> VisionTransformer:
    """A small one of timm's whose attention is far from even."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = VisionTransformer(
            img_size=(24, 32), patch_size=8, embed_dim=16, depth=3, num_heads=2, num_classes=5, **options
        )
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.4)
    return model.eval()


def by_formula(name: str, model: VisionTransformer, images: Tensor, target: int, prefix: int, first: bool) -> Tensor:
    """The papers' formulas over what timm's own dropout of the attention is given in the way that is not fused."""
    matrices: list[Tensor] = []
    for block in model.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda module, given, output: matrices.append(output))
    logits = model(images)
    gradients = torch.autograd.grad(logits[:, target].sum(), matrices)
    maps = []
    for image in range(len(images)):
        count = matrices[0].shape[-1]
        relevance = torch.eye(count)
        for matrix, gradient in zip(matrices, gradients, strict=True):
            if name == "attention_rollout":
                mixed = matrix[image].mean(0) + torch.eye(count)
                relevance = mixed / mixed.sum(1, keepdim=True) @ relevance
            else:
                relevance = relevance + (matrix[image] * gradient[image]).clamp(min=0).mean(0) @ relevance
        row = relevance[0] if first else relevance[prefix:].mean(0)
        maps.append(row[prefix:].reshape(1, 3, 4))
    return F.interpolate(torch.stack(maps).detach(), size=images.shape[-2:], mode="bilinear", align_corners=False)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("options", "prefix", "first"),
    [
        ({}, 1, True),
        ({"reg_tokens": 2}, 3, True),
        ({"class_token": False, "global_pool": "avg"}, 0, False),
        ({"global_pool": "avg", "fc_norm": True}, 1, False),
        ({"qk_norm": True}, 1, True),
    ],
    ids=["class token", "registers", "pooled", "pooled beside a class token", "normed keys"],
)
def test_maps_are_the_papers_formulas(name: str, options: dict[str, Any], prefix: int, first: bool) -> None:
    images = some_images(2, height=24, width=32)
    maps = create_method(name, transformer(**options)).attribute(images, 3)
    expected = by_formula(name, transformer(**options), images, 3, prefix, first)
    torch.testing.assert_close(maps[:, :1], expected, rtol=1e-4, atol=1e-6)
    assert torch.equal(maps[:, 0], maps[:, 2])
    assert maps.std() > 1e-3 * maps.mean() > 0


def test_even_attention_is_rolled_out_evenly_and_none_stays_at_home() -> None:
    """Queries of zero attend to all alike: each block halves what stays, and spreads the rest over all tokens."""
    model = transformer()
    with torch.no_grad():
        for block in model.blocks:
            block.attn.qkv.weight[:16] = 0
            block.attn.qkv.bias[:16] = 0
    (found,) = create_method("attention_rollout", model).attribute(some_images(1, height=24, width=32), 0)
    torch.testing.assert_close(found, torch.full_like(found, (1 - 0.5**3) / 13))


class Identity(nn.Module):
    """Tokens that attend to themselves alone, with a head on their mean, or on one of them: nothing flows."""

    def __init__(self, sharpness: float) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 12, 8, 8)
        self.head = nn.Linear(12, 4)
        self.sharpness = sharpness
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        tokens = self.patches(pixels).flatten(2).transpose(1, 2)
        keys = self.sharpness * torch.eye(tokens.shape[1]).expand(len(tokens), 1, -1, -1)
        seen = F.scaled_dot_product_attention(keys + 0 * tokens.mean(), keys, tokens[:, None])[:, 0]
        return self.head((tokens + seen).mean(1))


def test_where_tokens_attend_to_themselves_each_keeps_its_place() -> None:
    """Rollout of the identity is the identity, whose mean row is even."""
    (found,) = create_method("attention_rollout", Identity(1e4)).attribute(some_images(1), 0)
    torch.testing.assert_close(found, torch.full_like(found, 1 / 9))


@pytest.mark.parametrize("name", NAMES)
def test_torchvision_s_transformers_are_timm_s_with_other_names(name: str) -> None:
    theirs = TorchvisionTransformer(
        image_size=24, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=5
    ).eval()
    ours = VisionTransformer(
        img_size=24, patch_size=8, embed_dim=16, depth=2, num_heads=2, mlp_ratio=2, num_classes=5
    ).eval()
    with torch.random.fork_rng():
        torch.manual_seed(4)
        for parameter in theirs.parameters():
            nn.init.normal_(parameter, std=0.4)
    pairs = [
        (ours.cls_token, theirs.class_token), (ours.pos_embed, theirs.encoder.pos_embedding),
        (ours.patch_embed.proj, theirs.conv_proj), (ours.norm, theirs.encoder.ln), (ours.head, theirs.heads.head),
    ]  # fmt: skip
    for block, layer in zip(ours.blocks, theirs.encoder.layers, strict=True):
        attention = layer.self_attention
        pairs += [
            (block.norm1, layer.ln_1), (block.norm2, layer.ln_2), (block.mlp.fc1, layer.mlp[0]),
            (block.mlp.fc2, layer.mlp[3]), (block.attn.proj, attention.out_proj),
            (block.attn.qkv.weight, attention.in_proj_weight), (block.attn.qkv.bias, attention.in_proj_bias),
        ]  # fmt: skip
    for mine, other in pairs:
        if isinstance(mine, nn.Module):
            mine.load_state_dict(other.state_dict())
        else:
            mine.data.copy_(other.data)
    images = some_images(2)
    torch.testing.assert_close(ours(images), theirs(images), rtol=1e-3, atol=1e-3)
    maps = [create_method(name, model).attribute(images, [1, 4]) for model in (ours, theirs)]
    torch.testing.assert_close(maps[0], maps[1], rtol=1e-3, atol=1e-5)
    assert maps[0].std() > 0.01 * maps[0].mean()


def test_rollout_is_one_map_for_every_class_and_the_gradient_s_is_not() -> None:
    images, model = some_images(1, height=24, width=32), transformer()
    rollout, gradient = (create_method(name, model) for name in NAMES)
    assert torch.equal(rollout.attribute(images, 0), rollout.attribute(images, 1))
    assert not torch.allclose(gradient.attribute(images, 0), gradient.attribute(images, 1), rtol=0.05)


@pytest.mark.parametrize("name", NAMES)
def test_a_map_depends_neither_on_company_nor_on_chunks_and_nothing_stays(name: str) -> None:
    model, images = transformer(), some_images(5, height=24, width=32)
    before = [list(vars(module)) for module in model.modules()], [block.attn.fused_attn for block in model.blocks]
    maps = create_method(name, model).attribute(images, [0, 1, 2, 3, 4], internal_batch_size=2)
    for index in range(5):
        alone = create_method(name, model).attribute(images[index : index + 1], index)
        torch.testing.assert_close(alone[0], maps[index], rtol=1e-4, atol=1e-6)
    assert before == (
        [list(vars(module)) for module in model.modules()], [block.attn.fused_attn for block in model.blocks]
    )  # fmt: skip
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


@pytest.mark.slow
def test_a_compiled_model_is_explained_as_it_is() -> None:
    images = some_images(1)
    compiled = torch.compile(suited("attention"), backend="eager")
    expected = create_method("attention_gradient", suited("attention")).attribute(images, 1)
    torch.testing.assert_close(create_method("attention_gradient", compiled).attribute(images, 1), expected)


class Unseen(nn.Module):
    """Tokens without an attention among them."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.mix = nn.Conv2d(3, 12, 8, 8), nn.Linear(12, 12)
        self.head = nn.Linear(12, 4)
        self.eval()

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.mix(self.patches(pixels).flatten(2).transpose(1, 2)).tanh().mean(1))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Smooth(), "Smooth is none: no attention was seen in a pass"),
        (Unseen(), "Unseen is none: no attention was seen in a pass"),
        (timm.create_model("xcit_nano_12_p16_224", img_size=64, depth=1).eval(),
         r"Xcit is none: for 1 image\(s\) it computes attention of the shapes \[\(1, 4, 32, 32\), "),
        (timm.create_model("swin_tiny_patch4_window7_224", img_size=56, depths=(1, 1)).eval(),
         r"SwinTransformer is none: for 1 image\(s\) it computes attention of the shapes \[\(4, 3, 49, 49\), "),
    ],
    ids=["convolutions", "a mixer", "attention of channels", "windows"],
)  # fmt: skip
def test_models_without_such_attention_are_named(model: nn.Module, message: str) -> None:
    side = 56 if "Swin" in message else 64
    for name in NAMES:
        with pytest.raises(ValueError, match=f"{name} needs a model in whose blocks all patch tokens .* {message}"):
            create_method(name, model).attribute(some_images(1, height=side, width=side), 0)


def test_wrong_names_are_named() -> None:
    with pytest.raises(ValueError, match="unknown method 'flow' of attention; known are attention_rollout"):
        AttentionMethod(Smooth(), "flow")  # type: ignore[arg-type]
