"""Define the interface of attribution methods, and the base classes that implement it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypedDict, TypeVar, overload

from torch import Tensor

from ..engine.config import PathConfig
from ..engine.depth import DepthEvidence, collect_depths, combined_map, evidence_of_pixels
from ..engine.path import PathDetails, follow_path
from ..engine.request import Request, prepared
from ..engine.targets import Target
from ..errors import warn
from ..frequency.two_scale import two_scale_map
from ..progress import progress
from ..runtime.model import Model, check_callable

if TYPE_CHECKING:
    from typing_extensions import Unpack

Config = TypeVar("Config", bound=PathConfig)


def captum_call(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let ``attribute`` accept its input in a tuple of one, as Captum passes it, and return the map in one.

    Captum's NoiseTunnel calls ``attribute.__wrapped__``, which its own methods have from a logging decorator.
    """

    @functools.wraps(function)
    def unpacked(self: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if not (isinstance(inputs, tuple) and len(inputs) == 1):
            return function(self, inputs, *args, **kwargs)
        found = function(self, inputs[0], *args, **kwargs)
        return ((found[0],), *found[1:]) if isinstance(found, tuple) else (found,)

    @functools.wraps(unpacked)
    def call(*args: Any, **kwargs: Any) -> Any:
        return unpacked(*args, **kwargs)

    return call


class CallOptions(TypedDict, total=False):
    """The options that every ``attribute`` accepts; see ``PathMethod.attribute``."""

    image_ids: Sequence[int] | Tensor | None
    internal_batch_size: int | None
    show_progress: bool


class AttributionMethod(Protocol):
    """The interface of this package's methods; methods of other libraries need only ``attribute``.

    ``passes_of`` and ``describe`` accept both.
    """

    @property
    def name(self) -> str:
        """The method's display name."""

    @property
    def passes(self) -> int:
        """Forward and backward passes of the model per image; forward passes if it makes no backward ones."""

    def describe(self) -> dict[str, object]:
        """Describe the options that the maps depend on, in plain values for a record."""

    def attribute(self, inputs: Tensor, target: Target = None, **options: Unpack[CallOptions]) -> Tensor:
        """Compute attribution maps of the inputs' shape, float32, on their device."""


def passes_of(method: object) -> int:
    """Read a method's passes of the model per image; 1 for methods of other libraries, which do not tell."""
    return int(getattr(method, "passes", 1))


def asks_for_gradients(method: object) -> bool:
    """Tell whether a method needs the model's gradients; True for methods of other libraries."""
    return bool(getattr(method, "gradients", True))


def describe(method: object) -> dict[str, object]:
    """Describe a method for a record; for methods of other libraries only by their name."""
    own = getattr(method, "describe", None)
    found: dict[str, object] = own() if callable(own) else {"method": getattr(method, "name", type(method).__name__)}
    return found


def warn_of_strange(maps: Tensor, image_ids: Tensor) -> None:
    """Warn if a map (B, C, H, W) contains NaN or infinity."""
    strange = ~maps.isfinite().flatten(1).all(1)
    if bool(strange.any()):
        warn(
            f"the map of image(s) {image_ids[strange].tolist()[:5]} holds NaN or infinity, as does the model's gradient"
        )


class RequestMethod:
    """A method that makes the maps of a whole call at once, from a checked request.

    Attributes:
        forward_func: the model, as Captum calls it.
        bounds: smallest and largest pixel value.
        gradients: whether the method needs the model's gradients, or only its scores.
    """

    forward_func: Model
    bounds: tuple[float, float]
    gradients = True

    def has_convergence_delta(self) -> bool:
        """Return False: the map need not sum to any value."""
        return False

    def _explain(self, request: Request, show_progress: bool) -> Tensor:
        """Make the maps of a request, of its images' shape, float32."""
        raise NotImplementedError

    @captum_call
    def attribute(
        self,
        inputs: Tensor,
        target: Target = None,
        *,
        image_ids: Sequence[int] | Tensor | None = None,
        internal_batch_size: int | None = None,
        show_progress: bool = False,
    ) -> Tensor:
        """Explain a batch of images; arguments, result and errors are those of ``FAMPE.attribute``.

        Raises:
            ValueError: also for a model that the method cannot explain (see its class).
        """
        with prepared(
            (self.forward_func,),
            inputs,
            target,
            bounds=self.bounds,
            image_ids=image_ids,
            internal_batch_size=internal_batch_size,
            gradients=self.gradients,
        ) as request:
            return self._explain(request, show_progress)


class PathMethod(Generic[Config]):
    """A method that explores the neighbourhood of an image along a path of sign steps.

    It has all members of Captum's ``Attribution`` (``attribute``, ``forward_func``, ``has_convergence_delta``,
    ``multiplies_by_inputs``), so that it can be used wherever Captum expects one, without Captum being installed.
    """

    config: Config
    _config_type: type[Config]

    def __init__(
        self, model: Model, config: Config | None = None, *, explorer: Model | None = None, **overrides: Any
    ) -> None:
        if explorer is not None:
            check_callable(explorer, "explorer")
        self.forward_func = model
        self.explorer = explorer
        self.config = configured(self._config_type, config, overrides)

    @property
    def name(self) -> str:
        """The class's name."""
        return type(self).__name__

    @property
    def passes(self) -> int:
        """Forward and backward passes per image: views + steps * samples, the product twice with an explorer."""
        return self.config.passes + (0 if self.explorer is None else self.config.steps * self.config.samples)

    def describe(self) -> dict[str, object]:
        """Describe the configuration, without the explorer, which is a model."""
        return {"method": self.name, "config": dataclasses.asdict(self.config)}

    @property
    def multiplies_by_inputs(self) -> bool:
        """False: the map has units of the loss along the path and is not a product with the pixels."""
        return False

    def has_convergence_delta(self) -> bool:
        """Return False: there is no baseline, so the map need not sum to any value."""
        return False

    @overload
    def attribute(
        self,
        inputs: Tensor,
        target: Target = ...,
        *,
        return_details: Literal[False] = ...,
        **options: Unpack[CallOptions],
    ) -> Tensor: ...

    @overload
    def attribute(
        self, inputs: Tensor, target: Target = ..., *, return_details: Literal[True], **options: Unpack[CallOptions]
    ) -> tuple[Tensor, PathDetails]: ...

    @captum_call
    def attribute(
        self,
        inputs: Tensor,
        target: Target = None,
        *,
        image_ids: Sequence[int] | Tensor | None = None,
        internal_batch_size: int | None = None,
        show_progress: bool = False,
        return_details: bool = False,
    ) -> Tensor | tuple[Tensor, PathDetails]:
        """Explain a batch of images.

        The map of an image depends on the seed and the image's id, not on the other images: on a CPU the samples are
        bitwise the same for every batch size, chunk size and order. On a GPU their spectra are, and the pixels but for
        the last bits: cuFFT and cuBLAS may add in another order for another batch. On an H100 with torch 2.11, FAMPE's
        pixels were bitwise the same, too, at sizes whose sides have no prime factor above 7. (The model's own gradients
        may differ in the last bits between batch sizes, and sign steps can amplify this; maps then agree to Pearson
        > 0.999.)

        Args:
            inputs: (B, C, H, W), floating-point, values in ``config.bounds``, at least 8 x 8 pixels.
            target: None for the model's own argmax; an int for all images; a list or a tensor (B,); for models with
                several output dimensions a tuple (class, position...).
            image_ids: (B,) integers in [0, 2^32 - 2] that select the images' random numbers. Default: their position
                in the batch, so set them when a data set is explained in several calls.
            internal_batch_size: samples per model pass; memory grows with it and not with T or N. Default: 8 on a CPU,
                64 on a GPU, or as many as fit into the free memory; on a CUDA device, once a model was shown some
                20,000 samples or warmed up, the fastest of 32, 64, 128 and 256 that fit, by a few passes of each. After
                an out-of-memory error it is halved once, with a warning, and the new value is remembered for the model.
            show_progress: show a progress bar of the steps on standard error.
            return_details: also return the run's details, such as cut-offs and gradient scales.

        Returns:
            The maps, float32 (B, C, H, W) on the inputs' device, and with ``return_details`` a ``PathDetails``.

        Raises:
            TypeError: inputs, target, image ids or chunk size of a wrong type.
            torch.OutOfMemoryError: out of memory; the message says what to change.
            ValueError: wrong shape, NaN, values outside the bounds, a model in training mode or on another device, a
                target out of range or of wrong length, a model whose output is not (B, classes), weights for another
                number of layers than it has.
        """
        maps, details = self._explained(
            inputs, target, image_ids, internal_batch_size, show_progress, with_details=return_details, with_pixels=True
        )
        return maps if details is None else (maps, details)

    def maps_and_cutoffs(
        self,
        inputs: Tensor,
        target: Target = None,
        *,
        image_ids: Sequence[int] | Tensor | None = None,
        internal_batch_size: int | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Explain as ``attribute`` does, and also return the cut-offs (B,), or None without any, at no extra cost."""
        maps, details = self._explained(
            inputs, target, image_ids, internal_batch_size, False, with_details=True, with_pixels=False
        )
        assert details is not None  # asked for
        return maps, details.cutoff

    def _explained(
        self,
        inputs: Tensor,
        target: Target,
        image_ids: Sequence[int] | Tensor | None,
        internal_batch_size: int | None,
        show_progress: bool,
        *,
        with_details: bool,
        with_pixels: bool,
    ) -> tuple[Tensor, PathDetails | None]:
        """Make the maps and, if asked for, the details, which include the pixels' evidence even if no map needs it."""
        config = self.config
        models = (self.forward_func,) if self.explorer is None else (self.forward_func, self.explorer)
        with prepared(
            models,
            inputs,
            target,
            bounds=config.bounds,
            image_ids=image_ids,
            internal_batch_size=internal_batch_size,
            precision=config.precision,
            input_diversity=config.input_diversity,
            samples=(config.passes, max(config.samples if config.steps else 0, config.views)),
        ) as request:
            depths, details = None, None
            with progress(config.steps + config.views, self.name, show_progress) as advance:
                if config.views:
                    depths = collect_depths(request, config, advance, with_pixels=with_details and with_pixels)
                if config.steps or with_details:
                    details = follow_path(request, config, advance)
            maps = self._map(request.images, depths, details)
        if details is None or not with_details:
            return maps, None
        return maps, replace(details, depths=depths, model_passes=details.model_passes + config.views)

    def _map(self, images: Tensor, depths: DepthEvidence | None, details: PathDetails | None) -> Tensor:
        """Make the maps, of the images' shape, from the collected evidence."""
        config = self.config
        if depths is None:
            assert details is not None  # a configuration has a path or views
            if config.area_cutoff is None:
                return details.attribution
            maps = two_scale_map(details.attribution, config.area_cutoff)
        elif details is None or not config.steps:
            maps = combined_map(depths, depths.pixels, config)
        else:
            maps = combined_map(depths, evidence_of_pixels(details.attribution), config)
        return maps.expand_as(images).contiguous()


def configured(kind: type[Config], config: Config | None, overrides: dict[str, Any]) -> Config:
    """Replace some fields of a configuration.

    Raises:
        TypeError: an override that is not a field of the configuration.
    """
    known = {field.name for field in dataclasses.fields(kind)}
    unknown = sorted(set(overrides) - known)
    if unknown:
        raise TypeError(
            f"{kind.__name__} has no parameter(s) {', '.join(unknown)}; known are {', '.join(sorted(known))}"
        )
    if config is not None and not isinstance(config, kind):
        raise TypeError(f"config must be a {kind.__name__}, got {type(config).__name__}")
    return dataclasses.replace(config, **overrides) if config is not None else kind(**overrides)
