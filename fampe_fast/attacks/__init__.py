"""Adversarial images limited to a band of frequencies, how they transfer, and what they say about models."""

from .analysis import BandDisturbance, compare_reliance, disturbance
from .band_limited import AdversarialImages, BandLimitedAttack
from .transfer import TransferRates, transfer_rates

__all__ = [
    "AdversarialImages",
    "BandDisturbance",
    "BandLimitedAttack",
    "TransferRates",
    "compare_reliance",
    "disturbance",
    "transfer_rates",
]
