"""Load classifiers that take images in pixel space, [0, 1].

timm and torchvision are imported only when a model that needs them is loaded.
"""

from .batch_norm import fold_batch_norm
from .classifier import Classifier
from .embedded import load_embedded_classifier
from .loading import load_classifier

__all__ = ["Classifier", "fold_batch_norm", "load_classifier", "load_embedded_classifier"]
