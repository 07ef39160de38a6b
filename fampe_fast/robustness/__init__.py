"""Measure which frequency bands a model relies on, attack it within a band, and train it against that.

One family of papers: Occluded Frequency, attribution to frequencies, band-limited attacks and their transfer, the
disturbance they cause, and augmentations in the frequency domain.
"""

from .adversarial import PGD
from .analysis import BandDisturbance, compare_reliance, disturbance
from .augmentation import BandMixAugmentation, LowPassAugmentation
from .band_limited import AdversarialImages, BandLimitedAttack
from .frequency_attribution import FrequencyAttribution, FrequencyEvidence
from .occluded_frequency import OccludedFrequency
from .transfer import TransferRates, transfer_rates

__all__ = [
    "PGD",
    "AdversarialImages",
    "BandDisturbance",
    "BandLimitedAttack",
    "BandMixAugmentation",
    "FrequencyAttribution",
    "FrequencyEvidence",
    "LowPassAugmentation",
    "OccludedFrequency",
    "TransferRates",
    "compare_reliance",
    "disturbance",
    "transfer_rates",
]
