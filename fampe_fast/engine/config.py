"""Define configurations: frozen dataclasses that validate their fields."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from ..catalog import DEPTH_OPTIONS
from ..checks import (
    LARGEST,
    LARGEST_CUTOFF,
    check_bounds,
    check_choice,
    check_count,
    check_flag,
    check_fraction,
    check_gaussian_cutoff,
    check_number,
    check_seed,
)
from ..reference.radial_mask import Shape
from ..runtime.compilation import Compile

Mode = Literal["mix", "modulate", "allpass"]
Loss = Literal["cross_entropy", "softmax_twice"]
Direction = Literal["descend", "ascend"]
Precision = Literal["auto", "fp32", "tf32", "bf16", "fp16"]


# Least step size, in spacings of float32 near the largest pixel: the map is then accurate to 3 %.
_SPACINGS = 16
# Above this number, more samples improve a map more than more steps.
_MOST_STEPS = 10
# Growth of the momentum, in decimal digits, that leaves float32 room for the gradients and their sum.
_MOMENTUM_DIGITS = 25


def _check_views(views: object) -> int:
    """Check a number of views.

    Raises:
        TypeError, ValueError: it is not 0, 1 or 2.
    """
    count = check_count("views", views, at_least=0)
    if count > 2:
        raise ValueError(f"views must be 0, 1 (the image) or 2 (its mirror image as well), got {count}")
    return count


def _names(name: str, value: object) -> tuple[str, ...] | None:
    """Check names, given as a comma-separated string or as a sequence.

    Raises:
        TypeError: neither, or a name that is not a string.
        ValueError: an empty name, or one given twice.
    """
    if value is None:
        return None
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, (list, tuple)) or not all(isinstance(part, str) for part in parts):
        raise TypeError(f"{name} must be names separated by commas, a tuple of names, or None; got {value!r}")
    names = tuple(part.strip() for part in parts)
    if not all(names) or len(set(names)) < len(names):
        raise ValueError(f"{name} must be non-empty names without repeats; got {value!r}")
    return names


def _layer_weights(value: object) -> tuple[float, ...] | None:
    """Check the weights of layers, given as a comma-separated string or as a sequence.

    Raises:
        TypeError: neither, or a weight that is not a number.
        ValueError: no weight, one that cannot be read, or one that is negative, not finite or too large.
    """
    if value is None:
        return None
    expected = f"layer_weights must be numbers separated by commas, a tuple of numbers, or None; got {value!r}"
    if not isinstance(value, (str, list, tuple)):
        raise TypeError(expected)
    try:
        parts = [float(part) for part in value.split(",")] if isinstance(value, str) else value
    except ValueError:
        raise ValueError(expected) from None
    if not parts:
        raise ValueError(expected)
    return tuple(check_number("layer_weights", part, 0, largest=LARGEST) for part in parts)


def _settle(config: object, **values: object) -> None:
    """Replace the caller's values by the checked ones."""
    for name, value in values.items():
        object.__setattr__(config, name, value)


@dataclass(frozen=True, kw_only=True)
class PathConfig:
    """The fields that all path methods share; defaults are AttEXplore's (Zhu et al., ICLR 2024, section 4.1).

    Attributes:
        steps: number of steps along the path, T; 0 for no path, which needs views.
        samples: number of perturbed samples per step whose gradients are averaged, N.
        views: number of passes that collect the evidence of the layers: 0 for none, 1 for the image, 2 for the image
            and its mirror image.
        layers: names of the modules whose evidence is collected, separated by commas, such as "layer2,layer3,layer4";
            "act#1" is the second call of "act" in a pass; None chooses them automatically.
        pixel_weight: weight of the pixels' evidence in the sum, 0 or more; None is 4 for the evidence of a path and 0
            for that of a plain gradient.
        layer_weights: weights of the layers in the sum, from fine to coarse, separated by commas, each 0 or more, such
            as "1,1,0"; None is 0 for the last layer, which is the gate, and 1 for the others.
        gate_floor: factor on the other layers' evidence where the last layer has none, 0 or more, in units of the last
            layer's mean.
        eps: radius of the path around the image (maximum norm), in pixel units, at most 1e12 and large enough for a
            step to move a float32 pixel (1e-6 per step for pixels up to 1).
        decay: factor on the momentum from step to step (MI-FGSM, arXiv 1710.06081), 0 or more; above 1 only while the
            momentum of all steps fits into float32.
        smoothing: convolve the mean gradient with a 7x7 Gaussian, standard deviation 1 pixel (TI-FGSM, arXiv
            1904.02884).
        input_diversity: resize and pad each sample with probability 1/2 (DI-FGSM, arXiv 1803.06978).
        gradient_cutoff: remove the frequencies of the mean gradient above this radius, in cycles over the shorter side,
            0 to 1e15; None keeps all. This is FORGrad's disc (arXiv 2307.09591) on signed gradients, channel by
            channel; its authors' public code filters finished maps without signs, as ``FORGrad`` does.
        area_cutoff: without views, combine the attribution with its Gaussian low-pass (``frequency.two_scale_map``) of
            this cut-off in cycles over the shorter side, 1e-15 to 1e15; None leaves the attribution unchanged.
        direction: ``descend`` the target's loss, as AttEXplore's public code does, or ``ascend`` it, as an attack.
        loss: ``cross_entropy`` of the logits, or ``softmax_twice``, the cross-entropy of a second softmax, as in
            AttEXplore's public code.
        seed: seed of all random numbers, any 64-bit integer.
        bounds: smallest and largest pixel value, finite.
        precision: arithmetic of the model; samples and sums are float32. ``auto`` is float32, on a GPU with tf32 where
            the process allows it, as torch does for convolutions by default; ``fp32`` forbids tf32, ``tf32`` allows it,
            and ``bf16`` and ``fp16`` autocast.
        compile: run the loop over the samples through ``torch.compile``: ``on``, ``off``, ``graphs`` (with CUDA
            graphs), or ``auto``: off for a CPU; on for a GPU once a model's passes have kept 12 TiB for their backward
            passes, after ``warmup``, and always in runs that record their chunk size (``batch``, ``serve``), with CUDA
            graphs where launching a chunk takes longer than computing it; before, such chunks and single passes are
            captured as they are, after 16 of them (single passes after ``warmup``, too). On a CPU compiling pays only
            in long runs (MobileNetV2 on 2 cores: 40 s to compile, for passes about 10 % faster); it changes the last
            bits of the result; a model that cannot be compiled runs uncompiled, with a warning.
    """

    steps: int = 10
    samples: int = 20
    views: int = 0
    layers: str | tuple[str, ...] | None = None
    pixel_weight: float | None = None
    layer_weights: str | tuple[float, ...] | None = None
    gate_floor: float = 0.5
    eps: float = 16 / 255
    decay: float = 1.0
    smoothing: bool = True
    input_diversity: bool = True
    gradient_cutoff: float | None = None
    area_cutoff: float | None = None
    direction: Direction = "descend"
    loss: Loss = "cross_entropy"
    seed: int = 0
    bounds: tuple[float, float] = (0.0, 1.0)
    precision: Precision = "auto"
    compile: Compile = "auto"

    def __post_init__(self) -> None:
        _settle(
            self,
            steps=check_count("steps", self.steps, at_least=0),
            views=_check_views(self.views),
            layers=_names("layers", self.layers),
            layer_weights=_layer_weights(self.layer_weights),
            gate_floor=check_number("gate_floor", self.gate_floor, 0, largest=LARGEST),
            samples=check_count("samples", self.samples),
            eps=check_number("eps", self.eps, 0, open_low=True, largest=LARGEST),
            decay=check_number("decay", self.decay, 0),
            smoothing=check_flag("smoothing", self.smoothing),
            input_diversity=check_flag("input_diversity", self.input_diversity),
            direction=check_choice("direction", self.direction, get_args(Direction)),
            loss=check_choice("loss", self.loss, get_args(Loss)),
            precision=check_choice("precision", self.precision, get_args(Precision)),
            compile=check_choice("compile", self.compile, get_args(Compile)),
            seed=check_seed(self.seed),
            bounds=check_bounds(self.bounds),
        )
        if self.pixel_weight is not None:
            _settle(self, pixel_weight=check_number("pixel_weight", self.pixel_weight, 0, largest=LARGEST))
        if self.gradient_cutoff is not None:
            cutoff = check_number("gradient_cutoff", self.gradient_cutoff, 0, largest=LARGEST_CUTOFF)
            _settle(self, gradient_cutoff=cutoff)
        if self.area_cutoff is not None:
            _settle(self, area_cutoff=check_gaussian_cutoff("area_cutoff", self.area_cutoff, None))
        self._check_arithmetic()
        if not self.steps and not self.views:
            raise ValueError(
                "steps and views are both 0, but a map needs a path (steps=5) or a view of the image (views=1)"
            )
        defaults = {field.name: field.default for field in fields(PathConfig)}
        self.check_depths(*(name for name in DEPTH_OPTIONS if getattr(self, name) != defaults[name]))
        pixels = self.steps if self.pixel_weight is None else self.pixel_weight
        if self.layer_weights is not None and not any(self.summed_weights) and not pixels:
            raise ValueError("pixel_weight and all of layer_weights are 0, so the map would be empty")

    @property
    def layer_names(self) -> tuple[str, ...]:
        """The names in ``layers``; empty if the layers are chosen automatically."""
        return () if self.layers is None else tuple(self.layers)

    @property
    def summed_weights(self) -> tuple[float, ...]:
        """The numbers in ``layer_weights``; empty for the default weights."""
        return () if self.layer_weights is None else tuple(map(float, self.layer_weights))

    @property
    def passes(self) -> int:
        """Forward and backward passes per image: views + steps * samples."""
        return self.views + self.steps * self.samples

    def check_depths(self, *names: str) -> None:
        """Refuse options that only apply to views if ``views`` is 0.

        Args:
            *names: names of the options given.

        Raises:
            ValueError: there are some, and ``views`` is 0.
        """
        if names and not self.views:
            raise ValueError(f"views=0 leaves out the depths: give views=1 or 2, or leave out {', '.join(names)}")

    def _check_arithmetic(self) -> None:
        """Refuse numbers that are valid one by one, but together exceed the range of float32."""
        unit = min(1.0, max(abs(bound) for bound in self.bounds))
        smallest = max(self.steps, 1) * unit * _SPACINGS * 2.0**-24
        if self.eps < smallest:
            raise ValueError(
                f"eps must be at least {smallest:.2g} for {self.steps} steps, below which float32 pixels hardly move; "
                f"got {self.eps!r}"
            )
        if self.decay > 1 and (self.steps - 1) * math.log10(self.decay) > _MOMENTUM_DIGITS:
            raise ValueError(
                f"decay must be at most {10 ** (_MOMENTUM_DIGITS / (self.steps - 1)):.3g} for {self.steps} steps, "
                f"beyond which the momentum overflows float32; got {self.decay!r}"
            )


@dataclass(frozen=True, kw_only=True)
class FAMPEConfig(PathConfig):
    """FAMPE's own fields beside the path's; the defaults measured best, ``published`` makes readings of FAMPE's texts.

    ``FAMPE(model, passes=10)`` sets ``views``, ``steps`` and ``samples`` by ``budget``.

    Attributes:
        mode: ``mix``: weigh the low band by alpha and the high band by 1-alpha; ``modulate``: keep the image and weigh
            only the noise; ``allpass``: use one multiplier for all frequencies, AttEXplore's simulation on the FFT.
        alpha: weight of the low band, in [0, 1].
        rho: half-width of the random multipliers, in [0, 1].
        sigma: standard deviation of the white noise, in pixel units, 0 to 1e12.
        tau: share of the spectral energy inside the cut-off, in (0, 1].
        include_dc: count the mean of the image in the spectral energy.
        cutoff: fixed cut-off in cycles over the shorter side, 1e-15 to 1e15; None derives it from tau for each image.
        mask_shape: shape of the low-pass that splits the bands: ``gaussian``, a hard ``disc``, or ``butterworth`` of
            order 2, whose gains at the cut-off are 0.61, 1 and 0.5.
        gain: factor on the ``mix`` weights, above 0 and at most 1e12; 2 makes alpha = 0.5, rho = 0 the identity.
    """

    steps: int = 0
    samples: int = 2
    views: int = 1
    input_diversity: bool = False
    area_cutoff: float | None = 6.0
    mode: Mode = "modulate"
    alpha: float = 0.1
    rho: float = 0.5
    sigma: float = 16 / 255
    tau: float = 0.9
    include_dc: bool = True
    cutoff: float | None = None
    mask_shape: Shape = "gaussian"
    gain: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _settle(
            self,
            mode=check_choice("mode", self.mode, get_args(Mode)),
            alpha=check_fraction("alpha", self.alpha),
            rho=check_fraction("rho", self.rho),
            sigma=check_number("sigma", self.sigma, 0, largest=LARGEST),
            tau=check_number("tau", self.tau, 0, 1, open_low=True),
            include_dc=check_flag("include_dc", self.include_dc),
            mask_shape=check_choice("mask_shape", self.mask_shape, get_args(Shape)),
            gain=check_number("gain", self.gain, 0, open_low=True, largest=LARGEST),
        )
        if self.cutoff is not None:
            _settle(self, cutoff=check_gaussian_cutoff("cutoff", self.cutoff, None))

    @staticmethod
    def budget(passes: int) -> dict[str, int]:
        """Split a number of passes exactly into views, steps and samples.

        The first pass is the image's own and the second its mirror image's. From three passes on there is also a path,
        of at most ten steps with at least two samples each, beside one or two views, whichever leaves more steps.
        10 passes are two views, T = 4 and N = 2; 200 are two views, T = 9 and N = 22.

        Args:
            passes: forward and backward passes per image, at least 1.

        Returns:
            ``views``, ``steps`` and ``samples``, which together take exactly this number of passes.

        Raises:
            TypeError, ValueError: ``passes`` is not a whole number of at least 1.
        """
        passes = check_count("passes", passes)
        if passes <= 2:
            return {"views": passes, "steps": 0, "samples": 2}
        steps, views = max(
            (steps, views)
            for views in (1, 2)
            for steps in range(1, _MOST_STEPS + 1)
            if (passes - views) % steps == 0 and passes - views >= 2 * steps
        )
        return {"views": views, "steps": steps, "samples": (passes - views) // steps}

    @classmethod
    def published(
        cls, *, mode: Literal["mix", "modulate"] = "mix", include_dc: bool = True, **overrides: Any
    ) -> FAMPEConfig:
        """Make the configuration of one of four readings of FAMPE's public texts.

        The texts give N = 20, alpha = 0.1 and tau = 0.9. Everything else is AttEXplore's: the path, the noise, input
        diversity, and the attribution itself as the map. The texts do not say which quantity the bands' weights
        multiply, nor whether the mean of the image counts as energy: hence two modes, each with and without DC.

        Args:
            mode: alpha and 1 - alpha weigh the image's bands (``mix``) or the noise in its bands (``modulate``).
            include_dc: count the mean of the image in the spectral energy. A photograph's cut-off is then about 2
                cycles, otherwise about 20.
            **overrides: values of other fields.

        Raises:
            TypeError, ValueError: as the constructor.
        """
        # Names every field of the path, so that later changes of FAMPE's defaults do not affect it.
        attexplore = {field.name: field.default for field in fields(PathConfig)} | {"rho": 0.5, "sigma": 16 / 255}
        known = {"samples": 20, "alpha": 0.1, "tau": 0.9, "cutoff": None, "mask_shape": "gaussian", "gain": 1.0}
        return cls(**{**attexplore, **known, "mode": mode, "include_dc": include_dc, **overrides})

    def band_weights(self) -> tuple[float, float, float, float, float]:
        """Compute the five weights (g0, aL, bL, aH, bH) of the mode."""
        low, high, rho = self.alpha, 1 - self.alpha, self.rho
        if self.mode == "mix":
            return 0.0, self.gain * low, self.gain * low * rho, self.gain * high, self.gain * high * rho
        if self.mode == "modulate":
            return 1.0, 0.0, 2 * low * rho, 0.0, 2 * high * rho
        return 1.0, 0.0, rho, 0.0, rho


@dataclass(frozen=True, kw_only=True)
class AttEXploreConfig(PathConfig):
    """AttEXplore's spectrum simulation.

    Attributes:
        rho: half-width of the random multipliers of the DCT coefficients, in [0, 1].
        sigma: standard deviation of the white noise, in pixel units, 0 to 1e12.
    """

    rho: float = 0.5
    sigma: float = 16 / 255

    def __post_init__(self) -> None:
        super().__post_init__()
        _settle(
            self,
            rho=check_fraction("rho", self.rho),
            sigma=check_number("sigma", self.sigma, 0, largest=LARGEST),
        )
