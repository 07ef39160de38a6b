"""Make maps from the attention of token models: rollout, and attention weighted by its gradient.

Abnar and Zuidema, "Quantifying Attention Flow in Transformers", ACL 2020, arXiv 2005.00928; Chefer, Gur and Wolf,
"Generic Attention-model Explainability for Interpreting Bi-Modal and Encoder-Decoder Transformers", ICCV 2021,
arXiv 2103.15679, the rule for self-attention.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import CheckpointError

from ..checks import check_bounds
from ..engine.request import Request
from ..progress import progress
from ..runtime.activations import find_activations, uncompiled
from ..runtime.model import Model, check_callable, frozen_parameters
from ..runtime.model_probe import call
from .base import RequestMethod, warn_of_strange

AttentionName = Literal["attention_rollout", "attention_gradient"]

# A class token, a distillation token and some registers.
_MOST_PREFIX_TOKENS = 8


class AttentionMethod(RequestMethod):
    """Trace the attention of a token model, such as a vision transformer of timm or torchvision, back to the patches.

    ``attention_rollout`` multiplies ``A / 2 + I / 2`` over the blocks, A the mean over the heads: a forward pass, and
    the same map for every target. ``attention_gradient`` starts from R = I and adds ``mean over heads of
    max(0, A * dlogit/dA) R`` block by block: one pass. The map is the row of the class token, or, if the model averages
    its patches, the mean of their rows; it is resized to the image bilinearly, and is the same in every channel.

    Args:
        model: classifier in pixel space, in evaluation mode.
        name: ``attention_rollout`` or ``attention_gradient``.
        bounds: smallest and largest pixel value.

    Raises:
        TypeError: a value of a wrong type.
        ValueError: an unknown name, or a value out of range; from ``attribute`` also a model without patch tokens that
            attend to each other in every block.
    """

    passes = 1
    multiplies_by_inputs = False

    def __init__(self, model: Model, name: AttentionName, *, bounds: tuple[float, float] = (0.0, 1.0)) -> None:
        if name not in get_args(AttentionName):
            raise ValueError(f"unknown method {name!r} of attention; known are {', '.join(get_args(AttentionName))}")
        check_callable(model)
        self.forward_func, self.name = model, name
        self.bounds = check_bounds(bounds)

    def describe(self) -> dict[str, object]:
        """Describe the options that the maps depend on."""
        return {"method": self.name, "config": {"bounds": self.bounds}}

    def _explain(self, request: Request, show_progress: bool) -> Tensor:
        images = request.images
        maps = torch.zeros_like(images[:, :1])
        with progress(len(images), self.name, show_progress) as advance, frozen_parameters(self.forward_func):
            for rows, found in request.chunks.each(len(images), partial(self._some, request)):
                maps[rows] = found
                advance(rows.stop - rows.start)
        warn_of_strange(maps, request.image_ids)
        return maps.expand_as(images).contiguous()

    def _refusal(self, why: str) -> ValueError:
        return ValueError(
            f"{self.name} needs a model in whose blocks all patch tokens attend to each other, as in a vision "
            f"transformer's, and {type(self.forward_func).__name__} is none: {why}"
        )

    def _some(self, request: Request, rows: slice) -> Tensor:
        """Compute the maps of some images, (b, 1, H, W) float32."""
        pixels, weighted = request.images[rows], self.name == "attention_gradient"
        with torch.set_grad_enabled(weighted), uncompiled(self.forward_func), _Attention() as seen:
            output = call(self.forward_func, pixels.clone().requires_grad_(weighted), request.probed[0])
            place = torch.arange(rows.start, rows.stop, device=pixels.device)
            chosen = request.targets.logits(output, place).gather(1, request.targets.classes[rows, None]).sum()
        prefix, (h, w) = self._layout(request, seen.matrices, len(pixels))
        gradients: Sequence[Tensor | None] = [None] * len(seen.matrices)
        if weighted:
            try:
                gradients = torch.autograd.grad(chosen, seen.matrices, allow_unused=True)
            except CheckpointError as error:  # what is computed again is not seen
                raise ValueError(
                    f"{self.name} cannot see the attention of a model that computes activations again: switch its "
                    "gradient checkpointing off, such as by model.set_grad_checkpointing(False) in timm"
                ) from error
        count = prefix + h * w
        identity = torch.eye(count, dtype=torch.float32, device=pixels.device)
        flow = identity.expand(len(pixels), -1, -1)
        for matrix, gradient in zip(seen.matrices, gradients, strict=True):
            heads = matrix.detach().float().reshape(len(pixels), -1, count, count)
            if not weighted:
                flow = (heads.mean(1) / 2 + identity / 2) @ flow
            elif gradient is not None:
                flow = flow + (heads * gradient.float().reshape(heads.shape)).clamp(min=0).mean(1) @ flow
        readers = flow[:, :1] if prefix and self._reads_first_token() else flow[:, prefix:]
        found = readers.mean(1)[:, prefix:].reshape(-1, 1, h, w)
        return F.interpolate(found, size=pixels.shape[-2:], mode="bilinear", align_corners=False)

    def _layout(self, request: Request, matrices: Sequence[Tensor], images: int) -> tuple[int, tuple[int, int]]:
        """Find the number of tokens before the patches, and the patches' (h, w).

        Raises:
            ValueError: no attention, or a block whose attention is not between all of an image's tokens.
        """
        if not matrices:
            raise self._refusal("no attention was seen in a pass")
        shapes = list(dict.fromkeys(tuple(matrix.shape) for matrix in matrices))
        count = shapes[0][-1]
        for shape in shapes:
            per_image = shape[0] == images if len(shape) == 4 else shape[0] % images == 0
            if shape[-2:] != (count, count) or not per_image:
                raise self._refusal(f"for {images} image(s) it computes attention of the shapes {shapes}")
        found = find_activations(self.forward_func, request.images, request.probed[0])
        # The patches' own grid tells; from a number of tokens alone it can be read in more ways than one.
        for activation in sorted(found, key=lambda activation: activation.layout == "tokens"):
            prefix = count - math.prod(activation.size)
            if 0 <= prefix <= _MOST_PREFIX_TOKENS:
                return prefix, activation.size
        raise self._refusal(f"its attention is among {count} tokens, and no activation has that many positions")

    def _reads_first_token(self) -> bool:
        """Tell whether the head reads the first token, which it does unless a timm model declares pooling."""
        parts = self.forward_func.modules() if isinstance(self.forward_func, nn.Module) else ()
        pools = (getattr(part, "global_pool", None) for part in parts)
        return next((pool for pool in pools if isinstance(pool, str)), "token") in ("", "token")


class _Attention(TorchFunctionMode):
    """Keeps the attention computed inside the context, in this thread, by computing torch's fused calls in steps.

    No module is changed, and no hook is set: every softmax over (tokens, tokens) counts as attention.

    Attributes:
        matrices: (B, heads, N, N) or (B * heads, N, N), in the order of the pass.
    """

    _SOFTMAX = (torch.softmax, torch.Tensor.softmax, F.softmax)

    def __init__(self) -> None:
        super().__init__()
        self.matrices: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found: Any
        if func is F.scaled_dot_product_attention and not (kwargs.get("is_causal") or kwargs.get("enable_gqa")):
            return self._attend(*args, **kwargs)
        if func is F.multi_head_attention_forward:
            found = func(*args, **{**kwargs, "need_weights": True, "average_attn_weights": False})
            # The matrix is a view of what the output was computed from, which alone has a gradient.
            self.matrices.append(found[1] if found[1]._base is None else found[1]._base)
            return found
        found = func(*args, **kwargs)
        if func in self._SOFTMAX and found.ndim == 4 and found.shape[-1] == found.shape[-2]:
            self.matrices.append(found)
        return found

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """Compute ``scaled_dot_product_attention`` of a model in evaluation mode in steps, and keep the matrix."""
        logits = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
        if attn_mask is not None:
            kept = attn_mask.dtype == torch.bool
            logits = logits.masked_fill(~attn_mask, -torch.inf) if kept else logits + attn_mask
        matrix = logits.softmax(-1)
        self.matrices.append(matrix)
        return matrix @ value
