"""Check and normalise the arguments of a call, in the same way for all methods, attacks and Occluded Frequency."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..checks import check_image_ids, check_images
from ..runtime.chunk_probe import Rows
from ..runtime.chunking import ChunkSize
from ..runtime.cpu_memory import kept_memory
from ..runtime.isolation import isolated
from ..runtime.model import Model, check_model
from ..runtime.model_probe import ModelInfo, outputs, probe, takes_size
from ..runtime.outputs import Reading
from ..runtime.parts import parts_of, walked_once
from .config import Precision
from .placements import padded_size
from .precision import arithmetic
from .targets import Target, Targets, first_choices, resolve_targets


@dataclass(frozen=True)
class Request:
    """The checked arguments of a call.

    Attributes:
        models: the models that are called; the first one's output is explained.
        images: (B, C, H, W) float32, contiguous.
        image_ids: (B,) int64, the images' names in the random stream.
        targets: the images' targets.
        chunks: images per model pass.
        probed: the ``ModelInfo`` of each model.
        takes_frames: whether each model takes the larger frames of input diversity, where there is any.
        output: (B, classes), the first model's output for the images, if it had to choose the targets.
    """

    models: tuple[Model, ...]
    images: Tensor
    image_ids: Tensor
    targets: Targets
    chunks: ChunkSize
    probed: tuple[ModelInfo, ...]
    takes_frames: tuple[bool, ...]
    output: Tensor | None = None

    @property
    def reading(self) -> Reading:
        """The meaning of the first model's output."""
        return self.probed[0].reading


@contextmanager
def prepared(
    models: Sequence[Model],
    inputs: object,
    target: Target,
    *,
    bounds: tuple[float, float],
    image_ids: Sequence[int] | Tensor | None = None,
    internal_batch_size: int | None = None,
    precision: Precision = "auto",
    input_diversity: bool = False,
    gradients: bool = True,
    samples: tuple[int, int] = (0, 0),
) -> Iterator[Request]:
    """Check the arguments of a call, and isolate the code inside the context from the caller's torch settings.

    Args:
        models: the models that are called; the first one's output is explained.
        inputs: (B, C, H, W), as the user gave it.
        target: as the user gave it.
        bounds: smallest and largest pixel value.
        image_ids: as the user gave it; None numbers the images from 0.
        internal_batch_size: as the user gave it; None is the device's usual size, or as many as fit.
        precision: precision of the passes.
        input_diversity: whether samples are shown in larger frames, which some models do not take.
        gradients: whether the models must provide gradients, or only scores.
        samples: samples per image in total, and those that may share a pass; a long run may choose the images per pass
            by them.

    Raises:
        TypeError: inputs, target, ids or chunk size of a wrong type, or a model whose output is no tensor.
        ValueError: wrong shape, NaN, values outside the bounds; a model in training mode, on another device, without
            gradients where they are needed, or whose output contradicts its declared meaning; a target out of range, or
            unknown to a model other than the first.
        torch.OutOfMemoryError: out of memory; the message says what to change.
    """
    device = inputs.device if isinstance(inputs, Tensor) else torch.device("cpu")
    with isolated(), kept_memory(device), walked_once():
        images = check_images(inputs, bounds)
        for model in models:
            check_model(model, images)
            if gradients:
                _check_trainable_tensors(model)
        ids = check_image_ids(image_ids, images)
        probed = tuple(probe(model, images) for model in models)
        for one in probed if gradients else ():
            if one.no_gradient:
                raise ValueError(f"the model's output has no gradient with respect to the image: {one.no_gradient}")
        if gradients:
            rows = Rows(*(len(images) * each for each in samples))
            around = partial(arithmetic, precision, images.device)
            chunks = ChunkSize.for_gradients(
                tuple(models), images, internal_batch_size, precision, probed, rows, around
            )
        else:
            chunks = ChunkSize.for_scores(models[0], images, internal_batch_size, probed[0])
        with chunks.advice():
            output = None
            if target is None and len(images):
                output = chunks.run(partial(outputs, models[0], images, probed=probed[0]), len(images))
                targets = first_choices(output)
            else:
                targets = resolve_targets(models[0], images, target, chunks.size, probed[0])
            for one in probed[1:] if len(images) else ():
                _check_explorer(one, probed[0], targets)
            frame = padded_size(images.shape[-2]), padded_size(images.shape[-1])
            asked = input_diversity and len(images) > 0
            takes = tuple(
                not asked or takes_size(model, images, one, *frame) for model, one in zip(models, probed, strict=True)
            )
            yield Request(tuple(models), images, ids, targets, chunks, probed, takes, output)


def _check_explorer(explorer: ModelInfo, model: ModelInfo, targets: Targets) -> None:
    """Refuse an explorer without the classes that are explained.

    Raises:
        ValueError: an output of another number of dimensions, or without a target's class or place.
    """
    indices = targets.classes[:, None]
    if targets.places is not None:
        indices = torch.cat([indices, targets.places], 1)
    sizes = torch.tensor(explorer.shape, device=indices.device)
    if len(sizes) != indices.shape[1] or bool(((indices < -sizes) | (indices >= sizes)).any()):
        raise ValueError(
            f"the explorer's output for one image is {explorer.shape}, without the target's position, and the model's "
            f"is {model.shape}: expected an explorer of the same classes"
        )


def _check_trainable_tensors(model: Model) -> None:
    """Refuse tensors that autograd cannot use.

    Raises:
        ValueError: parameters or buffers made in inference mode.
    """
    for name, tensor in parts_of(model).tensors:
        if tensor.is_inference():
            raise ValueError(
                f"the model's {name!r} was made under torch.inference_mode, so autograd cannot use it: build or "
                "load the model outside, or take a copy: copy.deepcopy(model)"
            )
