"""Classifiers that take images in pixel space, [0, 1], and the ways to load one.

Neither timm nor torchvision is imported before a model that needs it is loaded.
"""

from .batch_norm import fold_batch_norm
from .classifier import Classifier
from .embedded import load_embedded_classifier
from .loading import load_classifier

__all__ = ["Classifier", "fold_batch_norm", "load_classifier", "load_embedded_classifier"]
