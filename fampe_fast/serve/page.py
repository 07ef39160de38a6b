"""Make the web page for explaining an image: one file without external resources."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import re
from functools import lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ..plots.colours import colour_table

if TYPE_CHECKING:
    from .service import Service

_TEMPLATE = "page.html"


def page_of(service: Service) -> tuple[str, str]:
    """Make the page of a service.

    Returns:
        The page, and a content security policy that allows only its own content.
    """
    settings = service.settings
    options = "".join(f"<option>{html.escape(name)}</option>" for name in service.book.names)
    values = {
        "name": html.escape(settings.name),
        "model": html.escape(service.classifier.name),
        "methods": options,
        "max_passes": str(settings.max_passes),
        "max_bytes": str(settings.max_bytes),
        "legend": _legend(False),
        "signed_legend": _legend(True),
    }
    content = re.sub(r"\{\{(\w+)\}\}", lambda found: values[found[1]], _template())
    return content, _policy(content)


@lru_cache(maxsize=1)
def _template() -> str:
    return (files(__package__) / _TEMPLATE).read_text(encoding="utf-8")


def _policy(content: str) -> str:
    def hashes(tag: str) -> str:
        parts = re.findall(rf"<{tag}>(.*?)</{tag}>", content, re.DOTALL)
        found = (base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in parts)
        return " ".join(f"'sha256-{digest}'" for digest in found)

    return (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; img-src data: blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


@lru_cache(maxsize=2)
def _legend(signed: bool) -> str:
    """Draw a colour scale as a data URL."""
    row = (colour_table(signed) * 255).round().astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(row[None]).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
