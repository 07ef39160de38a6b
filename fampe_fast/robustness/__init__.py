"""Measure which frequency bands a model relies on, attack it within a band, and train it to resist such attacks.

Methods of one group of papers: Occluded Frequency, attribution to frequencies, band-limited attacks, their transfer and
the disturbance they cause, and augmentations in the frequency domain.
"""

from .adversarial import PGD
from .analysis import BandDisturbance, compare_reliance, disturbance
from .augmentation import BandMixAugmentation, LowPassAugmentation
from .band_limited import AdversarialImages, BandLimitedAttack
from .first_order import FirstOrderFit, FirstOrderTest
from .frequency_attribution import FrequencyAttribution, FrequencyEvidence
from .layer_spectra import LayerSpectrum, layer_spectra
from .occluded_frequency import OccludedFrequency
from .simba import SimBA, SimBAConfig
from .transfer import TransferRates, transfer_rates

__all__ = [
    "PGD",
    "AdversarialImages",
    "BandDisturbance",
    "BandLimitedAttack",
    "BandMixAugmentation",
    "FirstOrderFit",
    "FirstOrderTest",
    "FrequencyAttribution",
    "FrequencyEvidence",
    "LayerSpectrum",
    "LowPassAugmentation",
    "OccludedFrequency",
    "SimBA",
    "SimBAConfig",
    "TransferRates",
    "compare_reliance",
    "disturbance",
    "layer_spectra",
    "transfer_rates",
]
