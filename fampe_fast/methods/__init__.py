"""Attribution methods: FAMPE, AttEXplore, other methods for comparison, and FORGrad, which filters maps."""

from ..catalog import METHODS
from .attention import AttentionMethod
from .attexplore import AttEXplore
from .base import AttributionMethod
from .captum_methods import CaptumMethod
from .fampe import FAMPE
from .floors import CentrePrior, RandomMap
from .forgrad import FORGrad, LowPassGradients
from .grad_cam_methods import GradCAMMethod
from .registry import create_method
from .rise import RISE
from .spectral_ig import SpectralIG

__all__ = [
    "FAMPE",
    "METHODS",
    "RISE",
    "AttEXplore",
    "AttentionMethod",
    "AttributionMethod",
    "CaptumMethod",
    "CentrePrior",
    "FORGrad",
    "GradCAMMethod",
    "LowPassGradients",
    "RandomMap",
    "SpectralIG",
    "create_method",
]
