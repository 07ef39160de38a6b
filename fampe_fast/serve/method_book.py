"""Make the methods for requests: those of the service, with the request's passes and seed."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..answers.explainer import Explainer, explain_noise, map_shape, noise_for
from ..catalog import method_options
from ..files import json_text
from ..methods.base import PathMethod, passes_of
from ..methods.registry import check_options, create_method
from ..methods.settings import everything_of, unfiltered
from ..models.classifier import Classifier
from ..runtime.chunking import pinned_chunks
from ..runtime.compilation import resolve_compile
from ..runtime.out_of_memory import is_out_of_memory
from .asks import Ask, AskError

_KEPT = 64
# Passes with which a method that makes single ones takes a path.
_A_PATH = 10


@dataclass(frozen=True)
class Recipe:
    """A method with a request's options.

    Attributes:
        explainer: explainer with the method.
        options: options of ``create_method``.
        configuration: digest of everything its maps depend on besides image and model (``configuration_digest``).
        passes: model passes per map.
        seed: seed of its random stream; None for a method without one.
    """

    explainer: Explainer
    options: Mapping[str, Any]
    configuration: str
    passes: int
    seed: int | None


class MethodBook:
    """The methods of a service, made on first use; called by one thread at a time."""

    def __init__(
        self,
        classifier: Classifier,
        options: Mapping[str, Mapping[str, Any]],
        max_passes: int,
        internal_batch_size: int,
    ) -> None:
        """Set the methods that may be made.

        Args:
            classifier: the model.
            options: the methods' names, the first of which is the default, with their options.
            max_passes: largest number of passes per map.
            internal_batch_size: samples per model pass when a method is first tried.
        """
        self._classifier = classifier
        self._options = options
        self._max_passes = max_passes
        self._chunk = internal_batch_size
        self._shapes: dict[str, tuple[int, int, int]] = {}
        self._recipes: OrderedDict[Ask, Recipe] = OrderedDict()

    @property
    def names(self) -> tuple[str, ...]:
        """The methods' names, the default first."""
        return tuple(self._options)

    @property
    def default(self) -> str:
        """The method used if none is named."""
        return self.names[0]

    def check(self, ask: Ask) -> None:
        """Refuse invalid options, as far as possible without making the method.

        Raises:
            AskError: an unknown method or option, or an invalid value.
        """
        if ask.kind == "predict":
            return
        if ask.method not in self._options:
            raise AskError(f"the method {ask.method[:60]!r} is not served; served are {', '.join(self.names)}")
        if ask.passes is not None and ask.passes > self._max_passes:
            raise AskError(f"passes may be at most {self._max_passes} here, got {ask.passes}")
        known = {option.name for option in method_options(ask.method)}
        for name in ("passes", "seed"):
            if getattr(ask, name) is not None and name not in known:
                raise AskError(f"the method {ask.method} has no {name}")
        try:
            check_options(ask.method, **self._options_of(ask))
        except (ValueError, TypeError) as error:
            raise AskError(str(error)) from error

    def _options_of(self, ask: Ask) -> dict[str, Any]:
        asked = {name: getattr(ask, name) for name in ("passes", "seed") if getattr(ask, name) is not None}
        return {**self._options[ask.method], **asked}

    def warm_up(self) -> None:
        """Make a first map by every method, where it is compiled also along a path, so that no request waits for that.

        Raises:
            ValueError, TypeError, ImportError: a method cannot be used with the model.
        """
        for name in self.names:
            method = unfiltered(self.recipe(Ask("explain", name)).explainer.method)
            if not isinstance(method, PathMethod) or method.config.steps or self._max_passes < _A_PATH:
                continue
            if resolve_compile(method.config.compile, self._classifier.mean.device) != "off":
                self._try(self.recipe(Ask("explain", name, passes=_A_PATH)).explainer.method)

    def _try(self, method: Any) -> Tensor:
        """Explain noise as requests are explained: what ``auto`` compiles depends on it."""
        noise = noise_for(self._classifier)
        try:
            with pinned_chunks():
                return explain_noise(method, noise, self._chunk)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        return explain_noise(method, noise, self._chunk)  # which tries a smaller chunk, as the device does later

    def recipe(self, ask: Ask) -> Recipe:
        """Return the method of a request.

        Raises:
            ValueError, TypeError, ImportError: the method cannot be used with the model.
        """
        key = ask._replace(reproducible=False)
        if key in self._recipes:
            self._recipes.move_to_end(key)
            return self._recipes[key]
        options = self._options_of(ask)
        method = create_method(ask.method, self._classifier, **options)
        if ask.method not in self._shapes:
            self._shapes[ask.method] = map_shape(self._try(method))
        everything = everything_of(method, self._classifier)
        recipe = Recipe(
            Explainer(method, self._classifier, self._shapes[ask.method]),
            options,
            configuration_digest(everything),
            passes_of(method),
            _seed_of(method),
        )
        self._recipes[key] = recipe
        while len(self._recipes) > _KEPT:
            self._recipes.popitem(last=False)
        return recipe


def _seed_of(method: Any) -> int | None:
    """Read the seed of a method, or of the method that it filters."""
    inner = unfiltered(method)
    seed = getattr(getattr(inner, "config", inner), "seed", None)
    return seed if isinstance(seed, int) else None


def configuration_digest(everything: Mapping[str, object]) -> str:
    """Digest a method's whole configuration (``everything_of``): 16 hexadecimal digits of SHA-256."""
    return hashlib.sha256(json_text(everything).encode()).hexdigest()[:16]
