"""Read a callable's options from its source: names, types, defaults and help, without importing it (or torch).

The command line makes its flags from them, so that a configuration's fields are documented once, in the code.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Literal

Kind = Literal["int", "float", "bool", "str", "path", "choice", "pair"]
_KINDS: dict[str, Kind] = {
    "int": "int",
    "float": "float",
    "bool": "bool",
    "str": "str",
    "Path": "path",
    "tuple[float, float]": "pair",
}


@dataclass(frozen=True)
class Option:
    """One option of a callable.

    Attributes:
        name: name of the field or argument.
        kind: type of a value; ``pair`` is two numbers.
        choices: the values of a ``choice``.
        optional: whether None is also a value.
        default: the default value, or its source text if it is not a constant.
        help: its text in the docstring.
    """

    name: str
    kind: Kind
    choices: tuple[str, ...]
    optional: bool
    default: object
    help: str


def read_options(home: str, names: Iterable[str] | None = None) -> tuple[Option, ...]:
    """Read the options of a dataclass, a function or a class's constructor.

    Options are a dataclass's fields, or a function's arguments with defaults; values that cannot be typed on a command
    line (a model, a callable) are left out.

    Args:
        home: ``package.module:Name`` or ``package.module:Class.method``.
        names: names of the options to read; None for all.

    Raises:
        LookupError: there is no such module or definition.
    """
    module, _, name = home.partition(":")
    found = _options(module, name)
    return tuple(found.values()) if names is None else tuple(found[wanted] for wanted in names)


@cache  # a command line's flags ask for the same ones a hundred times
def _options(module: str, name: str) -> dict[str, Option]:
    return {option.name: option for option in _read(module, name)}


@lru_cache
def _tree(module: str) -> ast.Module:
    # Only the top package is found by import machinery: finding a module in it would import its parents.
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None or not spec.submodule_search_locations:
        raise LookupError(f"no package {top!r}")
    base = Path(spec.submodule_search_locations[0], *rest)
    for path in (base.with_name(f"{base.name}.py"), base / "__init__.py"):
        if path.is_file():
            return ast.parse(path.read_text(encoding="utf-8"))
    raise LookupError(f"no module {module!r}")


def _definition(module: str, name: str) -> ast.ClassDef | ast.FunctionDef:
    body: list[ast.stmt] = _tree(module).body
    found: ast.ClassDef | ast.FunctionDef | None = None
    for part in name.split("."):
        found = next(
            (node for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == part), None
        )
        if found is None:
            raise LookupError(f"{module} defines no {name}")
        body = found.body
    assert found is not None
    return found


def _read(module: str, name: str) -> Iterator[Option]:
    node = _definition(module, name)
    help_of = _documented(ast.get_docstring(node) or "")
    if isinstance(node, ast.FunctionDef):
        yield from _arguments(module, node, help_of)
        return
    constructor = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
    if constructor is not None:
        yield from _arguments(module, constructor, _documented(ast.get_docstring(constructor) or "") | help_of)
        return
    inherited: dict[str, str] = {}
    for base in node.bases:
        if isinstance(base, ast.Name):
            for option in _options(*_origin(module, base.id)).values():
                inherited[option.name] = option.help
                yield option
    for field in node.body:
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            said = help_of.get(field.target.id) or inherited.get(field.target.id, "")
            yield from _option(module, field.target.id, field.annotation, field.value, said)


def _arguments(module: str, node: ast.FunctionDef, help_of: dict[str, str]) -> Iterator[Option]:
    plain = node.args.args[len(node.args.args) - len(node.args.defaults) :]
    pairs = [
        *zip(plain, node.args.defaults, strict=True),
        *zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True),
    ]
    for argument, default in pairs:
        if default is not None and argument.annotation is not None:
            yield from _option(module, argument.arg, argument.annotation, default, help_of.get(argument.arg, ""))


def _option(module: str, name: str, annotation: ast.expr, default: ast.expr | None, said: str) -> Iterator[Option]:
    parts = list(_alternatives(annotation))
    kinds = [part for part in parts if ast.unparse(part) != "None"]
    optional = len(kinds) < len(parts)
    value = None if default is None else _constant(module, default)
    for part in kinds:  # of "str | Protocol" the first type that can be typed as text
        text = ast.unparse(part)
        if text in _KINDS:
            yield Option(name, _KINDS[text], (), optional, value, said)
            return
        choices = _choices(module, part)
        if choices:
            yield Option(name, "choice", choices, optional, value, said)
            return


def _alternatives(annotation: ast.expr) -> Iterator[ast.expr]:
    if isinstance(annotation, ast.BinOp) and isinstance(annotation.op, ast.BitOr):
        yield from _alternatives(annotation.left)
        yield from _alternatives(annotation.right)
    else:
        yield annotation


def _choices(module: str, annotation: ast.expr) -> tuple[str, ...]:
    """Read the values of a ``Literal``, which may be defined under a name, also in another module of the package."""
    if isinstance(annotation, ast.Name):
        try:
            home, name = _origin(module, annotation.id)
        except LookupError:
            return ()
        assigned = _assigned(home, name)
        return () if assigned is None else _choices(home, assigned)
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "Literal":
        words = ast.literal_eval(annotation.slice)
        return tuple(map(str, words if isinstance(words, tuple) else (words,)))
    return ()


def _origin(module: str, name: str) -> tuple[str, str]:
    """Find the module of this package that defines a name, and the name there."""
    for node in _tree(module).body:
        if isinstance(node, ast.ImportFrom) and node.level:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    parent = ".".join(module.split(".")[: -node.level])
                    return _origin(f"{parent}.{node.module}" if node.module else parent, alias.name)
    return module, name


def _assigned(module: str, name: str) -> ast.expr | None:
    for node in _tree(module).body:
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            return node.value  # type: ignore[attr-defined, no-any-return]
    return None


def _constant(module: str, node: ast.expr) -> Any:
    """Evaluate a constant, a constant's name, or one divided by another; return the source text of anything else."""
    try:
        return ast.literal_eval(node)
    except ValueError:
        pass
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        left, right = _constant(module, node.left), _constant(module, node.right)
        if isinstance(left, int | float) and isinstance(right, int | float):
            return left / right
    if isinstance(node, ast.Name):
        home, name = _origin(module, node.id)
        assigned = _assigned(home, name)
        if assigned is not None:
            return _constant(home, assigned)
    return ast.unparse(node)


def _documented(docstring: str) -> dict[str, str]:
    """Read the text of each name in ``Args`` and ``Attributes``, in one line without mark-up."""
    found: dict[str, str] = {}
    name, inside = "", False
    for line in docstring.splitlines():
        if re.fullmatch(r"[A-Z]\w+:", line):
            inside = line in ("Args:", "Attributes:")
            continue
        entry = re.match(r" {4}(\w+): (.*)", line)
        if inside and entry:
            name = entry[1]
            found[name] = entry[2]
        elif inside and name and line.startswith(" " * 8):
            found[name] += f" {line.strip()}"
    return {name: text.replace("``", "") for name, text in found.items()}
