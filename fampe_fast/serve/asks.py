"""Read what a request asks for, and refuse what the service does not do, before any image is looked at."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from ..checks import LARGEST_ID

Kind = Literal["explain", "predict"]


class AskError(ValueError):
    """A request that cannot be understood; the message is for its sender."""


class Ask(NamedTuple):
    """What is asked of every image of a request; images with equal asks may share a batch."""

    kind: Kind
    method: str
    passes: int | None = None
    """None for the method's own."""
    seed: int | None = None
    """None for the service's own."""
    reproducible: bool = False
    """Whether the image is explained alone, so that its map does not depend on the company it would have had."""


class Instance(NamedTuple):
    """An image of a request, not decoded yet."""

    data: bytes
    target: int | None = None
    """The class to explain; None for the model's own choice."""
    image_id: int | None = None
    """Its name in the random stream; None for the one that its pixels give it."""


class Asked(NamedTuple):
    """A request: what is asked, and of which images."""

    ask: Ask
    instances: tuple[Instance, ...]


_OF_ALL = ("method", "passes", "seed", "reproducible")
_OF_ONE = ("target", "image_id")
_LARGEST_SEED = 2**63 - 1
# JSON of base64 with room for names and numbers around it.
_DEEP = 32


def read_image_request(kind: Kind, query: Iterable[tuple[str, str]], default_method: str, data: bytes) -> Asked:
    """Read a request whose body is an image and whose options stand in the query.

    Raises:
        AskError: an option that there is not, twice, or with a value out of range.
    """
    options = read_query(query)
    instance = Instance(data, options.pop("target", None), options.pop("image_id", None))
    return Asked(_ask(kind, options, default_method), (instance,))


def read_query(query: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Read the options in a query.

    Raises:
        AskError: as ``read_image_request``.
    """
    options: dict[str, Any] = {}
    for name, text in query:
        if name in options:
            raise AskError(f"{name} is given twice")
        options[name] = _value(name, text)
    return options


def read_json_request(
    kind: Kind, query: Iterable[tuple[str, str]], default_method: str, body: bytes, most: int
) -> Asked:
    """Read a request in KServe's V1 form: ``{"instances": [{"image": {"b64": ...}, "target": 7}]}``.

    What holds for all images stands in the query or in ``"parameters"``.

    Args:
        kind: of the request.
        query: its options.
        default_method: where none is named.
        body: JSON.
        most: instances that a request may have.

    Raises:
        AskError: the body is something else, or an option that there is not, twice, or out of range.
    """
    content = _json(body)
    if not isinstance(content, dict) or not isinstance(content.get("instances"), list):
        raise AskError('expected {"instances": [{"image": {"b64": "..."}}]}')
    _only(content, ("instances", "parameters"), "the body")
    options = read_query(query)
    for name in _OF_ONE:
        if name in options:
            raise AskError(f"{name} belongs to an instance, not to the query of a request in JSON")
    given = content.get("parameters", {})
    if not isinstance(given, dict):
        raise AskError("parameters must be an object")
    for name, value in given.items():
        if name in options:
            raise AskError(f"{name} is given twice, in the query and in parameters")
        if name not in _OF_ALL:
            raise AskError(f"there is no parameter {_short(name)}; there are {', '.join(_OF_ALL)}")
        options[name] = _checked(name, value)
    found = content["instances"]
    if not 1 <= len(found) <= most:
        raise AskError(f"expected 1 to {most} instances, got {len(found)}")
    instances = tuple(_instance(k, one) for k, one in enumerate(found))
    return Asked(_ask(kind, options, default_method), instances)


def _ask(kind: Kind, options: Mapping[str, Any], default_method: str) -> Ask:
    if kind == "predict":
        for name in options:
            raise AskError(f"{name} is an option of explanations; a prediction has none")
    return Ask(kind, **{"method": default_method, **options})


def _json(body: bytes) -> Any:
    try:
        text = body.decode("utf-8")
        depth = deepest = 0
        for sign in text[:4096]:  # an honest body is flat; json's parser recurses
            depth += (sign in "[{") - (sign in "]}")
            deepest = max(deepest, depth)
        if deepest > _DEEP:
            raise AskError("the body is JSON of too many levels")
        return json.loads(text, parse_constant=_no_constant)
    except AskError:
        raise
    except (ValueError, RecursionError) as error:
        raise AskError("the body is not JSON in UTF-8") from error


def _no_constant(name: str) -> Any:
    raise AskError(f"{name} is no number that JSON has")


def _instance(k: int, one: Any) -> Instance:
    where = f"instance {k}"
    if not isinstance(one, dict):
        raise AskError(f"{where} must be an object")
    _only(one, ("image", *_OF_ONE), where)
    image = one.get("image")
    if not isinstance(image, dict) or not isinstance(image.get("b64"), str):
        raise AskError(f'{where} has no image: expected {{"image": {{"b64": "..."}}}}')
    _only(image, ("b64",), f"the image of {where}")
    try:
        data = base64.b64decode(image["b64"], validate=True)
    except (binascii.Error, ValueError) as error:
        raise AskError(f"the image of {where} is not base64") from error
    values = {name: _checked(name, one[name]) for name in _OF_ONE if one.get(name) is not None}
    return Instance(data, **values)


def _only(content: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for name in content:
        if name not in known:
            raise AskError(f"{where} has {_short(name)}, which is not known; known are {', '.join(known)}")


def _value(name: str, text: str) -> Any:
    if name not in (*_OF_ALL, *_OF_ONE):
        raise AskError(f"there is no option {_short(name)}; there are {', '.join((*_OF_ALL, *_OF_ONE))}")
    if name == "method":
        return _checked(name, text)
    if name == "reproducible":
        if text not in ("true", "false"):
            raise AskError(f"reproducible must be true or false, got {_short(text)}")
        return text == "true"
    if len(text) > 20 or not text.isascii() or not text.isdecimal():
        raise AskError(f"{name} must be a whole number of at least 0, got {_short(text)}")
    return _checked(name, int(text))


def _checked(name: str, value: Any) -> Any:
    if name == "method":
        if not isinstance(value, str):
            raise AskError("method must be a name")
        return value
    if name == "reproducible":
        if not isinstance(value, bool):
            raise AskError("reproducible must be true or false")
        return value
    low = 1 if name == "passes" else 0
    high = {"image_id": LARGEST_ID, "seed": _LARGEST_SEED}.get(name, 2**31 - 1)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise AskError(f"{name} must be a whole number from {low} to {high}, got {_short(value)}")
    return value


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
