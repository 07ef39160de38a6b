"""What can be typed after ``fampe-fast``."""

from __future__ import annotations

import argparse
import ast
from collections.abc import Sequence
from pathlib import Path

from .. import __version__

# Named here and not imported from the methods, which would load torch before a typing error is reported.
_PLAIN_NAMES = ("fampe", "attexplore", "integrated_gradients", "smoothgrad", "saliency")
METHOD_NAMES = (*_PLAIN_NAMES, *(f"forgrad_{name}" for name in _PLAIN_NAMES))
PROTOCOL_NAMES = ("rise", "attexplore", "per_pixel")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse a command line; exits with code 2 and a message where it cannot be understood."""
    return _parser().parse_args(argv)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fampe-fast",
        description="Frequency-aware attribution maps: what an image classifier looked at.",
        epilog="Exit codes: 0 all done, 1 some images failed, 2 nothing could start, 130 interrupted.",
    )
    parser.add_argument("--version", action="version", version=f"fampe-fast {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="explain generated images offline, with the classifier that ships here")
    demo.add_argument("--out", type=Path, default=Path("fampe_demo"), help="folder for demo.png (default: %(default)s)")
    demo.add_argument("--images", type=_positive, default=4, help="how many (default: %(default)s)")
    demo.add_argument("--seed", type=int, default=2024, help="of the images (default: %(default)s)")

    explain = commands.add_parser("explain", help="explain image files: a picture and an .npz archive for each")
    explain.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="image files, or folders of them")
    explain.add_argument(
        "--target", type=int, help="class to explain in every image (default: the model's first choice)"
    )
    explain.add_argument("--method", choices=METHOD_NAMES, default="fampe", help="(default: %(default)s)")
    explain.add_argument("--out", type=Path, default=Path("fampe_explain"), help="folder (default: %(default)s)")
    _add_model(explain)
    _add_method_options(explain)

    evaluate = commands.add_parser("evaluate", help="score methods on a folder of images: insertion and deletion")
    evaluate.add_argument("images", type=Path, metavar="DIR", help="a folder of images")
    evaluate.add_argument(
        "--labels", type=Path, help="JSON or CSV from file name to class index (default: the model's first choice)"
    )
    evaluate.add_argument(
        "--methods",
        type=_names,
        default=["fampe", "attexplore"],
        help=f"comma-separated, the first is the one others are compared with, of: {', '.join(METHOD_NAMES)} "
        "(default: fampe,attexplore)",
    )
    evaluate.add_argument("--protocol", choices=PROTOCOL_NAMES, default="rise", help="(default: %(default)s)")
    evaluate.add_argument("--metric-steps", type=_positive, help="at most so many steps of insertion and deletion")
    evaluate.add_argument("--limit", type=_positive, help="only the first so many images")
    evaluate.add_argument("--out", type=Path, default=Path("fampe_evaluate"), help="folder (default: %(default)s)")
    _add_model(evaluate)
    _add_method_options(evaluate)

    commands.add_parser("doctor", help="versions, devices, which backend would run and why, and a self-test")
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
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
        type=_key_value,
        metavar="KEY=VALUE",
        help="keyword of the model's constructor, repeatable",
    )
    group.add_argument("--mean", type=_numbers, help="one number or three, comma-separated, in [0, 1]")
    group.add_argument("--std", type=_numbers, help="one number or three, comma-separated")
    group.add_argument("--interpolation", help="filter the images are resized with, such as bilinear or bicubic")
    group.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")


def _add_method_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("method")
    group.add_argument("--alpha", type=float, help="FAMPE: weight of the low band, 0 to 1")
    group.add_argument("--steps", type=int, help="steps along the path (default: 10)")
    group.add_argument("--samples", type=int, help="samples per step (default: 20)")
    group.add_argument("--passes", type=int, help="Captum's methods: passes per image (default: 50)")
    group.add_argument("--seed", type=int, help="of all random numbers (default: 0)")
    group.add_argument(
        "--option",
        action="append",
        default=[],
        type=_key_value,
        metavar="KEY=VALUE",
        help="any other field of the method's configuration, repeatable: mode=modulate, include_dc=False, tau=0.8, ...",
    )
    group.add_argument("--batch-size", type=_positive, default=8, help="images at a time (default: %(default)s)")
    group.add_argument(
        "--internal-batch-size", type=_positive, help="samples per model pass (default: 8 on a CPU, else 64)"
    )


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def _numbers(text: str) -> float | tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected a number or three, comma-separated, got {text!r}") from error
    return values[0] if len(values) == 1 else values


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in METHOD_NAMES]
    if unknown or not names:
        raise argparse.ArgumentTypeError(
            f"unknown method(s) {', '.join(map(repr, unknown)) or repr(text)}; known: {', '.join(METHOD_NAMES)}"
        )
    return list(dict.fromkeys(names))


def _key_value(text: str) -> tuple[str, object]:
    key, separator, value = text.partition("=")
    if not separator or not key.isidentifier():
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE, got {text!r}")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value  # a word, as in pad_type=same
