"""Add the arguments that several commands share, and turn parsed ones back into command-line words."""

from __future__ import annotations

import argparse
import ast
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path

from ..catalog import FILTERS, METHODS, METRICS, PLAIN_METHODS, parts_of
from ..options import read_options


def add_model(parser: argparse.ArgumentParser, *, title: str = "model") -> None:
    """Add the options of the classifier and its device, below a title in the help."""
    group = parser.add_argument_group(title)
    group.add_argument(
        "--model",
        default="resnet50",
        help="timm name, torchvision/NAME, folder in timm's layout, TorchScript or .pt2 file, or embedded: the small "
        "one of the package, without downloads (default: %(default)s)",
    )
    group.add_argument(
        "--weights", type=Path, metavar="FILE", help="local checkpoint of the named model (default: downloaded)"
    )
    group.add_argument(
        "--model-arg",
        action="append",
        default=[],
        type=key_value,
        metavar="KEY=VALUE",
        help="keyword argument of the model's constructor; repeatable",
    )
    group.add_argument(
        "--mean", type=numbers, metavar="X,X,X", help="mean subtracted from the pixels, in [0, 1], one number or three"
    )
    group.add_argument(
        "--std", type=numbers, metavar="X,X,X", help="divisor of the pixels after the mean, one number or three"
    )
    group.add_argument(
        "--input-size",
        type=positive,
        metavar="N",
        help="side of the images that the model sees, in pixels (default: the model's)",
    )
    group.add_argument(
        "--class-names",
        type=Path,
        metavar="FILE",
        help="text file with one class name per line (default: the model's names)",
    )
    group.add_argument(
        "--interpolation", metavar="NAME", help="filter for resizing images, such as bilinear or bicubic"
    )
    group.add_argument(
        "--keep-batch-norm",
        action="store_true",
        help="do not fold batch normalisation into the preceding convolutions",
    )
    group.add_argument(
        "--model-output",
        choices=_model_outputs(),
        help="meaning of the model's output: logits (before a softmax), probabilities (after softmax or sigmoids), or "
        "sigmoid (logits of independent classes, or a single logit) (default: logits, if the values allow it)",
    )
    group.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda if there is a GPU, else cpu)")


def _model_outputs() -> tuple[str, ...]:
    (output,) = read_options("fampe_fast.models.loading:load_classifier", ["output"])
    return output.choices


def add_other_model(group: argparse._ActionsContainer, name: str, *, help: str = "as --model") -> None:
    """Add another classifier: ``--NAME``, and ``--NAME-weights``, ``-arg``, ``-mean``, ``-std`` and ``-output``."""
    group.add_argument(f"--{name}", metavar="MODEL", help=help)
    group.add_argument(f"--{name}-weights", type=Path, metavar="FILE", help="as --weights, for this model")
    group.add_argument(
        f"--{name}-arg",
        action="append",
        default=[],
        type=key_value,
        metavar="KEY=VALUE",
        help="as --model-arg, for this model",
    )
    group.add_argument(f"--{name}-mean", type=numbers, metavar="X,X,X", help="as --mean, for this model")
    group.add_argument(f"--{name}-std", type=numbers, metavar="X,X,X", help="as --std, for this model")
    group.add_argument(f"--{name}-output", choices=_model_outputs(), help="as --model-output, for this model")


def add_folder(parser: argparse.ArgumentParser) -> None:
    """Add a folder of images and the options of images."""
    parser.add_argument("images", type=Path, metavar="DIR", help="a folder of images")
    add_images(parser)


def add_images(parser: argparse.ArgumentParser) -> None:
    """Add the options of the images' classes, ids and number."""
    group = parser.add_argument_group("images")
    either = group.add_mutually_exclusive_group()
    either.add_argument(
        "--labels",
        type=Path,
        metavar="FILE",
        help="JSON or CSV file that maps file names to class indices (default: the model's prediction)",
    )
    either.add_argument("--target", type=int, metavar="CLASS", help="class index to explain in every image")
    group.add_argument(
        "--image-ids",
        type=Path,
        metavar="FILE",
        help="JSON or CSV file that maps file names to unique ids, 0 to 2^32 - 2; the id selects an image's random "
        "numbers, so that its map is the same in every run (default: its position in the list)",
    )
    group.add_argument("--limit", type=positive, metavar="N", help="use only the first N images")


def add_method(parser: argparse._ActionsContainer, default: str, *, filters: bool = True, note: str = "") -> None:
    """Add the choice of methods, a comma-separated list.

    Args:
        parser: parser of the command.
        default: names, comma-separated.
        filters: whether a filter's prefix is allowed before a name.
        note: words about the list for the help.
    """
    known = ", ".join(PLAIN_METHODS)
    if filters:
        known += f"; {' or '.join(FILTERS)} before a name filters its maps"
    parser.add_argument(
        "--method",
        type=method_list if filters else plain_method_list,
        default=default.split(","),
        metavar="NAMES",
        help=f"one or more, comma-separated{note}, of: {known} (default: {default})",
    )


def add_one_method(parser: argparse._ActionsContainer) -> None:
    """Add the choice of one method."""
    known = f"{', '.join(PLAIN_METHODS)}; {' or '.join(FILTERS)} before a name filters its maps"
    parser.add_argument(
        "--method", type=_one_method, default="fampe", metavar="NAME", help=f"one of: {known} (default: fampe)"
    )


def add_metric(parser: argparse._ActionsContainer) -> None:
    """Add the choice of metrics, a comma-separated list."""
    parser.add_argument(
        "--metric",
        type=names_of(tuple(METRICS), "metric"),
        default=["insertion_deletion"],
        metavar="NAMES",
        help=f"one or more, comma-separated, of: {', '.join(METRICS)} (default: insertion_deletion)",
    )


def add_out(parser: argparse.ArgumentParser, default: str) -> None:
    """Add the folder of the results."""
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(default),
        metavar="DIR",
        help="output folder; an earlier run of the same command in it is resumed (default: %(default)s)",
    )


def add_batches(parser: argparse.ArgumentParser, *, by_device: bool = False) -> None:
    """Add the options of batch sizes; the default of images per batch may depend on the device (None)."""
    group = parser.add_argument_group("batches")
    default = "8 on a CPU, else 32" if by_device else "%(default)s"
    group.add_argument(
        "--batch-size",
        type=positive,
        default=None if by_device else 8,
        metavar="N",
        help=f"images per batch (default: {default})",
    )
    group.add_argument(
        "--internal-batch-size",
        type=positive,
        metavar="N",
        help="images or samples per model pass (default: 8 on a CPU, else 64, or as many as fit)",
    )


def positive(text: str) -> int:
    """Read a whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def numbers(text: str) -> float | tuple[float, ...]:
    """Read one number, or several separated by commas."""
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected a number or three, comma-separated, got {text!r}") from error
    return values[0] if len(values) == 1 else values


def names_of(known: Sequence[str], what: str) -> Callable[[str], list[str]]:
    """Make a reader of known names, separated by commas, without repeats."""

    def read(text: str) -> list[str]:
        names = [name.strip() for name in text.split(",") if name.strip()]
        unknown = [name for name in names if name not in known]
        if unknown or not names:
            raise argparse.ArgumentTypeError(
                f"unknown {what}(s) {', '.join(map(repr, unknown)) or repr(text)}; known: {', '.join(known)}"
            )
        return list(dict.fromkeys(names))

    return read


def method_list(text: str) -> list[str]:
    """Read names of methods, separated by commas."""
    return names_of(METHODS, "method")(text)


def _one_method(text: str) -> str:
    names = method_list(text)
    if len(names) > 1:
        raise argparse.ArgumentTypeError(f"expected one method, got {', '.join(names)}")
    return names[0]


def plain_method_list(text: str) -> list[str]:
    """Read names of methods without filters, separated by commas."""
    names = method_list(text)
    filtered = [name for name in names if parts_of(name)[0]]
    if filtered:
        raise argparse.ArgumentTypeError(
            f"{', '.join(filtered)}: tune takes the unfiltered method: name {parts_of(filtered[0])[1]!r}"
        )
    return names


def key_value(text: str) -> tuple[str, object]:
    """Read ``KEY=VALUE``, the value a Python literal, a fraction or a word."""
    key, separator, value = text.partition("=")
    if not separator or not key.isidentifier():
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE, got {text!r}")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        pass
    try:
        return key, float(Fraction(value))  # as in eps=8/255
    except (ValueError, ZeroDivisionError):
        return key, value  # a word, as in pad_type=same


def option_words(parser: argparse.ArgumentParser, values: Mapping[str, object]) -> list[str]:
    """Write the command-line words from which a parser reads these values, using the parser's own actions.

    Args:
        parser: the parser that has the options; positional arguments are left to the caller.
        values: by destination, as the parser returns them; values equal to their defaults are left out.
    """
    words = []
    for action in parser._actions:
        if not action.option_strings or action.dest not in values or values[action.dest] == action.default:
            continue
        value, flag = values[action.dest], action.option_strings[0]
        if action.nargs == 0:  # a switch, perhaps with a --no- form
            words.append(flag if value else action.option_strings[-1])
            continue
        # An option that is repeated has a list.
        for part in value if isinstance(value, list) and type(action).__name__ == "_AppendAction" else [value]:
            text = _text_of(action, part)
            words += [f"{flag}={text}"] if text.startswith("-") else [flag, text]
    return words


def _text_of(action: argparse.Action, value: object) -> str:
    if action.type is key_value and isinstance(value, tuple):
        key, given = value
        # A word is written as it is, unless it would be read as another type.
        plain = f"{key}={given}"
        return plain if key_value(plain) == value else f"{key}={given!r}"
    if value is None:
        return "none"
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
