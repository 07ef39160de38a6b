"""Explain batches of pixels on one device: a map for each image, or the reason for none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import BackendUnavailableError, first_line, kind_and_line
from ..methods.explained import explain_batch
from ..models.classifier import Classifier
from ..runtime.chunking import pinned_chunks
from ..runtime.lost_device import is_of_device
from ..runtime.out_of_memory import is_out_of_memory
from .overlays import overlay_png
from .pixels import Pixels, batch_of, same_words
from .result import RowError, RowResult, scaled_map
from .summaries import FloatArray, summarise


class OutOfMemoryError(torch.OutOfMemoryError):
    """The chunk does not fit into memory: repeat the batch with a smaller one."""


class MapShapeError(RuntimeError):
    """The method's maps do not have the expected shape, which is not an image's fault."""


class MethodFailedError(RuntimeError):
    """The method fails on any image here, which is not an image's fault: a compiler is missing, for example."""


class Answer(NamedTuple):
    """The device's result for an image."""

    target: int
    probability: float
    predicted: int
    cutoff: float | None
    attribution: FloatArray
    pixels: Pixels


class Item(NamedTuple):
    """An image to explain."""

    image: Pixels | RowError
    """The pixels, or the reason why there are none; the place in the batch is then filled with other pixels."""
    target: int | None
    """The class to explain; None for the model's prediction."""
    image_id: int
    """Its id in the random stream."""


class Explainer:
    """Explains batches with one method and one model, on the model's device."""

    def __init__(self, method: Any, classifier: Classifier, shape: tuple[int, int, int]) -> None:
        """Store the method and the model.

        Args:
            method: the method, made for the classifier.
            classifier: the model, on its device.
            shape: (C, H, W) of the maps; one channel if all are equal.
        """
        self.method = method
        self.classifier = classifier
        self._shape = shape
        self._device = classifier.mean.device
        size = (classifier.channels, *classifier.input_size)
        self._placeholder = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)

    def __call__(self, items: Sequence[Item], chunk: int) -> list[Answer | RowError]:
        """Explain a batch or, if that fails, its images one by one.

        Args:
            items: the images; the last bits of a map may depend on their number and on ``chunk``.
            chunk: samples per model pass.

        Raises:
            OutOfMemoryError: the chunk does not fit.
            MapShapeError: the maps do not have the expected shape.
            MethodFailedError: noise cannot be explained either.
            RuntimeError: an error that is not an image's fault, such as a lost device.
        """
        errors = [item.image for item in items if isinstance(item.image, RowError)]
        if len(errors) == len(items):
            return [*errors]
        try:
            return self._answers(items, chunk)
        except Exception as error:
            reason, full = first_line(error), isinstance(error, MemoryError) or is_out_of_memory(error)
            if isinstance(error, (BackendUnavailableError, MapShapeError, ImportError)) or is_of_device(error):
                raise
            found = RowError(same_words(kind_and_line(error)), "permanent")
        # Outside the except block the traceback, which holds the call's tensors, is gone.
        if full:
            if chunk > 1:
                raise OutOfMemoryError(reason)
            found = RowError("out of memory", "transient")
        if len(items) == 1 and not full:
            self._check_method(chunk)
        if full or len(items) == 1:
            return [item.image if isinstance(item.image, RowError) else found for item in items]
        return [self([item], chunk)[0] for item in items]

    def _check_method(self, chunk: int) -> None:
        """Explain noise, after an image has failed.

        Raises:
            MethodFailedError: it fails, too.
        """
        try:
            self._answers([Item(self._placeholder, None, 0)], chunk)
        except Exception as error:
            if is_out_of_memory(error) or is_of_device(error) or isinstance(error, MapShapeError):
                raise
            raise MethodFailedError(f"no image can be explained here: {kind_and_line(error)}") from error

    def _answers(self, items: Sequence[Item], chunk: int) -> list[Answer | RowError]:
        there = [not isinstance(item.image, RowError) for item in items]
        images = [self._placeholder if isinstance(item.image, RowError) else item.image for item in items]
        with pinned_chunks():
            found = explain_batch(
                self.method,
                self.classifier,
                batch_of(images, self._device),
                [item.target if here else None for item, here in zip(items, there, strict=True)],
                image_ids=[item.image_id for item in items],
                internal_batch_size=chunk,
            )
        maps = self._stored_channels(found.maps)
        chosen, probabilities = found.targets.cpu(), found.probabilities.cpu()
        cutoffs = None if found.cutoffs is None else found.cutoffs.tolist()
        return [
            item.image
            if isinstance(item.image, RowError)
            else Answer(
                target := int(chosen[k]),
                float(probabilities[k, target]),
                int(probabilities[k].argmax()),
                None if cutoffs is None else cutoffs[k],
                maps[k].numpy(),
                item.image,
            )
            for k, item in enumerate(items)
        ]

    def _stored_channels(self, maps: Tensor) -> Tensor:
        """Select the channels of maps to store, on the CPU."""
        shape = self._shape
        if shape[0] == 1 and maps.shape[1] > 1:
            if not channels_are_equal(maps):
                raise MapShapeError("maps were to have equal channels, and they differ in this one")
            maps = maps[:, :1]
        if tuple(maps.shape[1:]) != shape:
            raise MapShapeError(f"maps were to be {shape}, and this one is {tuple(maps.shape[1:])}")
        return maps.cpu()

    def finish(self, answer: Answer, dtype: str, overlay: bool) -> RowResult:
        """Convert an answer to stored or sent form; needs no device.

        Args:
            answer: answer of a call.
            dtype: dtype of the map, "float16" or "float32".
            overlay: whether to draw the map over the image.
        """
        stored, scale = scaled_map(answer.attribution, dtype)
        return RowResult(
            answer.target,
            self.classifier.class_name(answer.target),
            answer.probability,
            answer.predicted,
            answer.cutoff,
            scale,
            stored,
            summarise(answer.attribution),
            overlay_png(answer.pixels, answer.attribution) if overlay else None,
        )


def channels_are_equal(maps: Tensor) -> bool:
    """Tell whether the channels of maps (B, C, H, W) float32 are bitwise equal."""
    bits = maps.contiguous().view(torch.int32)
    return torch.equal(bits, bits[:, :1].expand_as(bits))


def map_shape(maps: Tensor) -> tuple[int, int, int]:
    """Return the stored shape of maps (B, C, H, W): one channel if all are equal and not zero."""
    _, channels, height, width = maps.shape
    return (1 if channels_are_equal(maps) and bool(maps.any()) else channels), height, width


def noise_for(classifier: Classifier) -> Tensor:
    """Make an image of noise, (1, C, H, W) on the model's device, to try a method."""
    shape = (1, classifier.channels, *classifier.input_size)
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(classifier.mean.device)


def explain_noise(method: Any, noise: Tensor, chunk: int) -> Tensor:
    """Explain the image of noise once, so that a method that fails is refused before any work.

    Raises:
        ValueError, TypeError, ImportError: the method refuses the model or fails on it; the message says why.
    """
    try:
        maps: Tensor = method.attribute(noise, internal_batch_size=chunk)
        return maps
    except (ValueError, TypeError, ImportError):
        raise
    except Exception as error:  # foreign code may raise anything
        if is_out_of_memory(error):
            raise
        name = getattr(method.forward_func, "name", "the model")
        raise ValueError(f"{method.name} fails on {name}: {first_line(error)}") from error
