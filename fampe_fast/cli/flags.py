"""Make a command-line flag for each option in the code, with its type, default and help.

A flag that is not given stores nothing, so that the option's own default applies; ``given`` collects the others.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from ..catalog import FILTERS, METRICS, PLAIN_METHODS, filter_option, method_options, metric_options
from ..options import Option


def given(arguments: argparse.Namespace, owner: str) -> dict[str, Any]:
    """Collect the options of this owner that were given on the command line, by name."""
    start = f"{owner}:"
    return {key.removeprefix(start): value for key, value in vars(arguments).items() if key.startswith(start)}


def add_flag(
    group: argparse._ActionsContainer, owner: str, option: Option, *, flag: str = "", default: str = "", note: str = ""
) -> None:
    """Add the flag of one option.

    Args:
        group: group of the flag in the help.
        owner: owner of the option, for ``given``.
        option: name, type, default and help.
        flag: name of the flag; default: that of ``flag_of``.
        default: text of the default for the help, if the option's own value does not suffice.
        note: further words for the help.
    """
    default = default or f"default: {_text_of(option)}"
    said = f"{_first_sentence(option.help)} ({default}{note and f'; {note}'})".strip()
    settings: dict[str, Any] = {"dest": f"{owner}:{option.name}", "default": argparse.SUPPRESS}
    if option.kind == "bool":
        settings["action"] = argparse.BooleanOptionalAction
    else:
        kind, metavar = _KINDS.get(option.kind, (str, f"{{{','.join(option.choices)}}}"))
        settings |= {"type": or_none(kind) if option.optional else kind, "metavar": metavar}
    if option.kind == "choice":
        settings["choices"] = (*option.choices, None) if option.optional else option.choices
    action = group.add_argument(flag or flag_of(option.name), **settings)
    action.help = said.replace("%", "%%")  # set here, where no Python adds a default of its own


def add_flags(
    group: argparse._ActionsContainer,
    owner: str,
    options: Iterable[Option],
    flags: Mapping[str, str] | None = None,
) -> None:
    """Add the flags of several options; ``flags`` maps options to flags with other names."""
    for option in options:
        add_flag(group, owner, option, flag=(flags or {}).get(option.name, ""))


@dataclass(frozen=True)
class Holder:
    """One of several owners that share options: a method, or a kind of gradient.

    Attributes:
        name: its name on the command line.
        family: heading in the help for the holders with the same options.
        options: its options.
    """

    name: str
    family: str
    options: tuple[Option, ...]


def add_shared_flags(
    parser: argparse.ArgumentParser,
    owner: str,
    holders: Sequence[Holder],
    everyone: str,
    flags: Mapping[str, str] | None = None,
) -> None:
    """Add one flag for every option of the holders, grouped by the families that have it.

    Args:
        parser: parser of the command.
        owner: owner of the options, for ``given``.
        holders: the holders and their options.
        everyone: heading of the options that all families have.
        flags: maps options to flags with other names.
    """
    held: dict[str, dict[str, Option]] = {}
    for holder in holders:
        for option in holder.options:
            held.setdefault(option.name, {})[holder.name] = option
    families = list(dict.fromkeys(holder.family for holder in holders))

    def having(name: str) -> list[str]:
        found = {holder.family for holder in holders if holder.name in held[name]}
        return [family for family in families if family in found]

    groups: dict[str, argparse._ArgumentGroup] = {}
    for name in sorted(held, key=lambda name: -len(having(name))):
        having_it = having(name)
        title = everyone if having_it == families else f"options of {_listed(having_it)}"
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        members = [holder.name for holder in holders if holder.family in having_it]
        without = [member for member in members if member not in held[name]]
        only = [member for member in members if member in held[name]]
        note = ""
        if without:
            note = f"only for {', '.join(only)}" if len(only) <= len(without) else f"not for {', '.join(without)}"
        option = next(iter(held[name].values()))
        add_flag(
            groups[title], owner, option, flag=(flags or {}).get(name, ""), default=_defaults_of(held[name]), note=note
        )


def add_method_flags(parser: argparse.ArgumentParser, *, filters: bool = True) -> None:
    """Add a flag for every option of the methods and of their filters."""
    holders = [
        Holder(name, row.family or row.home.partition(":")[2].split(".")[0], method_options(name))
        for name, row in PLAIN_METHODS.items()
    ]
    add_shared_flags(parser, "method", holders, "options of every method")
    if filters:
        group = parser.add_argument_group(f"options of FORGrad ({' and '.join(f'{name}...' for name in FILTERS)})")
        add_flag(group, "method", filter_option())


def add_metric_flags(parser: argparse.ArgumentParser) -> None:
    """Add a flag for every option of the metrics."""
    for metric, row in METRICS.items():
        group = parser.add_argument_group(f"options of {metric}")
        for option in metric_options(metric):
            # By default all metrics use the seed of the command.
            default = "default: --seed" if option.name == "seed" else ""
            flag = flag_of(option.name if option.name in row.unprefixed else row.prefix + option.name)
            add_flag(group, f"metric {metric}", option, flag=flag, default=default)


def flag_of(name: str) -> str:
    """Spell an option as a flag."""
    return f"--{name.replace('_', '-')}"


def fraction(text: str) -> float:
    """Read a number, or a fraction such as 8/255."""
    try:
        return float(Fraction(text))
    except (ValueError, ZeroDivisionError) as error:
        raise argparse.ArgumentTypeError(f"expected a number or a fraction such as 8/255, got {text!r}") from error


def pair(text: str) -> tuple[float, float]:
    """Read two numbers separated by a comma."""
    parts = text.split(",")
    if len(parts) != 2:
        raise argparse.ArgumentTypeError(f"expected two numbers, comma-separated, got {text!r}")
    return fraction(parts[0]), fraction(parts[1])


def whole(text: str) -> int:
    """Read a whole number."""
    try:
        return int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected a whole number, got {text!r}") from error


def or_none(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    """Make a reader that takes the word "none" for None and reads everything else as ``kind`` does."""

    def read(text: str) -> Any:
        if text.lower() == "none":
            return None
        try:
            return kind(text)
        except argparse.ArgumentTypeError as error:
            raise argparse.ArgumentTypeError(f"{error}; or none") from error

    return read


_KINDS: dict[str, tuple[Callable[[str], Any], str]] = {
    "int": (whole, "N"),
    "float": (fraction, "X"),
    "pair": (pair, "LOW,HIGH"),
    "str": (str, "NAME"),
    "path": (Path, "FILE"),
}


def _first_sentence(text: str) -> str:
    found = re.split(r"\.\s+(?=[A-Z])", re.sub('[`"]', "", text), maxsplit=1)[0].rstrip(".")
    return re.sub(r"\bNone\b", "none", found)


def _defaults_of(held: Mapping[str, Option]) -> str:
    """Write the defaults of all holders of an option: the first one's, and those that differ."""
    by_text: dict[str, list[str]] = {}
    for name, option in held.items():
        by_text.setdefault(_text_of(option), []).append(name)
    first, *others = by_text
    return "; ".join([f"default: {first}", *(f"{', '.join(by_text[text])}: {text}" for text in others)])


def _text_of(option: Option) -> str:
    """Write a default as it is typed on the command line."""
    value = option.default
    if value is None:
        return "the method's own" if option.kind == "bool" else "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return ",".join(f"{part:g}" for part in value)
    if isinstance(value, float):
        levels = value * 255
        in_levels = float(f"{value:.4g}") != value and abs(levels - round(levels)) < 1e-9
        return f"{levels:.0f}/255" if in_levels else f"{value:g}"
    return str(value)


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
