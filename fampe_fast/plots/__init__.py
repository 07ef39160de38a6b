"""Draw attribution maps: overlays, explanations, spectra, curves, contact sheets.

matplotlib is imported when the first picture is drawn, and pyplot never: no display is needed, and the caller's figures
and rcParams are not changed.
"""

from __future__ import annotations

from .colours import ScaledMap, scale_map
from .contact_sheets import contact_sheet
from .curves import curves_figure
from .explanations import explanation_figure, overlay
from .saving import save_figure
from .signatures import signatures_figure, slopes_figure
from .spectrum import log_amplitude

__all__ = [
    "ScaledMap",
    "contact_sheet",
    "curves_figure",
    "explanation_figure",
    "log_amplitude",
    "overlay",
    "save_figure",
    "scale_map",
    "signatures_figure",
    "slopes_figure",
]
