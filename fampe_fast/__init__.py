"""Frequency-aware attribution maps for image classifiers."""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._version import __version__ as __version__

if TYPE_CHECKING:
    from .batch.reading import read_maps as read_maps
    from .engine.config import AttEXploreConfig as AttEXploreConfig
    from .engine.config import FAMPEConfig as FAMPEConfig
    from .errors import BackendUnavailableError as BackendUnavailableError
    from .errors import FampeWarning as FampeWarning
    from .errors import ImageReadError as ImageReadError
    from .errors import WeightsUnavailableError as WeightsUnavailableError
    from .methods.attexplore import AttEXplore as AttEXplore
    from .methods.calibration import DepthCalibration as DepthCalibration
    from .methods.depth_search import calibrate_depths as calibrate_depths
    from .methods.fampe import FAMPE as FAMPE
    from .methods.forgrad import FORGrad as FORGrad
    from .methods.forgrad import LowPassGradients as LowPassGradients
    from .methods.registry import create_method as create_method
    from .methods.tuning import TunedCutoff as TunedCutoff
    from .methods.tuning import tune_cutoff as tune_cutoff
    from .methods.warmup import WarmUp as WarmUp
    from .methods.warmup import warmup as warmup
    from .metrics import centre_gain as centre_gain
    from .metrics import grid_pointing as grid_pointing
    from .metrics import insertion_deletion as insertion_deletion
    from .metrics import mu_fidelity as mu_fidelity
    from .metrics import parameter_randomisation as parameter_randomisation
    from .metrics import stability as stability
    from .models import Classifier as Classifier
    from .models import load_classifier as load_classifier
    from .models import load_embedded_classifier as load_embedded_classifier
    from .ops.backends import register_backend as register_backend
    from .robustness import PGD as PGD
    from .robustness import BandLimitedAttack as BandLimitedAttack
    from .robustness import BandMixAugmentation as BandMixAugmentation
    from .robustness import FrequencyAttribution as FrequencyAttribution
    from .robustness import LowPassAugmentation as LowPassAugmentation
    from .robustness import transfer_rates as transfer_rates
    from .robustness.occluded_frequency import OccludedFrequency as OccludedFrequency


class _Beside(MetaPathFinder):
    """Finds the two parts of the package that are beside it in a checkout; an installed package contains them.

    From a checkout's folder Python finds this package there before an installed one.
    """

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        """Find the package of a part; None for other names."""
        package, _, part = fullname.rpartition(".")
        if package != __name__ or part not in ("kernels", "reference"):
            return None
        folder = Path(__file__).parents[1] / part
        return spec_from_file_location(fullname, folder / "__init__.py", submodule_search_locations=[str(folder)])


if not (Path(__file__).parent / "kernels").is_dir():
    sys.meta_path.insert(0, _Beside())

_HOMES = {
    "AttEXplore": "methods.attexplore",
    "AttEXploreConfig": "engine.config",
    "BackendUnavailableError": "errors",
    "BandLimitedAttack": "robustness",
    "BandMixAugmentation": "robustness",
    "Classifier": "models",
    "DepthCalibration": "methods.calibration",
    "FAMPE": "methods.fampe",
    "FAMPEConfig": "engine.config",
    "FORGrad": "methods.forgrad",
    "FampeWarning": "errors",
    "ImageReadError": "errors",
    "FrequencyAttribution": "robustness",
    "LowPassAugmentation": "robustness",
    "LowPassGradients": "methods.forgrad",
    "OccludedFrequency": "robustness",
    "PGD": "robustness",
    "TunedCutoff": "methods.tuning",
    "WarmUp": "methods.warmup",
    "WeightsUnavailableError": "errors",
    "calibrate_depths": "methods.depth_search",
    "centre_gain": "metrics",
    "create_method": "methods.registry",
    "grid_pointing": "metrics",
    "insertion_deletion": "metrics",
    "load_classifier": "models",
    "load_embedded_classifier": "models",
    "mu_fidelity": "metrics",
    "parameter_randomisation": "metrics",
    "read_maps": "batch.reading",
    "register_backend": "ops.backends",
    "stability": "metrics",
    "transfer_rates": "robustness",
    "tune_cutoff": "methods.tuning",
    "warmup": "methods.warmup",
}

__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that importing the package is fast."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
