"""The command ``fampe-fast``. Exit codes: 0 all done, 1 some images failed, 2 nothing could start, 130 interrupted."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

DONE, SOME_FAILED, UNUSABLE, INTERRUPTED = 0, 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; one line on standard error says what went wrong."""
    from .parser import parse

    arguments = parse(argv)
    # torch warns of a CUDA toolkit without a driver whenever it compiles for the CPU.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    from ..errors import BackendUnavailableError, WeightsUnavailableError

    try:
        code: int = arguments.run(arguments)
        return code
    except KeyboardInterrupt:
        print("fampe-fast: interrupted; what was finished is whole", file=sys.stderr)
        return INTERRUPTED
    except (ValueError, TypeError, OSError, ImportError, WeightsUnavailableError, BackendUnavailableError) as error:
        print(f"fampe-fast: {error}", file=sys.stderr)
        return UNUSABLE
