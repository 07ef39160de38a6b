"""Measure the quality of maps: insertion and deletion, mu-fidelity, stability, localisation, means with errors."""

from __future__ import annotations

from .centre_gain import CentreGain, centre_gain
from .centre_prior import centre_prior
from .grid_pointing import GridPointing, grid_pointing
from .insertion_deletion import InsertionDeletion, insertion_deletion
from .localisation import pointing_game, relevance_mass
from .mu_fidelity import MuFidelity, mu_fidelity
from .parameter_randomisation import ParameterRandomisation, parameter_randomisation
from .partners import Partners
from .protocols import PROTOCOLS, GaussianBlur, Protocol, SolidColour
from .stability import Stability, stability
from .summary import Estimate, mean_and_error, paired_difference

__all__ = [
    "PROTOCOLS",
    "CentreGain",
    "Estimate",
    "GaussianBlur",
    "GridPointing",
    "InsertionDeletion",
    "MuFidelity",
    "ParameterRandomisation",
    "Partners",
    "Protocol",
    "SolidColour",
    "Stability",
    "centre_gain",
    "centre_prior",
    "grid_pointing",
    "insertion_deletion",
    "mean_and_error",
    "mu_fidelity",
    "paired_difference",
    "parameter_randomisation",
    "pointing_game",
    "relevance_mass",
    "stability",
]
