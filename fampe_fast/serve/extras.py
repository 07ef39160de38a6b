"""Import packages that only the service needs, with advice if they are missing."""

from __future__ import annotations

from importlib.util import find_spec

_PACKAGES = {"starlette": "starlette", "uvicorn": "uvicorn", "prometheus_client": "prometheus-client"}


def check_packages() -> None:
    """Refuse to start without the packages of the service.

    Raises:
        ImportError: one is not installed; the message says what to do.
    """
    missing = [package for module, package in _PACKAGES.items() if find_spec(module) is None]
    if missing:
        raise ImportError(
            f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} needed for the service: pip install "
            "'fampe_fast[serve]'"
        )
