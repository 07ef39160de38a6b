"""Measure how much of a map remains when the model's parameters are randomised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from ..checks import check_choice, check_count, check_image_ids, check_seed, check_targets, check_unit_images
from ..progress import progress
from ..runtime.isolation import isolated
from ..runtime.model import check_model
from ..runtime.model_probe import call, watched
from .explaining import attribute_options, check_method, explain, name_of, with_copied_model
from .rank_correlation import rank_agreement

__all__ = ["ParameterRandomisation", "parameter_randomisation"]

Values = Literal["absolute", "signed"]


class ParameterRandomisation(NamedTuple):
    """Rank correlations of B maps with those of the randomised model."""

    scores: Tensor
    """(B,) in [-1, 1], the mean over the stages; low if the map depends on the model, 1 if it does not."""
    correlations: Tensor
    """(B, stages) in [-1, 1], after each stage; the last one is for an entirely random model."""
    layers: tuple[int, ...]
    """The number of randomised last layers at each stage."""


def parameter_randomisation(
    method: Any,
    images: Tensor,
    targets: int | Sequence[int] | Tensor,
    *,
    stages: int = 3,
    values: Values = "absolute",
    seed: int = 0,
    image_ids: Sequence[int] | Tensor | None = None,
    internal_batch_size: int | None = None,
    show_progress: bool = False,
) -> ParameterRandomisation:
    """Measure the rank correlation between a method's maps of a model and of the model with random layers.

    Adebayo, Gilmer, Muelly, Goodfellow, Hardt and Kim, "Sanity checks for saliency maps", NeurIPS 2018 (arXiv
    1810.03292, section 3, cascading randomisation): the layers of a copy of the model are randomised from the last to
    the first, and a map that does not change does not explain the model. After each stage the copy is explained for
    the same class, and Spearman's correlation is computed over the pixels of the map summed over the channels. Two maps
    with the same order, also two constant ones, correlate with 1; a constant map and another one with 0.

    A layer is a module with its own parameters; layers are ordered as they run in a forward pass, and modules that do
    not run by themselves belong to the module around them. The authors use the model's initialiser, which is unknown
    for a model from a file. Here weights are drawn from a normal distribution with mean 0 and the root mean square of
    the trained weights, so that signals keep their size; biases become 0, the scales of normalisations 1; running
    statistics and single numbers, such as a temperature, are kept. A batch normalisation that ``load_classifier`` has
    folded into a convolution is part of the convolution's weights and biases.

    Neither the model itself nor any global generator is changed. One copy of the model exists during the call.

    Args:
        method: a method of this package, or one with ``attribute(inputs, target=targets)`` and its model in
            ``forward_func``, as Captum's have. It must be copyable.
        images: (B, C, H, W) floating-point in [0, 1], as the method takes them.
        targets: the class of all images, or one per image: a list or a tensor (B,) of ints.
        stages: number of equal parts into which the layers are divided, at most one per layer; the copy is explained
            after each, which costs ``stages + 1`` attributions.
        values: values to rank: the "absolute" values of a map, or the "signed" ones.
        seed: seed of the random parameters, 64 bits; the method has its own seed.
        image_ids: (B,) integers in [0, 2^32 - 2], passed on to a method that takes them; default: their position.
        internal_batch_size: passed on to the method if given.
        show_progress: draw a progress bar on standard error.

    Returns:
        `ParameterRandomisation`, on the images' device, in float64.

    Raises:
        TypeError: a method without ``attribute``, one that cannot be copied or gives no floating-point tensor, an
            argument of the wrong type.
        ValueError: a model that is not an ``nn.Module``, has no trained parameters, or does not compute with them;
            wrong shapes, NaN or infinity (naming the image), images outside [0, 1], targets of the wrong number, a word
            that is none of ``values``.
        Exception: whatever the method raises.
    """
    check_method(method)
    check_unit_images(images)
    classes = check_targets(targets, images)
    ids = check_image_ids(image_ids, images)
    stages, seed = check_count("stages", stages), check_seed(seed)
    values = check_choice("values", values, get_args(Values))
    options = attribute_options(method, ids, image_ids is not None, internal_batch_size)
    twin = with_copied_model(method)
    check_model(method.forward_func, images)
    model: nn.Module = twin.forward_func
    for module in model.modules():
        if getattr(module, "training", False):  # a copied torch.export program loses its mode
            module.training = False
    if not any(_is_learnt(parameter) for parameter in model.parameters()):
        raise ValueError(f"{name_of(model)} has no parameters to randomise")
    if not len(images):
        empty = images.new_zeros((0, stages), dtype=torch.float64)
        return ParameterRandomisation(empty[:, 0], empty, (0,) * stages)

    generator = torch.Generator("cpu").manual_seed(seed % 2**63)
    output, layers = _layers(model, images[:1])
    counts = sorted({-(-len(layers) * stage // stages) for stage in range(1, stages + 1)})
    correlations = torch.zeros((len(images), len(counts)), dtype=torch.float64, device="cpu")
    with progress(len(counts) + 1, "parameter randomisation", show_progress) as advance:
        learnt = _ranked(explain(method, images, classes, options), values)
        advance(1)
        for stage, (start, end) in enumerate(zip([0, *counts], counts, strict=False)):
            for layer in layers[start:end]:
                _draw(layer, generator)
            if not stage and torch.equal(_output(model, images[:1]), output):
                raise ValueError(
                    f"randomising the last {end} of its {len(layers)} layers does not change the output of "
                    f"{name_of(model)}: it does not compute with the parameters it has"
                )
            found = _ranked(explain(twin, images, classes, options), values)
            correlations[:, stage] = rank_agreement(learnt, found)
            advance(1)
    correlations = correlations.to(images.device)
    return ParameterRandomisation(correlations.mean(1), correlations, tuple(counts))


def _is_learnt(parameter: Tensor) -> bool:
    """Tell whether a parameter is a trained weight and more than a single number."""
    return parameter.is_floating_point() and parameter.numel() > 1


@isolated()
def _output(model: nn.Module, image: Tensor) -> Tensor:
    return call(model, image.clone())


def _layers(model: nn.Module, image: Tensor) -> tuple[Tensor, list[nn.Module]]:
    """Run a model on an image; return its output, and its modules with trained parameters, last one first."""
    ran: list[nn.Module] = []
    with watched(ran):
        output = _output(model, image)
    first: dict[nn.Module, int] = {}
    for number, module in enumerate(ran):
        first.setdefault(module, number)
    place = {"": 0}  # by name; a module that has not run gets the position of the module around it
    found: list[tuple[int, nn.Module]] = []
    for name, module in model.named_modules():
        place[name] = first.get(module, place[name.rpartition(".")[0]])
        if any(_is_learnt(parameter) for parameter in module.parameters(recurse=False)):
            found.append((place[name], module))
    found.sort(key=lambda entry: entry[0])
    return output, [module for _, module in reversed(found)]


@isolated()
def _draw(layer: nn.Module, generator: torch.Generator) -> None:
    """Randomise a module's trained parameters."""
    normalises = _normalises(layer)
    for name, parameter in layer.named_parameters(recurse=False):
        if not _is_learnt(parameter):
            continue
        if name.endswith("bias"):
            parameter.zero_()
        elif parameter.ndim == 1 and normalises:
            parameter.fill_(1)
        else:
            size = parameter.double().square().mean().sqrt().cpu()
            drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float32, device="cpu")
            parameter.copy_(drawn * size)


def _normalises(layer: nn.Module) -> bool:
    """Recognise torch's normalisations by their class, others by their name."""
    if isinstance(layer, (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)):
        return True
    kind = str(getattr(layer, "original_name", type(layer).__name__))  # of a module of TorchScript the first
    return "norm" in kind.lower() and not list(layer.children())


def _ranked(maps: Tensor, values: Values) -> Tensor:
    """Compute the values of maps (B, ...) to rank: (B, n)."""
    pixels = maps.sum(1) if maps.ndim == 4 else maps
    return (pixels.abs() if values == "absolute" else pixels).flatten(1)
