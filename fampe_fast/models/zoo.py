"""Load models by name from timm and torchvision, with their configurations of input and classes."""

from __future__ import annotations

import difflib
import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from torch import Tensor, nn

from ..errors import WeightsUnavailableError
from .checkpoints import StateDict, load_weights, read_state_dict
from .class_names import timm_class_names
from .classifier import check_input_size
from .hub import hub_file, url_file
from .transforms import CHANNELS, timm_transform, torchvision_transform

_HUB_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_OWN_ARGUMENTS = {
    "num_classes": "num_classes=",
    "pretrained": "pretrained=",
    "weights": "weights=",
    "checkpoint_path": "weights=",
    "pretrained_cfg": "weights=, mean= and std=",
    "pretrained_cfg_overlay": "weights=, mean= and std=",
}


@dataclass(frozen=True)
class Request:
    """The arguments of ``load_classifier`` for a named model, a folder or a module."""

    weights: Path | None
    pretrained: bool
    num_classes: int | None
    mean: Sequence[float] | None
    std: Sequence[float] | None
    input_size: tuple[int, int] | None
    interpolation: str | None
    model_args: Mapping[str, Any]

    def __post_init__(self) -> None:
        for key, instead in _OWN_ARGUMENTS.items():
            if key in self.model_args:
                raise ValueError(f"model_args has {key!r}; use {instead} of load_classifier instead")
        channels = self.model_args.get("in_chans", CHANNELS)
        if isinstance(channels, bool) or not isinstance(channels, int) or channels < 1:
            raise ValueError(f"in_chans must be a whole number of at least 1, got {channels!r}")
        if channels != CHANNELS and self.pretrained:
            raise ValueError(
                f"in_chans is {channels}; the weights that belong to a name take {CHANNELS} channels: give "
                "weights=PATH of a model like yours, or (in Python) pretrained=False"
            )
        if self.model_args.get("features_only"):
            raise ValueError("features_only gives feature maps, not logits; a classifier is needed")


@dataclass(frozen=True)
class Resolved:
    """A model with everything that a ``Classifier`` wraps around it."""

    model: nn.Module
    name: str
    mean: Sequence[float]
    std: Sequence[float]
    input_size: tuple[int, int]
    transform: Callable[[Image.Image], Tensor] | None  # None: the default for its size, channels and interpolation
    num_classes: int | None
    class_names: tuple[str, ...] | None
    channels: int | None = CHANNELS  # None: only a pass can tell
    origin: Literal["built", "file", "given"] = "built"  # built here by name, read from a file, or the user's object
    interpolation: str = "bicubic"


def load_timm(name: str, request: Request) -> Resolved:
    """Load a model from timm.

    Args:
        name: an architecture with or without a tag ("resnet50", "resnet50.a1_in1k"), "hf-hub:OWNER/NAME", or
            "local-dir:PATH" for a folder with config.json and a checkpoint.
        request: the rest.

    Raises:
        ValueError: unknown name, arguments the model does not take, weights that do not fit, no classifier.
        WeightsUnavailableError: pretrained weights are not available.
    """
    import timm

    if name.startswith("hf-hub:"):
        name = _hub_to_local(name, request)
    if name.startswith("local-dir:"):
        label, config = Path(name.removeprefix("local-dir:")).name, _folder_config(name)
    else:
        label, config = name, _registered_config(name)

    if not config.get("num_classes", 1) and request.num_classes is None and request.weights is None:
        raise ValueError(f"{label} is a feature extractor without a classifier; explanations need class scores")

    arguments = dict(request.model_args)
    channels = arguments.get("in_chans") or (config.get("input_size") or (CHANNELS,))[0]
    _check_statistics(label, request, channels)
    if request.input_size is not None and config.get("fixed_input_size") and "img_size" not in arguments:
        arguments["img_size"] = request.input_size  # resamples the position embeddings

    build = _builder(partial(timm.create_model, name), label, arguments)
    if request.weights is not None:
        model = load_weights(build, request.weights, num_classes=request.num_classes, what=label, adapt=_timm_adapter)
    elif request.pretrained:
        _check_pretrained_classes(label, config.get("num_classes"), request.num_classes)
        if name.startswith("local-dir:"):
            model = _with_published_weights(build, label, _folder_weights(name))
        else:
            model = _with_published_weights(build, label, *_pretrained_file(label, config))
    else:
        model = build(request.num_classes)

    num_classes = getattr(model, "num_classes", None)
    if not isinstance(num_classes, int) or num_classes < 1:
        raise ValueError(f"{label} is a feature extractor without a classifier (num_classes is {num_classes})")
    trained = request.weights is not None or request.pretrained
    size = arguments.get("img_size", request.input_size)
    settings = replace(request, input_size=None if size is None else check_input_size(size))
    input_size, mean, std, transform = timm_settings(model, settings, channels)
    names = timm_class_names(_config_of(model), num_classes) if trained else None
    return Resolved(model, label, mean, std, input_size, transform, num_classes, names, channels)


def _builder(create: Callable[..., nn.Module], label: str, arguments: Mapping[str, Any]) -> Callable[..., nn.Module]:
    """Turn a library's model function into one of the number of classes, whose errors name the model."""

    def build(num_classes: int | None, **loading: Any) -> nn.Module:
        classes = {} if num_classes is None else {"num_classes": num_classes}
        try:
            return create(**loading, **classes, **arguments)
        except TypeError as error:
            raise ValueError(f"model_args {arguments} do not suit {label}: {error}") from error

    return build


def _with_published_weights(
    build: Callable[..., nn.Module], label: str, file: Path, own_reader: bool = False
) -> nn.Module:
    """Build a timm model with the weights of a file, adapted by timm, which reads it only with the model's own reader.

    timm 1.0.16 would run code from a pickle, and treats a folder's safetensors as one.
    """
    source = {"file": str(file)} if own_reader else {"state_dict": read_state_dict(file)}
    overlay = {"source": "", "custom_load": own_reader, **source}
    try:
        model = build(None, pretrained=True, pretrained_cfg_overlay=overlay)
    except RuntimeError as error:
        raise ValueError(f"{label}: {textwrap.shorten(str(error), 500)}") from error
    model.pretrained_cfg.pop("state_dict", None)  # type: ignore[union-attr, operator]  # a copy that timm keeps
    return model


def timm_settings(
    model: nn.Module, request: Request, channels: int
) -> tuple[tuple[int, int], Sequence[float], Sequence[float], Callable[[Image.Image], Tensor]]:
    """Find input size, mean, std and transform of a timm model; the request overrides its configuration.

    A configuration's mean and std of three channels are averaged for a model of another number of channels.
    """
    from timm.data import resolve_data_config  # type: ignore[attr-defined]

    wishes = {
        "input_size": None if request.input_size is None else (channels, *request.input_size),
        "interpolation": request.interpolation,
    }
    config = resolve_data_config(wishes, pretrained_cfg=_config_of(model))  # type: ignore[no-untyped-call]
    height, width = config["input_size"][-2:]
    config["input_size"] = (channels, height, width)
    for key, asked in (("mean", request.mean), ("std", request.std)):
        values = tuple(config[key] if asked is None else asked)
        config[key] = values if len(values) == channels else (sum(values) / len(values),) * channels
    return (height, width), config["mean"], config["std"], timm_transform(config)


def _check_statistics(label: str, request: Request, channels: int) -> None:
    """Refuse means and stds that are not one number or one per channel, before fetching anything."""
    for key, values in (("mean", request.mean), ("std", request.std)):
        if values is not None and len(values) not in (1, channels):
            raise ValueError(
                f"{key} must be one number or {channels}, one per channel; got {len(values)} for {label}: {values}"
            )


def _config_of(model: nn.Module) -> dict[str, Any]:
    config = getattr(model, "pretrained_cfg", None) or {}
    return dict(config if isinstance(config, Mapping) else config.to_dict())


def _registered_config(name: str) -> dict[str, Any]:
    """Look up the configuration of a model in timm's registry, by a name with or without a tag."""
    import timm

    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        hint = ""
        if architecture.lower() in _torchvision_names():
            hint = f" torchvision has a model of this name: torchvision/{architecture.lower()}."
        known = [*timm.list_models(), *(f"torchvision/{model}" for model in _torchvision_names())]
        raise ValueError(f"unknown model {name!r}.{hint}{_close(architecture, known)}")
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        have = f"timm has these weights for {architecture}: {', '.join(tags)}" if tags else "timm has no weights for it"
        raise ValueError(f"unknown weights {tag!r} in the model name {name!r}; {have}")
    config = timm.get_pretrained_cfg(name)
    return dict(config.to_dict()) if config is not None else {}  # type: ignore[no-untyped-call]


def _pretrained_file(label: str, config: Mapping[str, Any]) -> tuple[Path, bool]:
    """Fetch timm's weights for a configuration, and tell whether they need the model's own reader."""
    what = repr(label)
    if config.get("hf_hub_id"):
        special = config.get("hf_hub_filename")
        names = _HUB_WEIGHTS if special is None else (str(special),)
        return hub_file(str(config["hf_hub_id"]), names, what=what), bool(special and config.get("custom_load"))
    if config.get("url"):
        return url_file(str(config["url"]), what=what), bool(config.get("custom_load"))
    raise WeightsUnavailableError(
        f"timm has no pretrained weights for {what}. Pass weights=PATH (--weights PATH) with a checkpoint of this "
        "model, or (in Python) pretrained=False for random weights"
    )


def _folder_weights(name: str) -> Path:
    """Find the checkpoint of a folder in timm's layout, in timm's order of names and suffixes."""
    folder = Path(name.removeprefix("local-dir:"))
    preferred = [folder / known for known in (*_HUB_WEIGHTS, "pytorch_model.pth", "model.pth")]
    endings = (".safetensors", ".pth", ".pth.tar", ".bin")
    others = [file for ending in endings for file in sorted(folder.glob(f"*{ending}"))]
    for file in (*preferred, *others):
        if file.is_file():
            return file
    raise ValueError(f"{folder.name}: No suitable checkpoints found in {folder}; expected {' or '.join(_HUB_WEIGHTS)}")


def _hub_to_local(name: str, request: Request) -> str:
    """Fetch the files needed from a Hugging Face repository; the cached snapshot is a folder in timm's layout."""
    repository = name.removeprefix("hf-hub:")
    config = hub_file(repository, ["config.json"], what=repr(name))
    if request.pretrained and request.weights is None:
        hub_file(repository, _HUB_WEIGHTS, what=repr(name))
    return f"local-dir:{config.parent}"


def _folder_config(name: str) -> dict[str, Any]:
    """Read the configuration of a folder in timm's layout; its keys are at the top or under ``pretrained_cfg``."""
    import timm

    file = Path(name.removeprefix("local-dir:")) / "config.json"
    if not file.is_file():
        weights = sorted(p for p in file.parent.iterdir() if p.suffix in (".safetensors", ".bin", ".pth", ".pt"))
        hint = f". {weights[0].name} in it can be given as weights of a named model (--weights)" if weights else ""
        raise ValueError(f"the folder {file.parent} has no config.json; expected timm's or Hugging Face's layout{hint}")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not valid JSON ({error})") from error
    if not isinstance(config, dict) or not isinstance(config.get("architecture"), str):
        kind = config.get("model_type") if isinstance(config, dict) else None
        other = f" (its model_type is {kind!r}, one of transformers')" if isinstance(kind, str) else ""
        raise ValueError(
            f"{file} names no timm architecture{other}; only timm's folders can be loaded. Load others with their "
            "library and give load_classifier the module"
        )
    if not timm.is_model(config["architecture"].partition(".")[0]):
        close = _close(config["architecture"], timm.list_models())
        raise ValueError(f"{file} names an unknown timm architecture, {config['architecture']!r}.{close}")
    if not isinstance(config.get("pretrained_cfg", {}), dict):
        raise ValueError(f"{file}: pretrained_cfg is not an object of settings, but {config['pretrained_cfg']!r:.60}")
    return {**config, **config.get("pretrained_cfg", {}), **{k: config[k] for k in ("num_classes",) if k in config}}


def _check_pretrained_classes(label: str, have: int | None, asked: int | None) -> None:
    if asked is not None and have is not None and asked != have:
        raise ValueError(
            f"the pretrained weights of {label} have {have} classes; num_classes={asked} would leave the classifier "
            "untrained. Pass weights=PATH of a model with that many classes, or (in Python) pretrained=False"
        )


def _timm_adapter(model: nn.Module, state: StateDict) -> StateDict | None:
    """Translate a foreign checkpoint as timm does for pretrained weights."""
    translate = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    return None if translate is None else translate(state, model)


def torchvision_name(source: str) -> str | None:
    """Return the name after "torchvision/" or "torchvision:"; None for other names."""
    found = re.fullmatch(r"torchvision[/:](.*)", source)
    return found.group(1) if found else None


def load_torchvision(name: str, request: Request) -> Resolved:
    """Load a classifier from torchvision.

    Args:
        name: "resnet50", or with a member of its weights enumeration, "resnet50.IMAGENET1K_V1" (default: its
            DEFAULT). Transform, mean and std are those of this member, also for weights from a file.
        request: the rest.

    Raises:
        ValueError: unknown name, arguments the model does not take, weights that do not fit.
        WeightsUnavailableError: pretrained weights are not available.
    """
    from torchvision import models

    architecture, _, member = name.partition(".")
    if architecture.lower() not in _torchvision_names():
        raise ValueError(f"unknown torchvision classifier {name!r}.{_close(architecture, _torchvision_names())}")
    builder, known = models.get_model_builder(architecture), models.get_model_weights(architecture)
    if member and member not in known.__members__:
        members = ", ".join(known.__members__)
        raise ValueError(f"unknown weights {member!r} in {name!r}; torchvision has these for {architecture}: {members}")
    entry = known[member or "DEFAULT"]
    label = f"torchvision/{name}"
    _check_statistics(label, request, CHANNELS)
    arguments = dict(request.model_args)

    if request.weights is not None and architecture.lower() in ("googlenet", "inception_v3"):
        # As torchvision does for its pretrained weights; a checkpoint does not record it.
        arguments = {"transform_input": True, "init_weights": False, **arguments}
    build = _builder(partial(builder, weights=None), label, arguments)
    categories = entry.meta["categories"]
    if request.weights is not None:
        model = load_weights(
            build, request.weights, num_classes=request.num_classes, what=label, adapt=_densenet_adapter
        )
    elif request.pretrained:
        _check_pretrained_classes(label, len(categories), request.num_classes)
        url_file(entry.url, what=repr(label))
        model = build(None, weights=entry)
    else:
        model = build(request.num_classes)

    num_classes = _output_classes(model, request.num_classes or len(categories))
    transform, input_size, mean, std = torchvision_transform(entry, request.input_size, request.interpolation)
    trained = request.weights is not None or request.pretrained
    names = tuple(categories) if trained and num_classes == len(categories) else None
    return Resolved(
        model,
        label,
        mean if request.mean is None else request.mean,
        std if request.std is None else request.std,
        input_size,
        transform,
        num_classes,
        names,
    )


def _output_classes(model: nn.Module, default: int) -> int:
    """Find the size of the last layer, which in torchvision is linear or (SqueezeNet) a 1x1 convolution."""
    last = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1:]
    return next((m.out_features if isinstance(m, nn.Linear) else m.out_channels for m in last), default)


def _densenet_adapter(model: nn.Module, state: StateDict) -> StateDict | None:
    """Rename layers of torchvision's DenseNet files, such as "norm.1", to the model's names, such as "norm1"."""
    pattern = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.([12]\.)")
    return {pattern.sub(r"\1\2", key): value for key, value in state.items()}


def _torchvision_names() -> list[str]:
    from torchvision import models

    return list(models.list_models(module=models))


def _close(name: str, known: Iterable[str]) -> str:
    matches = difflib.get_close_matches(name.lower(), list(known), n=5, cutoff=0.6)
    return f" Did you mean: {', '.join(matches)}?" if matches else ""
