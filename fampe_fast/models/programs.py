"""Load TorchScript and torch.export programs, files that contain a model with its code."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from ..errors import first_line
from .checkpoints import unreadable


def load_program(path: Path, kind: Literal["TorchScript", "torch.export"]) -> nn.Module:
    """Load a program onto the CPU, which may run code from the file.

    Raises:
        ValueError: the file cannot be read.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # newer torch advises authors of archives to move on
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            if kind == "torch.export":
                return torch.export.load(str(path)).module()
            program: nn.Module = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
        except (RuntimeError, OSError, ValueError, KeyError, AssertionError) as error:
            raise unreadable(path, kind, error) from error
    return program


class Exported(nn.Module):
    """An exported program as a module; its mode is fixed on export, and torch raises if it is set.

    Attributes:
        shape: shape of its input, (B, C, H, W), with None for dynamic sizes; None if unknown.
    """

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self.program = program
        self.shape = _exported_shape(program)
        for module in self.modules():
            module.training = False

    def forward(self, images: Tensor) -> Tensor:
        """Run the program.

        Raises:
            ValueError: images of another shape than it was exported for.
        """
        try:
            logits: Tensor = self.program(images)
        except (AssertionError, RuntimeError) as error:  # its guards; in torch 2.6 they are RuntimeErrors
            if isinstance(error, RuntimeError) and "Expected input at" not in str(error):
                raise
            advice = "Export it with a dynamic batch size (torch.export.Dim)"
            if not re.search(r"(size\(\)|shape)\[0\]", str(error)):
                advice = "Give it images of the size that it was exported for (input_size=...)"
            raise ValueError(
                f"the exported program does not take images of shape {tuple(images.shape)}: {first_line(error)}. "
                f"{advice}"
            ) from error
        return logits

    def train(self, mode: bool = True) -> Exported:
        """Refuse training mode.

        Raises:
            ValueError: ``mode`` is true.
        """
        if mode:
            raise ValueError("an exported program cannot be put into training mode")
        return self


def _exported_shape(program: nn.Module) -> tuple[int | None, ...] | None:
    """Read the shape of a program's single input from its graph."""
    graph = getattr(program, "graph", None)
    inputs = [] if graph is None else [node for node in graph.nodes if node.op == "placeholder"]
    example = inputs[0].meta.get("val") if len(inputs) == 1 else None
    if not isinstance(example, Tensor) or example.ndim != 4:
        return None
    return tuple(side if isinstance(side, int) else None for side in example.shape)
