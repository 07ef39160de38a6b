"""Import packages that only data sets need, with advice if they are missing."""

from __future__ import annotations

from typing import Any


def needs(extra: str, package: str, purpose: str) -> ImportError:
    """Make the error for a missing package, with its purpose and how to install it."""
    return ImportError(f"{package} is needed {purpose}: pip install 'fampe_fast[{extra}]'", name=package)


def parquet_modules() -> tuple[Any, Any]:
    """Import ``pyarrow`` and ``pyarrow.parquet``.

    Raises:
        ImportError: pyarrow is not installed; the message says what to do.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise needs("batch", "pyarrow", "for data sets") from error
    return pyarrow, pyarrow.parquet
