"""How good a map is: insertion and deletion, mu-fidelity, stability, localisation, and their means with errors."""

from __future__ import annotations

from fampe_fast.metrics.insertion_deletion import InsertionDeletion, insertion_deletion
from fampe_fast.metrics.localisation import pointing_game, relevance_mass
from fampe_fast.metrics.mu_fidelity import MuFidelity, mu_fidelity
from fampe_fast.metrics.protocols import PROTOCOLS, GaussianBlur, Protocol, SolidColour
from fampe_fast.metrics.stability import Stability, stability
from fampe_fast.metrics.summary import Estimate, mean_and_error, paired_difference

__all__ = [
    "PROTOCOLS",
    "Estimate",
    "GaussianBlur",
    "InsertionDeletion",
    "MuFidelity",
    "Protocol",
    "SolidColour",
    "Stability",
    "insertion_deletion",
    "mean_and_error",
    "mu_fidelity",
    "paired_difference",
    "pointing_game",
    "relevance_mass",
    "stability",
]
