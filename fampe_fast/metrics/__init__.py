"""How good a map is: insertion and deletion, localisation, and their means with errors."""

from __future__ import annotations

from fampe_fast.metrics.insertion_deletion import InsertionDeletion, insertion_deletion
from fampe_fast.metrics.localisation import pointing_game, relevance_mass
from fampe_fast.metrics.protocols import PROTOCOLS, GaussianBlur, Protocol, SolidColour
from fampe_fast.metrics.summary import Estimate, mean_and_error, paired_difference

__all__ = [
    "PROTOCOLS",
    "Estimate",
    "GaussianBlur",
    "InsertionDeletion",
    "Protocol",
    "SolidColour",
    "insertion_deletion",
    "mean_and_error",
    "paired_difference",
    "pointing_game",
    "relevance_mass",
]
