"""Find the class names of timm's classifiers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any


def timm_class_names(pretrained_cfg: Mapping[str, Any], num_classes: int) -> tuple[str, ...] | None:
    """Find the class names of a timm model: its configuration's, else ImageNet's by the number of classes.

    Args:
        pretrained_cfg: the model's ``pretrained_cfg``.
        num_classes: the model's number of classes.

    Returns:
        One name per class, or None if the names are unknown.
    """
    labels = pretrained_cfg.get("label_names")
    if labels and len(labels) == num_classes:
        described = pretrained_cfg.get("label_descriptions") or {}
        if not isinstance(described, Mapping):
            described = dict(zip(labels, described, strict=False))
        return tuple(str(described.get(label, label)) for label in labels)

    from timm.data import ImageNetInfo, infer_imagenet_subset  # type: ignore[attr-defined]

    subset = infer_imagenet_subset({"num_classes": num_classes})
    return imagenet_class_names(ImageNetInfo(subset)) if subset else None


def imagenet_class_names(info: Any) -> tuple[str, ...]:
    """Make short, distinct names: the first WordNet lemma, where classes share it all lemmas, else with the synset.

    ImageNet-1k has two classes "crane" and two "maillot"; the larger sets have hundreds of such pairs.

    Args:
        info: a ``timm.data.ImageNetInfo``.
    """
    synsets = info.label_names()
    lemmas = [info.label_name_to_description(synset) for synset in synsets]
    short = [lemma.split(", ")[0] for lemma in lemmas]
    short_count, lemma_count = Counter(short), Counter(lemmas)
    return tuple(
        name if short_count[name] == 1 else full if lemma_count[full] == 1 else f"{full} ({synset})"
        for name, full, synset in zip(short, lemmas, synsets, strict=True)
    )
