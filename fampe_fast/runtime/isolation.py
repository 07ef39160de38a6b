"""Isolate a call from the caller's torch settings: inference mode, grad mode and autocast."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

DEVICE_TYPES = ("cpu", "cuda", "xpu", "mps")


@contextmanager
def isolated(*, gradients: bool = False) -> Iterator[None]:
    """Run a call outside the caller's inference mode and autocast, so that its results do not depend on them.

    Inference mode would keep samples out of the autograd graph, and autocast would run a model in half precision where
    the configuration says float32. Also a decorator: ``@isolated()``.

    Args:
        gradients: whether autograd is on inside.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.set_grad_enabled(gradients))  # leaving inference mode has switched it on
        for kind in DEVICE_TYPES:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield
