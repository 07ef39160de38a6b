"""Cache facts and compiled code of a model, for as long as the model lives."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any
from weakref import ref

# By the model's identity: equal models are not the same one, and a model need not be hashable.
_CACHES: dict[int, tuple[ref[Any], dict[str, dict[Hashable, Any]]]] = {}


def cache_of(model: object, purpose: str) -> dict[Hashable, Any]:
    """Return a model's own cache for one purpose; an empty one each time where the model cannot be weakly referenced.

    The cached values must not reference the model, which would then live forever.

    Args:
        model: the cache goes when it does.
        purpose: the kind of cached value, such as "scores".
    """
    key = id(model)
    found = _CACHES.get(key)
    if found is None:
        try:
            # Bound as a default: at the interpreter's exit the global name is gone before the last models are.
            reference = ref(model, lambda _, caches=_CACHES: caches.pop(key, None))  # type: ignore[misc]
        except TypeError:
            return {}
        found = _CACHES.setdefault(key, (reference, {}))
    return found[1].setdefault(purpose, {})


def clear(model: object = None) -> None:
    """Clear what is cached for a model: compiled code, how its output is read, chunk sizes that fit.

    The next call probes the model and compiles again; running calls are not affected. A service that swaps models needs
    this only to free compiled code before it drops a model, or after it has changed a model in a way that does not
    show in the modules and parameters.

    Args:
        model: the model whose caches are cleared; None for all models.
    """
    if model is None:
        _CACHES.clear()
    else:
        _CACHES.pop(id(model), None)
