"""Choose the layers whose evidence a map combines: one for each resolution, or spread over a model's depth."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from torch import Tensor

from ..runtime.activations import Activation, find_activations, named_activations
from ..runtime.model import Model
from ..runtime.model_probe import ModelInfo

# A layer of stride 1 adds little to the pixels, and takes as much memory as all others.
_FINEST_OCTAVE = 1
# Relative depths of the levels of a model of one resolution.
_DEPTHS = (0.25, 0.5, 0.75)
# In a stage with at least this many token blocks, the level is at three quarters: near class attention, the last
# blocks tell less about places than earlier ones.
_MANY_BLOCKS = 6


def levels_of(
    model: Model, images: Tensor, probed: ModelInfo | None = None, names: Sequence[str] = ()
) -> tuple[Activation, ...]:
    """Choose a model's levels, from fine to coarse.

    Without names: the last activation of each octave of stride, from 2 on where the model has such. A model of one
    resolution (a plain transformer, a mixer) gives the blocks at 1/4, 1/2 and 3/4 of its depth.

    Args:
        model: classifier in pixel space, in evaluation mode.
        images: (B, C, H, W), B at least 1.
        probed: the model's ``ModelInfo``.
        names: layers to take instead, as ``runtime.activations.named_activations`` takes them.

    Raises:
        TypeError: names for a model that is no nn.Module.
        ValueError: a name that cannot be used, or no activation with spatial positions; the message says what to do.
    """
    if names:
        return named_activations(model, images, names, probed)
    found = find_activations(model, images, probed)
    if not found:
        raise ValueError(
            f"found no activation of {type(model).__name__} with more than one place that all of the image's evidence "
            "passes and that has a gradient (a scripted or exported program hides its modules, a model that flattens "
            "the image has none): name layers, layers=('layer2', 'layer4'), or ask for the path alone, views=0, "
            "steps=5 (--views 0 --steps 5)"
        )
    return spread(found, images.shape[-2], images.shape[-1])


def spread(found: Sequence[Activation], height: int, width: int) -> tuple[Activation, ...]:
    """Choose among at least one activation, in the order of a pass, as ``levels_of`` describes."""
    octaves: dict[int, list[Activation]] = {}
    for one in found:
        octaves.setdefault(_octave(one, height, width), []).append(one)
    coarse = {octave: group for octave, group in octaves.items() if octave >= _FINEST_OCTAVE}
    if len(coarse) == 1 and len(next(iter(coarse.values()))) > len(_DEPTHS) and len(octaves) == 1:
        blocks = _blocks(next(iter(coarse.values())))
        return tuple(dict.fromkeys(_at(blocks, share) for share in _DEPTHS))
    chosen = coarse if len(coarse) > 1 else octaves
    return tuple(_last(chosen[octave]) for octave in sorted(chosen))


def _octave(one: Activation, height: int, width: int) -> int:
    height, width = one.frame if all(one.frame) else (height, width)
    return round(math.log2(height * width / (one.size[0] * one.size[1])) / 2)


def _last(group: Sequence[Activation]) -> Activation:
    blocks = _blocks(group)
    tokens = group[-1].layout == "tokens" and len(blocks) >= _MANY_BLOCKS
    return _at(blocks, _DEPTHS[-1]) if tokens else group[-1]


def _blocks(group: Sequence[Activation]) -> list[Activation]:
    """Select the activations of the most frequent module class."""
    kinds = Counter(type(one.module()) for one in group)
    kind, count = kinds.most_common(1)[0]
    return [one for one in group if type(one.module()) is kind] if count > len(_DEPTHS) else list(group)


def _at(blocks: Sequence[Activation], share: float) -> Activation:
    # Blocks with zero gradient, such as the last one before a class token's head, are not included.
    return blocks[max(0, round((len(blocks) + 1) * share) - 1)]
