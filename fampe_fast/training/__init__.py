"""What is used while training a classifier."""

from .augmentation import BandMixAugmentation, LowPassAugmentation

__all__ = ["BandMixAugmentation", "LowPassAugmentation"]
