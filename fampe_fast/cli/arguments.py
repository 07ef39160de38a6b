"""Arguments that several commands share."""

from __future__ import annotations

import argparse
import ast
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

# Named here and not imported from the methods, which would load torch before a typing error is reported.
PLAIN_NAMES = ("fampe", "fampe_published", "attexplore", "integrated_gradients", "smoothgrad", "saliency")
METHOD_NAMES = (*PLAIN_NAMES, *(prefix + name for prefix in ("forgrad_", "forgrad_signed_") for name in PLAIN_NAMES))
PROTOCOL_NAMES = ("rise", "attexplore", "per_pixel", "per_element")
STUDY_NAMES = ("methods", "peers", "alpha", "cutoff", "budget", "noise", "explorer")
BAND_NAMES = ("low", "high", "all")
METHOD_OPTIONS = ("alpha", "steps", "samples", "passes", "seed")
"""Fields of the methods' configurations that have an argument of their own."""
OUTPUT_NAMES = ("logits", "probabilities", "sigmoid")
GRADIENT_NAMES = ("plain", "fampe", "attexplore")


def add_model(parser: argparse.ArgumentParser) -> None:
    """Which classifier, and where it runs."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        default="resnet50",
        help="timm name, torchvision/NAME, a folder in timm's layout, TorchScript or .pt2 file (default: %(default)s)",
    )
    group.add_argument("--weights", type=Path, help="local checkpoint for the named model; without it they are fetched")
    group.add_argument(
        "--model-arg",
        action="append",
        default=[],
        type=key_value,
        metavar="KEY=VALUE",
        help="keyword of the model's constructor, repeatable",
    )
    group.add_argument("--mean", type=numbers, help="one number or three, comma-separated, in [0, 1]")
    group.add_argument("--std", type=numbers, help="one number or three, comma-separated")
    group.add_argument("--input-size", type=positive, help="pixels a side to show images in (default: the model's)")
    group.add_argument("--class-names", type=Path, help="text file, a name per line (default: the model's)")
    group.add_argument("--interpolation", help="filter the images are resized with, such as bilinear or bicubic")
    group.add_argument(
        "--keep-batch-norm", action="store_true", help="do not fold batch normalisation into the convolutions before it"
    )
    group.add_argument(
        "--model-output",
        choices=OUTPUT_NAMES,
        help="what the model returns: logits (a softmax is still to come), probabilities (it ends in a softmax or in "
        "sigmoids), or sigmoid (logits of independent classes, or a single one; default: logits, if they look like it)",
    )
    group.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda if there is a GPU, else cpu)")


def add_other_model(group: argparse._ActionsContainer, name: str, *, help: str = "as --model") -> None:
    """Another classifier: ``--NAME``, and ``--NAME-weights``, ``-arg``, ``-mean``, ``-std`` and ``-output``."""
    group.add_argument(f"--{name}", help=help)
    group.add_argument(f"--{name}-weights", type=Path, help="as --weights")
    group.add_argument(
        f"--{name}-arg", action="append", default=[], type=key_value, metavar="KEY=VALUE", help="as --model-arg"
    )
    group.add_argument(f"--{name}-mean", type=numbers, help="as --mean, which is not shared")
    group.add_argument(f"--{name}-std", type=numbers, help="as --std, which is not shared")
    group.add_argument(f"--{name}-output", choices=OUTPUT_NAMES, help="as --model-output, which is not shared")


def add_method_options(parser: argparse.ArgumentParser) -> None:
    """A method's configuration, and how many images at a time."""
    group = parser.add_argument_group("method")
    group.add_argument("--alpha", type=float, help="FAMPE: weight of the low band, 0 to 1")
    group.add_argument("--steps", type=int, help="steps along the path (default: 10)")
    group.add_argument("--samples", type=int, help="samples per step (default: 20)")
    group.add_argument("--passes", type=int, help="Captum's methods: passes per image (default: 50)")
    group.add_argument("--seed", type=int, help="of all random numbers (default: 0)")
    add_other_options(group, "the method's", "mode=modulate, include_dc=False, tau=0.8")
    add_batches(group)


def add_other_options(group: argparse._ActionsContainer, whose: str, examples: str) -> None:
    """Fields of a configuration that have no argument of their own."""
    group.add_argument(
        "--option",
        action="append",
        default=[],
        type=key_value,
        metavar="KEY=VALUE",
        help=f"any other field of {whose} configuration, repeatable: {examples}, ...",
    )


def add_batches(group: argparse._ActionsContainer) -> None:
    """How many images at a time."""
    group.add_argument("--batch-size", type=positive, default=8, help="images at a time (default: %(default)s)")
    group.add_argument(
        "--internal-batch-size", type=positive, help="rows per model pass (default: 8 on a CPU, else 64, or what fits)"
    )


def add_labels(parser: argparse.ArgumentParser) -> None:
    """A folder of images, the classes to explain in them, and how many."""
    parser.add_argument("images", type=Path, metavar="DIR", help="a folder of images")
    parser.add_argument(
        "--labels", type=Path, help="JSON or CSV from file name to class index (default: the model's first choice)"
    )
    parser.add_argument("--limit", type=positive, help="only the first so many images")


def positive(text: str) -> int:
    """A whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def numbers(text: str) -> float | tuple[float, ...]:
    """A number, or several with commas between."""
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected a number or three, comma-separated, got {text!r}") from error
    return values[0] if len(values) == 1 else values


def fraction(text: str) -> float:
    """A number, or a fraction such as 8/255."""
    try:
        return float(Fraction(text))
    except (ValueError, ZeroDivisionError) as error:
        raise argparse.ArgumentTypeError(f"expected a number or a fraction such as 8/255, got {text!r}") from error


def names_of(text: str, known: Sequence[str], what: str) -> list[str]:
    """Names of what is known, with commas between, each once."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise argparse.ArgumentTypeError(
            f"unknown {what}(s) {', '.join(map(repr, unknown)) or repr(text)}; known: {', '.join(known)}"
        )
    return list(dict.fromkeys(names))


def method_names(text: str) -> list[str]:
    """Names of methods with commas between."""
    return names_of(text, METHOD_NAMES, "method")


def plain_method_names(text: str) -> list[str]:
    """Names of methods without a filter, with commas between."""
    filtered = [name for name in method_names(text) if name not in PLAIN_NAMES]
    if filtered:
        plain = filtered[0].removeprefix("forgrad_").removeprefix("signed_")
        raise argparse.ArgumentTypeError(
            f"{', '.join(filtered)}: the cut-off is sought for the unfiltered method: name {plain!r}"
        )
    return method_names(text)


def band_names(text: str) -> list[str]:
    """Names of frequency bands with commas between."""
    return names_of(text, BAND_NAMES, "band")


def key_value(text: str) -> tuple[str, object]:
    """``KEY=VALUE``, the value a Python literal, a fraction or a word."""
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
    """The words that a parser reads these values from: none can be forgotten, as the parser itself is asked.

    Args:
        parser: whose options they are; positional arguments are left to the caller.
        values: by destination, as the parser gives them; what equals its default needs no word.
    """
    words = []
    for action in parser._actions:
        value = values.get(action.dest)
        if not action.option_strings or value is None or value == action.default:
            continue
        flag = action.option_strings[-1]
        if action.nargs == 0:  # a switch
            words.append(flag)
            continue
        # An option that is repeated has a list.
        for part in value if isinstance(value, list) and type(action).__name__ == "_AppendAction" else [value]:
            text = _text_of(action, part)
            words += [f"{flag}={text}"] if text.startswith("-") else [flag, text]
    return words


def _text_of(action: argparse.Action, value: object) -> str:
    if action.type is key_value and isinstance(value, tuple):
        key, given = value
        # A word stands for itself unless it would be read as something else.
        plain = f"{key}={given}"
        return plain if key_value(plain) == value else f"{key}={given!r}"
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
