"""Call pytorch-grad-cam's class activation maps through the same interface as all other methods, for comparison.

Grad-CAM: Selvaraju et al., ICCV 2017; Grad-CAM++: Chattopadhay et al., WACV 2018; HiResCAM: Draelos and Carin,
arXiv 2011.08891; LayerCAM: Jiang et al., TIP 2021; FullGrad: Srinivas and Fleuret, NeurIPS 2019.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ..checks import check_bounds
from ..engine.request import Request
from ..errors import warn
from ..progress import progress
from ..runtime.activations import (
    Activation,
    find_activations,
    layer_of,
    named_activations,
    passed_on_in_pieces,
    uncompiled,
)
from ..runtime.model import Model, check_callable, frozen_parameters
from ..runtime.model_probe import call
from .base import RequestMethod, warn_of_strange

CamName = Literal["gradcam", "gradcam_plus_plus", "hirescam", "layercam", "fullgrad"]


def _grad_cam() -> ModuleType:
    try:
        import pytorch_grad_cam
    except ImportError as error:
        raise ImportError(
            f"{', '.join(get_args(CamName))} come from pytorch-grad-cam, which cannot be imported ({error}): "
            "pip install grad-cam"
        ) from error
    module: ModuleType = pytorch_grad_cam
    return module


class GradCAMMethod(RequestMethod):
    """One of pytorch-grad-cam's methods, for one layer or, with ``fullgrad``, all biases; maps are in [0, 1].

    pytorch-grad-cam shifts and scales every map to [0, 1] and resizes it to the image (OpenCV, bilinear). It explains
    the model's output for the target unchanged: a logit, or a probability if the model returns those. The activation is
    the layer's return value, even if a later operation changes it in place (pytorch-grad-cam by itself would then read
    the changed values on a CPU). FullGrad counts the input and the biases of ``Conv2d`` and ``BatchNorm2d``, no others,
    and each layer's first call. A map is the same in every channel. A warning names images whose gradient does not
    reach the layer.

    Args:
        model: classifier in pixel space, in evaluation mode; an ``nn.Module``, as its layers are read.
        name: ``gradcam``, ``gradcam_plus_plus``, ``hirescam``, ``layercam`` or ``fullgrad``.
        layer: name of the module whose output is explained, as in ``model.named_modules()``, followed by ``#1`` for its
            second call; None chooses the last one with spatial positions and a gradient that every path to the output
            passes through.
        bounds: smallest and largest pixel value.

    Raises:
        ImportError: pytorch-grad-cam is not installed; the message says how to install it.
        TypeError: a value of a wrong type, or a model that is not an ``nn.Module``.
        ValueError: an unknown name, or a layer that the model does not have; from ``attribute`` also a model without a
            layer to explain, or a layer that ``named_activations`` refuses.
    """

    passes = 1
    multiplies_by_inputs = False

    def __init__(
        self,
        model: Model,
        name: CamName,
        *,
        layer: str | None = None,
        bounds: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        package = _grad_cam()
        if name not in get_args(CamName):
            raise ValueError(f"unknown method {name!r} of pytorch-grad-cam; known are {', '.join(get_args(CamName))}")
        check_callable(model)
        if not isinstance(model, nn.Module):
            raise TypeError(f"{name} reads the model's layers: it needs an nn.Module, got {type(model).__name__}")
        if layer is not None:
            if name == "fullgrad":
                raise TypeError("fullgrad explains all layers with a bias, and takes no layer")
            if not isinstance(layer, str):
                raise TypeError(f"layer must be the name of a module or None, got {layer!r}")
            layer_of(model, layer)
        self.forward_func: nn.Module = model
        self.name = name
        self.layer = layer
        self.bounds = check_bounds(bounds)
        self._package = package

    def describe(self) -> dict[str, object]:
        """Describe what the maps depend on besides the model."""
        return {"method": self.name, "config": {"layer": self.layer, "bounds": self.bounds}}

    def _explain(self, request: Request, show_progress: bool) -> Tensor:
        images = request.images
        maps = torch.zeros_like(images[:, :1])
        with (
            progress(len(images), self.name, show_progress) as advance,
            frozen_parameters(self.forward_func),
            torch.enable_grad(),
            uncompiled(self.forward_func),
        ):
            explained = None if self.name == "fullgrad" or not len(images) else self._activation(request)
            for rows, found in request.chunks.each(len(images), partial(self._some, request, explained)):
                maps[rows] = found
                advance(rows.stop - rows.start)
        warn_of_strange(maps, request.image_ids)
        return maps.expand_as(images).contiguous()

    def _activation(self, request: Request) -> Activation:
        """Find the activation that is explained."""
        if self.layer is not None:
            (named,) = named_activations(self.forward_func, request.images, [self.layer], request.probed[0])
            return named
        found = find_activations(self.forward_func, request.images, request.probed[0])
        if not found:
            raise ValueError(
                f"{self.name} found no activation of {type(self.forward_func).__name__} with spatial positions "
                "that every path to the output passes through: set layer=... to the name of a module"
            )
        return found[-1]

    def _some(self, request: Request, explained: Activation | None, rows: slice) -> Tensor:
        """Compute the maps of some images, (b, 1, H, W) float32."""
        numbers = range(rows.start, rows.stop)
        if explained is None:  # one image at a time, as every channel of every layer is resized
            found = [self._full_grad(request, index) for index in numbers]
        else:
            found = [self._of_layer(request, explained, numbers)]
        return torch.cat(found)[:, None].to(request.images.device)

    def _of_layer(self, request: Request, explained: Activation, numbers: Sequence[int]) -> Tensor:
        """Compute the maps of some images from one layer, (b, H, W); warn of images without a gradient."""
        kind = {"gradcam": "GradCAM", "gradcam_plus_plus": "GradCAMPlusPlus", "hirescam": "HiResCAM"}
        layer = explained.module()
        assert layer is not None
        cam = getattr(self._package, kind.get(self.name, "LayerCAM"))(_Shown(self.forward_func, request), [])
        cam.target_layers = [layer]
        recorder = cam.activations_and_grads = _Recorder(self._forward(request), [layer], explained)
        maps = self._maps(cam, request, numbers, gradient=True)
        flags = recorder.flat()
        if len(flags) != len(numbers):
            raise passed_on_in_pieces(explained.name, len(flags), len(numbers))
        unreached = [int(request.image_ids[number]) for number, flat in zip(numbers, flags, strict=True) if flat]
        if unreached:
            warn(
                f"the map of image(s) {unreached[:5]} is 0 everywhere: no gradient reaches the output of "
                f"{explained.name!r}; give another layer=..."
            )
        return maps

    def _full_grad(self, request: Request, index: int) -> Tensor:
        """Compute the map of one image from all biases, (1, H, W)."""
        bias_of = self._package.FullGrad.get_bias_data
        own = {"get_bias_data": lambda cam, layer: bias_of(cam, layer).float()}  # NumPy has no bfloat16
        cam = type("FullGrad", (self._package.FullGrad,), own)(_Shown(self.forward_func, request), [])
        cam.activations_and_grads.release()
        if not cam.target_layers:
            kind = type(self.forward_func).__name__
            raise ValueError(
                f"fullgrad counts the biases of Conv2d and BatchNorm2d, and {kind} has none: load_classifier folds "
                "batch norms of every kind into the convolutions before them"
            )
        cam.activations_and_grads = _Recorder(self._forward(request), cam.target_layers)
        return self._maps(cam, request, [index], gradient=False)

    def _forward(self, request: Request) -> Callable[[Tensor], Tensor]:
        return lambda pixels: call(self.forward_func, pixels, request.probed[0])

    def _maps(self, cam: Any, request: Request, numbers: Sequence[int], *, gradient: bool) -> Tensor:
        """Compute the maps of some images with pytorch-grad-cam, (b, H, W)."""
        pixels = request.images[numbers[0] : numbers[-1] + 1].clone().requires_grad_(gradient)
        chosen = [request.targets.of(number) for number in numbers]
        return torch.from_numpy(cam(pixels, [partial(_score, place) for place in chosen]))


def _score(place: int | tuple[int, ...], output: Tensor) -> Tensor:
    return output[place]


class _Shown(nn.Module):
    """The user's model for pytorch-grad-cam, which may read the layers but not change modes or gradients."""

    def __init__(self, model: nn.Module, request: Request) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.empty(0, device=request.images.device))  # the first one's is the device
        self.model = model

    def eval(self) -> _Shown:
        """Return the model unchanged."""
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Leave the gradients unchanged."""


class _Recorder:
    """Replaces pytorch-grad-cam's hooks: records one call of each layer, in one pass and one thread, on return.

    Attributes:
        activations: (B, C, h, w) float32 on the CPU, of the explained layer.
    """

    def __init__(
        self, forward: Callable[[Tensor], Tensor], layers: Sequence[nn.Module], explained: Activation | None = None
    ) -> None:
        self.activations: list[Tensor] = []
        self._forward, self._layers, self._explained = forward, layers, explained
        self._number = 0 if explained is None else explained.call
        self._thread = threading.get_ident()
        self._calls = [0] * len(layers)
        self._gradients: dict[int, Tensor] = {}

    def __call__(self, pixels: Tensor) -> Tensor:
        with self._hooks():
            return self._forward(pixels)

    @property
    def gradients(self) -> list[Tensor]:
        """The gradients in the layers' order; zero for a layer without one."""
        none = torch.zeros(1, 1, 1, 1, dtype=torch.float32, device="cpu")
        return [self._gradients.get(place, none) for place in range(len(self._layers))]

    def flat(self) -> list[bool]:
        """Tell for each image whether the explained layer's gradient is 0 everywhere."""
        (gradient,) = self.gradients
        zero: list[bool] = (gradient == 0).flatten(1).all(1).expand(len(self.activations[0])).tolist()
        return zero

    def release(self) -> None:
        """Do nothing: the hooks are gone with the pass."""

    @contextmanager
    def _hooks(self) -> Iterator[None]:
        hooks = [layer.register_forward_hook(partial(self._see, place)) for place, layer in enumerate(self._layers)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _see(self, place: int, layer: nn.Module, arguments: object, output: Any) -> None:
        if threading.get_ident() != self._thread:
            return
        self._calls[place] += 1
        if self._calls[place] - 1 != self._number:
            return
        output = output[0] if isinstance(output, (tuple, list)) else output
        if self._explained is not None:
            self.activations.append(self._of_places(output).clone())  # later modules may write into it
        if output.requires_grad:
            output.register_hook(partial(self._keep, place))

    def _keep(self, place: int, gradient: Tensor) -> None:
        self._gradients[place] = self._of_places(gradient)

    def _of_places(self, values: Tensor) -> Tensor:
        values = values.detach() if self._explained is None else self._explained.spatial(values.detach())
        return values.float().cpu()
