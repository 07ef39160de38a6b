"""Define the studies of the catalog, which vary one or two of FAMPE's parameters and compare with AttEXplore."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..catalog import DEPTH_OPTIONS, STUDIES, load
from ..engine.config import FAMPEConfig
from ..reference.radial_mask import SHAPES
from .study_design import Study, Variant

_BYTE = 1 / 255


@dataclass(frozen=True)
class Budget:
    """The steps, samples, seed and options that all variants of a study share.

    Attributes:
        steps: T.
        samples: N.
        seed: seed of the random numbers.
        options: options of FAMPE for the variants that do not vary them.
    """

    steps: int = 10
    samples: int = 20
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)

    def fampe(self, label: str, axis: str = "", value: float = 0.0, series: str = "fampe", **options: Any) -> Variant:
        """Make a variant of FAMPE's path, without depths, with its own options."""
        return Variant(label, "fampe", {**self.path(), "views": 0, **self.options, **options}, axis, value, series)

    def fampe_in(self, passes: int) -> Variant:
        """Make the variant of FAMPE with a number of passes."""
        options = {**self.options, "seed": self.seed, **FAMPEConfig.budget(passes)}
        return Variant(f"fampe, {passes} {'pass' if passes == 1 else 'passes'}", "fampe", options)

    def baseline(self) -> Variant:
        """Make the reference variant: AttEXplore with the same number of passes."""
        return Variant("attexplore", "attexplore", self.path())

    def path(self) -> dict[str, Any]:
        """Return the options of every path method."""
        return {"steps": self.steps, "samples": self.samples, "seed": self.seed}


def methods_study(budget: Budget) -> Study:
    """Compare FAMPE's parts with each other and with AttEXplore."""
    path = {**budget.path(), **budget.options}
    return Study(
        "methods", "Which method, and which part of it?",
        (
            budget.baseline(),
            Variant("fampe_published", "fampe_published", path),
            budget.fampe("fampe, path"),
            budget.fampe("fampe, path, attribution as collected", area_cutoff=None),
            budget.fampe("fampe, path and depths", views=2),
            Variant("attexplore, two scales", "attexplore", {**budget.path(), "area_cutoff": FAMPEConfig.area_cutoff}),
        ),
    )  # fmt: skip


def peers_study(budget: Budget) -> Study:
    """Compare methods, including Captum's, with the same number of passes and fewer."""
    passes = budget.steps * budget.samples
    return Study(
        "peers", "Which method, at the same number of passes and at fewer?",
        (
            budget.baseline(),
            *(budget.fampe_in(count) for count in dict.fromkeys((1, 2, 10, passes))),
            budget.fampe("fampe, path, T=5, N=2", steps=5, samples=2),
            Variant("attexplore, T=5, N=2", "attexplore", {**budget.path(), "steps": 5, "samples": 2}),
            *(
                Variant(f"{name}, {'absolute' if absolute else 'signed'}", name, {**options, "absolute": absolute})
                for name, options in (
                    ("integrated_gradients", {"passes": passes}),
                    ("spectral_ig", {"passes": passes}),
                    ("smoothgrad", {"passes": passes, "seed": budget.seed}),
                )
                for absolute in (True, False)
            ),
            Variant("smoothgrad, squared", "smoothgrad", {"passes": passes, "seed": budget.seed, "squared": True}),
            Variant("saliency", "saliency"),
            Variant("saliency, blurred", "saliency", {"blur_cutoff": FAMPEConfig.area_cutoff}),
            Variant("saliency, two scales", "saliency", {"area_cutoff": FAMPEConfig.area_cutoff}),
            *(Variant(name, name) for name in ("gradcam", "gradcam_plus_plus", "hirescam", "layercam", "fullgrad")),
            # A forward pass is about half a pass.
            Variant("rise", "rise", {"passes": 2 * passes, "seed": budget.seed}),
            *_floors(budget),
        ),
    )  # fmt: skip


def tokens_study(budget: Budget) -> Study:
    """Compare the attention of token models with methods for all models."""
    return Study(
        "tokens", "What is a transformer's attention worth as a map?",
        (
            budget.baseline(),
            *(budget.fampe_in(passes) for passes in (1, 10)),
            *(Variant(name, name) for name in ("attention_rollout", "attention_gradient", "gradcam", "layercam")),
            Variant("saliency, two scales", "saliency", {"area_cutoff": FAMPEConfig.area_cutoff}),
            *_floors(budget),
        ),
    )  # fmt: skip


def forgrad_study(budget: Budget) -> Study:
    """Compare gradient methods with and without FORGrad's filter, and RISE with increasing numbers of masks."""
    passes = budget.steps * budget.samples
    filtered = [
        Variant(f"{name}{', FORGrad' if prefix else ''}", f"{prefix}{name}", options)
        for name, options in (
            ("saliency", {}),
            ("smoothgrad", {"passes": passes, "seed": budget.seed}),
            ("integrated_gradients", {"passes": passes}),
        )
        for prefix in ("", "forgrad_")
    ]
    # A forward pass is about half a pass.
    masks = dict.fromkeys(max(1, count) for count in (passes // 5, passes, 2 * passes, 10 * passes))
    rise = [Variant(f"rise, {count} masks", "rise", {"passes": count, "seed": budget.seed}) for count in masks]
    return Study(
        "forgrad", "What does FORGrad's filter gain, and how long do methods without gradients take for that?",
        (*filtered, Variant("gradcam", "gradcam"), budget.fampe_in(1), *rise, *_floors(budget)),
    )  # fmt: skip


def _floors(budget: Budget) -> tuple[Variant, ...]:
    return Variant("centre_prior", "centre_prior"), Variant("random_map", "random_map", {"seed": budget.seed})


def explorer_study(budget: Budget) -> Study:
    """Compare paths whose steps are decided by another model."""
    variants = [
        Variant(f"{name}, other explorer", name, path, explored=True)
        for name, path in (("attexplore", budget.path()), ("fampe", {**budget.path(), "views": 0, **budget.options}))
    ]
    return Study(
        "explorer", "Do samples met on another model's path serve as well?",
        (budget.baseline(), budget.fampe("fampe"), *variants),
    )  # fmt: skip


def alpha_study(budget: Budget) -> Study:
    """Vary alpha, the weight of the low band, in both readings of what it weighs."""
    variants = [
        budget.fampe(f"alpha={alpha:g}, {mode}", "alpha", alpha, mode, alpha=alpha, mode=mode)
        for mode in ("mix", "modulate")
        for alpha in (tenths / 10 for tenths in range(11))
    ]
    return Study("alpha", "How much should the low band weigh?", (budget.baseline(), *variants))


def cutoff_study(budget: Budget) -> Study:
    """Vary the cut-off between the bands, by energy or at a fixed radius."""
    by_energy = [
        budget.fampe(
            f"tau={tau:g}, {'with' if dc else 'without'} DC",
            "tau",
            tau,
            "energy with DC" if dc else "energy without DC",
            tau=tau,
            include_dc=dc,
            cutoff=None,
        )
        for dc in (True, False)
        for tau in (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
    ]
    fixed = [
        budget.fampe(f"cutoff={radius}", "cut-off (cycles)", radius, "fixed", cutoff=float(radius))
        for radius in (30, 50, 70)
    ]
    return Study(
        "cutoff", "Where should the bands be told apart: by energy, or at a fixed radius?",
        (budget.baseline(), *by_energy, *fixed),
    )  # fmt: skip


def budget_study(budget: Budget) -> Study:
    """Vary steps and samples."""
    variants = [
        budget.fampe(f"T={steps}, N={samples}", "passes", steps * samples, f"N={samples}", steps=steps, samples=samples)
        for samples in (2, 5, 10, 20)
        for steps in (1, 2, 5, 10)
    ]
    return Study("budget", "How many steps and samples are enough?", (budget.baseline(), *variants))


def noise_study(budget: Budget) -> Study:
    """Vary sigma and rho, the perturbations' strength."""
    sigmas = [
        budget.fampe(f"sigma={level}/255", "sigma * 255", level, "sigma", sigma=level * _BYTE)
        for level in (0, 4, 8, 16, 32, 64)
    ]
    rhos = [budget.fampe(f"rho={rho:g}", "rho", rho, "rho", rho=rho) for rho in (0.0, 0.25, 0.5, 0.75, 1.0)]
    return Study("noise", "How strong should the perturbations be?", (budget.baseline(), *sigmas, *rhos))


def shapes_study(budget: Budget) -> Study:
    """Vary the shape of the mask between the bands, in both readings of what the bands' weights multiply."""
    variants = [
        budget.fampe(f"{shape}, {mode}", mode=mode, mask_shape=shape)
        for mode in ("mix", "modulate")
        for shape in SHAPES
    ]
    return Study("shapes", "How should the bands be parted: softly or sharply?", (budget.baseline(), *variants))


def define_study(name: str, budget: Budget | None = None) -> Study:
    """Define a study by name.

    Args:
        name: a key of ``catalog.STUDIES``.
        budget: steps, samples, seed and options that its variants share; default: AttEXplore's T = 10, N = 20.

    Raises:
        ValueError: an unknown name, or options of depths for variants without views.
    """
    if name not in STUDIES:
        raise ValueError(f"unknown study {name!r}; known are {', '.join(STUDIES)}")
    budget = budget or Budget()
    study: Study = load(STUDIES[name].home)(budget)
    given = [option for option in DEPTH_OPTIONS if option in budget.options]
    if given and not any(variant.options.get("views") for variant in study.variants):
        raise ValueError(
            f"no variant of the study {name!r} has views: give views=1 or 2, or leave out {', '.join(given)}"
        )
    return replace(study, variants=tuple(_without_idle_options(variant) for variant in study.variants))


def _without_idle_options(variant: Variant) -> Variant:
    """Remove the options of depths from a variant without views."""
    idle = () if variant.options.get("views") else DEPTH_OPTIONS
    return replace(variant, options={name: value for name, value in variant.options.items() if name not in idle})
