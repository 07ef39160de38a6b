"""Capture the gradients of a path's chunks in CUDA graphs, as they are, until a run is long enough to compile them."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterator
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..ops.backends import VARIABLE as BACKEND
from ..runtime.cast_weights import cast_weights
from ..runtime.cuda_graphs import graphed_calls
from ..runtime.graph_capture import can_capture
from ..runtime.model import Model
from ..runtime.model_probe import ModelInfo
from ..runtime.model_state import State, state_of
from ..runtime.parts import parts_of
from .samplers import Batch, Chunk

Gradients = Callable[[Model, Batch, Chunk], Tensor]


class GraphedChunks:
    """Runs chunks by CUDA graphs where ``auto`` finds that they pay; the gradients are the plain ones to the bit."""

    def __init__(
        self,
        model: Model,
        probed: ModelInfo,
        function: Hashable,
        kind: Hashable,
        gradients: Gradients,
        cast: torch.dtype | None = None,
        channels_last: bool = False,
    ) -> None:
        """Store what a capture needs; none is made before the first call.

        Args:
            model: the model, in evaluation mode, its parameters frozen.
            probed: the model's ``ModelInfo``.
            function: of the model, for ``release_captures``.
            kind: everything else that the gradients depend on besides the model, the batch and the chunk.
            gradients: the gradients of a chunk's samples, (P, C, H, W), by a model or its twin.
            cast: dtype of the twin's weights, as in ``cast_weights``.
            channels_last: whether the twin's weights are turned.
        """
        self._model, self._probed, self._function, self._gradients = model, probed, function, gradients
        self._kind = kind, cast, channels_last
        self._weights = cast, channels_last

    @cached_property
    def _state(self) -> State | None:
        """The model's state, which nobody changes during a call."""
        return state_of(parts_of(self._model))

    def __call__(self, batch: Batch, chunk: Chunk) -> Tensor | None:
        """Compute the gradients of a chunk's samples, float32 (P, C, H, W); None where it is to run as it is."""
        if self._probed.hidden or not can_capture(chunk.samples.device):
            return None

        def gradients(*tensors: Tensor) -> list[Tensor]:
            given = iter(tensors)
            own, of_batch = _filled(chunk, given), _filled(batch, given)
            # In the graph, so that a replay reads the weights as they are then.
            with cast_weights(self._model, *self._weights) as twin:
                return [self._gradients(twin, of_batch, own)]

        kind = (*self._kind, os.environ.get(BACKEND), batch.height, batch.width)
        calls = graphed_calls(self._model, self._function, kind, "the gradients")
        given, kept = [*_tensors(chunk), *_tensors(batch)], self._probed.saved_bytes
        found = calls.run(gradients, given, lambda: self._state, kept, always=False)
        return None if found is None else found[0]


def _tensors(values: Any) -> Iterator[Tensor]:
    """List the tensors of nested tuples, in order."""
    for value in values:
        if isinstance(value, tuple):
            yield from _tensors(value)
        elif isinstance(value, Tensor):
            yield value


def _filled(values: Any, tensors: Iterator[Tensor]) -> Any:
    """Rebuild nested tuples with other tensors in the places of theirs."""
    found = [
        _filled(value, tensors) if isinstance(value, tuple) else next(tensors) if isinstance(value, Tensor) else value
        for value in values
    ]
    return type(values)(*found) if hasattr(values, "_fields") else tuple(found)
