"""Captures on a CPU: a stand-in for a CUDA graph, which keeps the function and the tensors of its capture."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from fampe_fast.runtime import graph_capture
from fampe_fast.runtime.graph_capture import Pass


class FakeStream:
    """Orders nothing: on a CPU calls follow each other."""

    def wait_stream(self, other: FakeStream) -> None:
        """Wait for nothing."""

    def wait_event(self, event: FakeEvent) -> None:
        """Wait for nothing."""

    def synchronize(self) -> None:
        """Wait for nothing."""


class FakeEvent:
    """Marks nothing."""

    def record(self, stream: FakeStream) -> None:
        """Note nothing."""


class FakeGraph:
    """Replays what it holds: the function of the capture, with the tensors it was captured with."""

    captured = 0
    replayed = 0

    def __init__(self, function: Pass, arguments: Sequence[Tensor]) -> None:
        FakeGraph.captured += 1
        self._function, self._arguments = function, arguments
        self.results = function(*arguments)

    def replay(self) -> None:
        """Write new results to the places of the first ones."""
        FakeGraph.replayed += 1
        for place, result in zip(self.results, self._function(*self._arguments), strict=True):
            place.copy_(result)


def capture_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``GraphedCall`` capture on a CPU, and count from zero."""
    FakeGraph.captured = FakeGraph.replayed = 0
    stream = FakeStream()

    def within(given: Any) -> AbstractContextManager[None]:
        return nullcontext()

    def captured(function: Pass, arguments: Sequence[Tensor], device: torch.device) -> tuple[FakeGraph, list[Tensor]]:
        graph = FakeGraph(function, arguments)
        return graph, graph.results

    monkeypatch.setattr(torch.cuda, "device", within)
    monkeypatch.setattr(torch.cuda, "stream", within)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda *device: stream)
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: None, raising=False)
    monkeypatch.setattr(graph_capture, "_capture_stream", lambda device: stream)
    monkeypatch.setattr(graph_capture, "reserved_memory", lambda device: 0)
    monkeypatch.setattr(graph_capture, "_captured", captured)
