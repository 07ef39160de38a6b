"""Attribution methods: FAMPE, AttEXplore, Captum's through the same call, and FORGrad, which filters their maps."""

from ..catalog import METHODS
from .attexplore import AttEXplore
from .base import AttributionMethod
from .captum_methods import CaptumMethod
from .fampe import FAMPE
from .forgrad import FORGrad, LowPassGradients
from .registry import create_method

__all__ = [
    "FAMPE",
    "METHODS",
    "AttEXplore",
    "AttributionMethod",
    "CaptumMethod",
    "FORGrad",
    "LowPassGradients",
    "create_method",
]
