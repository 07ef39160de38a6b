"""What tells one classifier from another in a record: its name does not."""

from __future__ import annotations

import hashlib
import re

import torch

from fampe_fast.models.classifier import Classifier

__all__ = ["identity_of"]

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def identity_of(classifier: Classifier) -> dict[str, object]:
    """A classifier's name and a fingerprint of all that its answers to an image file depend on.

    Args:
        classifier: with its weights; reads every one of them (a tenth of a second per 100 MB).

    Returns:
        ``model``, the name, and ``fingerprint``, 16 hexadecimal digits of SHA-256 over the modules with their settings
        (as ``repr`` shows them), every parameter and buffer (the normalisation among them), input size and transform.
    """
    digest = hashlib.sha256()
    for shown in (classifier, classifier.transform):
        digest.update(_ADDRESS.sub("", repr(shown)).encode())
    for name, value in sorted(classifier.state_dict().items()):
        if isinstance(value, torch.Tensor):
            digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return {"model": classifier.name, "fingerprint": digest.hexdigest()[:16]}
