"""Draw the pictures of docs/concepts/methods.md, and the places of docs/results/frequency.md.

The embedded classifier on generated images, so anyone can repeat them:

python -m benchmarks.draw_docs --out docs/pictures
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from fampe_fast import (
    BandLimitedAttack,
    FrequencyAttribution,
    OccludedFrequency,
    create_method,
    load_embedded_classifier,
)
from fampe_fast.engine.config import PathConfig
from fampe_fast.frequency import fourier_signature, power_slope, three_bands
from fampe_fast.frequency.bands import NAMES_OF_THREE
from fampe_fast.images.generated import generate
from fampe_fast.metrics import insertion_deletion
from fampe_fast.metrics.summary import bootstrap_interval
from fampe_fast.models import Classifier
from fampe_fast.plots import contact_sheet, curves_figure, overlay, save_figure, signatures_figure, slopes_figure
from fampe_fast.plots.bands import BandCurve, bands_figure
from fampe_fast.robustness import disturbance

PATH = {"steps": 10, "samples": 20}
METHODS = {
    "fampe": {"passes": 10},
    "fampe_published": PATH,
    "attexplore": PATH,
    "forgrad_attexplore": {**PATH, "map_cutoff": 12},
    "integrated_gradients": {"passes": 200},
    "smoothgrad": {"passes": 200},
    "gradcam": {},
    "saliency": {},
    "forgrad_saliency": {"map_cutoff": 12},
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the pictures of docs/concepts/methods.md.")
    parser.add_argument("--out", type=Path, required=True, help="folder")
    out = parser.parse_args().out
    classifier, drawn = load_embedded_classifier(), generate(24, seed=7)
    few = drawn.images[:4], drawn.labels[:4]
    maps = {
        name: create_method(name, classifier, **options).attribute(*few, internal_batch_size=32)
        for name, options in METHODS.items()
    }
    judged = {name: insertion_deletion(classifier, few[0], found, few[1]) for name, found in maps.items()}
    scores = {name: found.faithfulness for name, found in judged.items()}
    titles = [classifier.class_name(int(label)) for label in few[1]]
    sheet = contact_sheet(list(few[0]), maps, titles, scores=scores, score_name="insertion − deletion (rise)")
    save_figure(sheet, out / "maps.png")
    save_figure(overlay(few[0][0], maps["fampe"][0], class_name=titles[0]), out / "overlay.png")
    curves = judged["fampe"].insertion_curves[0], judged["fampe"].deletion_curves[0]
    save_figure(curves_figure(*curves, title=f"fampe, {titles[0]}"), out / "curves.png")

    signatures = {name: fourier_signature(found) for name, found in maps.items()}
    save_figure(signatures_figure(signatures, title="Fourier signatures of the maps"), out / "signatures.png")
    slopes = {name: power_slope(signature) for name, signature in signatures.items()}
    save_figure(slopes_figure(slopes), out / "slopes.png")

    with torch.no_grad():
        right = classifier(drawn.images).argmax(1) == drawn.labels
    images, labels = drawn.images[right], drawn.labels[right]
    found = OccludedFrequency(classifier, bands=12)(images, labels)
    coarse = torch.tensor(["coarse" in classifier.class_name(int(label)) for label in labels])
    drops = {
        name: BandCurve(found.edges[0], found.drops[rows].mean(0), bootstrap_interval(found.drops[rows]))
        for name, rows in (("coarse classes", coarse), ("fine classes", ~coarse))
    }
    figure = bands_figure(drops, title="Occluded Frequency: which band carries the class")
    save_figure(figure, out / "occluded_frequency.png")

    config = PathConfig(steps=10, samples=1, eps=8 / 255, smoothing=False, input_diversity=False)
    shares = {}
    for band in ("low", "high", "all"):
        attacked = BandLimitedAttack(classifier, band, 12, config)(images, labels)
        share = disturbance(images, attacked.images, bands=12)
        shares[f"{band} band"] = BandCurve(share.edges, share.share().mean(0))
    figure = bands_figure(
        shares, title="Band-limited attacks: where the perturbation is", ylabel="share of the perturbation's energy"
    )
    save_figure(figure, out / "band_limited_attack.png")
    save_figure(places_figure(classifier, *few), out / "places.png")
    print(f"wrote {', '.join(path.name for path in sorted(out.glob('*.png')))}")


def places_figure(classifier: Classifier, images: Tensor, labels: Tensor) -> Figure:
    """Draw where the low, the middle and the high band of images speak for their classes."""
    evidence = FrequencyAttribution(classifier)(images, labels)
    places = evidence.places(three_bands(*images.shape[-2:]))
    maps = {"all bands": places.sum(1), **{name: places[:, k] for k, name in enumerate(NAMES_OF_THREE)}}
    scores = {name: found.sum((1, 2, 3)) for name, found in maps.items()}
    titles = [classifier.class_name(int(label)) for label in labels]
    return contact_sheet(list(images), maps, titles, scores=scores, score_name="the band's evidence, in logits")


if __name__ == "__main__":
    main()
