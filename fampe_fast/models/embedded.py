"""Load the small classifier included in the package, which was trained on its generated images."""

from __future__ import annotations

import json
import math
from copy import deepcopy
from importlib import resources
from itertools import pairwise
from typing import Any, Final

import torch
from torch import Tensor, nn

from .classifier import Classifier

NAME: Final = "embedded_classifier"
SOURCE: Final = "embedded"
"""Its name for ``load_classifier``."""
MEAN: Final = (0.5, 0.5, 0.5)
STD: Final = (0.25, 0.25, 0.25)
#: Per layer: channels, and whether 2 x 2 averaging follows. The first has stride 2, so the head sees steps of 8 pixels.
_LAYERS: Final = ((16, True), (32, False), (48, True), (64, False), (64, False))


class EmbeddedNet(nn.Module):
    """A plain network: five convolutions with ReLU, average pooling between them, a linear head at each position.

    The positions' logits are pooled by log-mean-exp, so that positions with evidence dominate the output and the
    gradient (Pinheiro and Collobert, "From Image-level to Pixel-level Labeling with Convolutional Networks", 2015). The
    first kernel's width is a multiple of its stride and later layers are reduced by averaging, which avoids the
    checkerboard of strided layers in the gradient (Odena et al., "Deconvolution and Checkerboard Artifacts", 2016).

    Args:
        num_classes: number of logits.
        batch_norm: add batch normalisation after the convolutions, for training; ``folded`` returns the network without
            it, which is the included one.
    """

    def __init__(self, num_classes: int, *, batch_norm: bool = False) -> None:
        super().__init__()
        self.num_classes = num_classes
        widths = [width for width, _ in _LAYERS]
        self.convs = nn.ModuleList([nn.Conv2d(3, widths[0], kernel_size=6, stride=2, padding=2, bias=not batch_norm)])
        for narrow, wide in pairwise(widths):
            self.convs.append(nn.Conv2d(narrow, wide, kernel_size=3, padding=1, bias=not batch_norm))
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) if batch_norm else nn.Identity() for width in widths)
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits (B, num_classes) of normalised images (B, 3, H, W), H and W at least 16."""
        x = images
        for (_, pooled), conv, norm in zip(_LAYERS, self.convs, self.norms, strict=True):
            x = torch.relu(norm(conv(x)))
            if pooled:
                x = nn.functional.avg_pool2d(x, 2)
        logits: Tensor = self.head(x.flatten(2).transpose(1, 2))  # (B, places, num_classes)
        return logits.logsumexp(1) - math.log(logits.shape[1])

    def folded(self) -> EmbeddedNet:
        """Make the same network, in eval mode, with the normalisation folded into the convolutions."""
        net = EmbeddedNet(self.num_classes).to(self.head.weight.dtype).eval()
        net.head.load_state_dict(self.head.state_dict())
        for target, conv, norm in zip(net.convs, self.convs, self.norms, strict=True):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                conv = nn.utils.fuse_conv_bn_eval(deepcopy(conv).eval(), deepcopy(norm).eval())
            target.load_state_dict(conv.state_dict())
        return net


def embedded_record() -> dict[str, Any]:
    """Read the record of the embedded weights: seeds, steps, versions, held-out accuracies, the file's SHA-256."""
    record: dict[str, Any] = json.loads(_data(f"{NAME}.json"))
    return record


def load_embedded_classifier(device: torch.device | str | None = None) -> Classifier:
    """Load the classifier included in the package; needs no network connection.

    It has eight classes, the combinations of a shape and the frequency band of its texture, in 96 x 96 images from
    ``fampe_fast.images.generated.generate``. It was trained by ``benchmarks/train_embedded_classifier.py``.

    Args:
        device: device of the classifier; the CPU by default.

    Returns:
        The classifier in eval mode, taking float32 (B, 3, 96, 96) in [0, 1] and returning logits (B, 8).
    """
    from safetensors.torch import load

    record = embedded_record()
    net = EmbeddedNet(len(record["class_names"]))
    net.load_state_dict(load(_data(f"{NAME}.safetensors")))
    classifier = Classifier(
        net, name=NAME, mean=MEAN, std=STD, input_size=record["input_size"], class_names=record["class_names"]
    )
    classifier.requires_grad_(False).eval()
    # convolutions on a CPU are fastest in channels-last; on other devices the engine decides
    return classifier.to(memory_format=torch.channels_last) if device is None else classifier.to(device)


def _data(name: str) -> bytes:
    return (resources.files("fampe_fast") / "weights" / name).read_bytes()
