"""Read the options of a request, and refuse unsupported ones before any image is decoded."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from ..checks import LARGEST_ID

Kind = Literal["explain", "predict"]


class AskError(ValueError):
    """An invalid request; the message is for its sender."""


class Ask(NamedTuple):
    """The options for all images of a request; images with equal options may share a batch."""

    kind: Kind
    method: str
    passes: int | None = None
    """Number of passes; None for the method's own."""
    seed: int | None = None
    """Seed; None for the service's own."""
    reproducible: bool = False
    """Whether the image is explained alone, so that its map does not depend on a batch."""


class Instance(NamedTuple):
    """An undecoded image of a request."""

    data: bytes
    target: int | None = None
    """The class to explain; None for the model's prediction."""
    image_id: int | None = None
    """Its id in the random stream; None for an id derived from its pixels."""


class Asked(NamedTuple):
    """A request: its options and its images."""

    ask: Ask
    instances: tuple[Instance, ...]


_OF_ALL = ("method", "passes", "seed", "reproducible")
_OF_ONE = ("target", "image_id")
_LARGEST_SEED = 2**63 - 1
# Base64 in JSON, with room for names and numbers.
_DEEP = 32


def read_image_request(kind: Kind, query: Iterable[tuple[str, str]], default_method: str, data: bytes) -> Asked:
    """Read a request whose body is an image and whose options are in the query.

    Raises:
        AskError: an option that is unknown, repeated or out of range.
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

    Options for all images are in the query or in ``"parameters"``.

    Args:
        kind: kind of the request.
        query: its query.
        default_method: method if none is named.
        body: the JSON body.
        most: largest number of instances.

    Raises:
        AskError: an invalid body, or an option that is unknown, repeated or out of range.
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
        for sign in text[:4096]:  # valid bodies are flat; json's parser is recursive
            depth += (sign in "[{") - (sign in "]}")
            deepest = max(deepest, depth)
        if deepest > _DEEP:
            raise AskError("the body is too deeply nested JSON")
        return json.loads(text, parse_constant=_no_constant)
    except AskError:
        raise
    except (ValueError, RecursionError) as error:
        raise AskError("the body is not JSON in UTF-8") from error


def _no_constant(name: str) -> Any:
    raise AskError(f"{name} is not a JSON number")


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
            raise AskError(f"{where} has {_short(name)}, which is unknown; known are {', '.join(known)}")


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
