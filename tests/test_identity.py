"""What tells one classifier from another: all that its answers depend on, and nothing else."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn

from fampe_fast.models import Classifier, load_embedded_classifier
from fampe_fast.models.identity import identity_of


def small(
    *, padding: int = 1, mean: float = 0.5, size: int = 32, last: float = 0.0, name: str = "small", crop: object = None
) -> Classifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=padding), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model[0].weight.data[-1, -1, -1, -1] += last
    return Classifier(model.eval(), name=name, mean=mean, input_size=size, transform=crop)


def fingerprint(classifier: Classifier) -> object:
    return identity_of(classifier)["fingerprint"]


def test_it_is_the_same_for_the_same_model() -> None:
    assert identity_of(small()) == identity_of(small())
    assert identity_of(small())["model"] == "small"
    assert fingerprint(small()) == fingerprint(small().to(memory_format=torch.channels_last))
    # A function shows its address, which is another in every process.
    assert fingerprint(small(crop=partial(print))) == fingerprint(small(crop=partial(print)))


@pytest.mark.parametrize(
    "other",
    [
        partial(small, padding=0),  # the same weights
        partial(small, mean=0.4),
        partial(small, size=48),
        partial(small, last=1e-6),
        partial(small, crop=partial(print)),
        lambda: small().half(),
    ],
    ids=["padding", "mean", "size", "one weight", "transform", "precision"],
)
def test_it_is_another_for_whatever_changes_an_answer(other: Callable[[], Classifier]) -> None:
    assert fingerprint(other()) != fingerprint(small())


def test_it_is_the_same_in_every_process() -> None:
    script = (
        "from fampe_fast.models import load_embedded_classifier\n"
        "from fampe_fast.models.identity import identity_of\n"
        "print(identity_of(load_embedded_classifier())['fingerprint'])"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert said.strip() == fingerprint(load_embedded_classifier())
