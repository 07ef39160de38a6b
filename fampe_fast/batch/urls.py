"""Distinguish URLs from local paths, find their file systems, and show them without secrets."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote

from .extras import needs

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(://|::.*://)")
_QUOTED = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"]+")


def is_url(text: str) -> bool:
    """Tell whether a text is a URL for fsspec, not a local path."""
    return _URL.match(text) is not None


def local_path_of(text: str) -> str | None:
    """Return the local path of a text, also of a ``file://`` URL; None for other URLs."""
    if not is_url(text):
        return text
    scheme, _, rest = text.partition("://")
    if scheme.lower() == "file":
        return unquote(rest)  # of ``Path.as_uri``
    return rest if scheme.lower() == "local" else None


def without_secrets(text: str) -> str:
    """Remove from a URL the user name and password, and from a web address everything after ``?`` or ``#``.

    Args:
        text: a URL, also a chained one (``zip://a.png::https://...``); a path is not changed.
    """
    return "::".join(map(_without_secrets, text.split("::"))) if is_url(text) else text


def _without_secrets(part: str) -> str:
    scheme, separator, rest = part.partition("://")
    if not separator:
        return part
    if scheme.lower() in ("http", "https"):
        rest = re.split(r"[?#]", rest, maxsplit=1)[0]
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def hide_secrets(message: str) -> str:
    """Remove secrets from the URLs in a message."""
    return _QUOTED.sub(lambda found: without_secrets(found[0]), message)


def check_url(text: str) -> None:
    """Refuse a URL with a user name or password, which would be written to the plan.

    Raises:
        ValueError: there is one; the message shows the URL without it.
    """
    if is_url(text) and any("@" in part.partition("://")[2].partition("/")[0] for part in text.split("::")):
        raise ValueError(
            f"{without_secrets(text)} is given with a name or password, which would be stored in the plan: give them "
            "to fsspec by its own configuration or environment variables"
        )


def filesystem_of(url: str) -> tuple[Any, str]:
    """Find fsspec's file system for a URL, and the path in it.

    Raises:
        ImportError: fsspec or a package for this kind of URL is not installed; the message says what to do.
        ValueError: an unknown kind of URL.
    """
    try:
        import fsspec
    except ImportError as error:
        raise needs("batch", "fsspec", f"to read {without_secrets(url)}") from error
    scheme = url.partition("://")[0].lower()
    extra = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}.get(scheme)
    try:
        # A cached listing would hide the files of other processes.
        system, path = fsspec.core.url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        if extra is not None:
            raise needs(extra, "s3fs" if extra == "s3" else "gcsfs", f"to read {without_secrets(url)}") from error
        raise ImportError(f"{without_secrets(url)}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{without_secrets(url)}: fsspec knows no such kind of address ({scheme}://)") from error
    return system, str(path)
