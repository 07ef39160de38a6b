"""Load a classifier by name, from a file or folder, or from an nn.Module (``load_classifier``)."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from ..checks import check_count
from ..errors import first_line
from ..runtime.outputs import Output, check_output, unwrapped
from .batch_norm import fold_batch_norm as fold_batch_norm_of
from .checkpoints import file_kind, load_weights, read_state_dict, what_it_is
from .class_names import timm_class_names
from .classifier import Classifier, channel_statistics, check_class_names, check_input_size, default_transform
from .dry_run import agree, images_for, number_of_classes, prefer_channels_last, run_once
from .embedded import SOURCE as EMBEDDED
from .embedded import load_embedded_classifier
from .input_channels import input_channels
from .module_state import check_values, in_single_precision, needs_a_copy, restored_on_failure
from .programs import Exported, load_program
from .transforms import CHANNELS, INTERPOLATIONS
from .zoo import Request, Resolved, load_timm, load_torchvision, timm_settings, torchvision_name


def load_classifier(
    source: str | os.PathLike[str] | nn.Module,
    *,
    weights: str | os.PathLike[str] | None = None,
    pretrained: bool | None = None,
    num_classes: int | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    class_names: Sequence[str] | None = None,
    input_size: int | Sequence[int] | None = None,
    interpolation: str | None = None,
    device: str | torch.device | None = None,
    model_args: Mapping[str, Any] | None = None,
    fold_batch_norm: bool | None = None,
    output: Output | None = None,
) -> Classifier:
    """Load an image classifier that takes pixel space, [0, 1], with its transform, normalisation and class names.

    The source is one of:

    - a timm name, with or without a tag: "resnet50", "resnet50.a1_in1k", "timm/resnet50"; or "hf-hub:OWNER/NAME";
    - "embedded", the package's own small classifier of generated images, which needs no network;
    - a torchvision name by prefix: "torchvision/resnet50", "torchvision:resnet50.IMAGENET1K_V1";
    - a folder in timm's (Hugging Face's) layout: config.json beside a checkpoint; also "local-dir:PATH";
    - a TorchScript archive, or a program saved by ``torch.export.save`` (".pt2"), of a model that takes normalised
      images. Load programs only from sources whose code you would run; an exported program accepts only the batch
      sizes that it was exported for;
    - an nn.Module, which is wrapped, not copied: see below for the changes;
    - a Classifier, which is returned itself, in evaluation mode and, if given, on ``device``.

    An nn.Module is changed in place only as follows: it is put into evaluation mode, ``weights`` are read into it, and
    it is moved to ``device``. If loading fails, all changes are undone. Its memory format is not changed: convert a
    convolutional network to channels-last yourself (``module.to(memory_format=torch.channels_last)``) for more speed on
    a CPU, if its code does not use ``view`` on feature maps. A module in another precision than fp32, or built under
    ``torch.inference_mode``, is not changed at all; the classifier gets a copy in fp32, or, if the copy's outputs
    differ, in the module's own precision.

    One image of noise is run, to find the number of classes and to test that the model accepts the transform's images.
    An nn.Module or program that fails on it is loaded nevertheless, with an unknown number of classes.

    "embedded" and names in timm's registry take precedence over files of these names in the working directory (write
    "./resnet50" for the file).

    Args:
        source: see above.
        weights: a local checkpoint for the named model, folder or nn.Module: .safetensors or a file of ``torch.save``
            with a state dict, also nested or from DistributedDataParallel. All keys and shapes must fit.
        pretrained: whether to fetch the weights that belong to the name. Default: True unless ``weights`` is given.
            False gives random weights.
        num_classes: the number of classes. Default: from the checkpoint, else from the model's output.
        mean: subtracted from the pixels, in pixel units, [0, 1]; one number, or one per channel. Default: the model's
            configuration; for a program, or an nn.Module without timm's ``pretrained_cfg``, 0.
        std: divisor, in pixel units; one number, or one per channel. Default: likewise, or 1 (with mean 0 and std 1 the
            model gets unchanged pixels).
        class_names: one per class. Default: the model's configuration; for trained models of timm and torchvision
            with an ImageNet number of classes, ImageNet's; else None.
        input_size: (H, W) or one number, the transform's output size. Default: the model's configuration, else 224.
            timm's vision transformers are built for this size.
        interpolation: the filter with which the transform resizes: nearest, box, bilinear, hamming, bicubic or lanczos.
            Default: the model's configuration, else bicubic. It matters: a filter other than the one of training
            changes probabilities by up to 0.2 on single photographs.
        device: device of the model. Default: the module's own; the CPU for a model that is loaded.
        model_args: keyword arguments for timm's or torchvision's model, such as {"pad_type": "same"}. {"in_chans": 1}
            makes a model for greyscale, with ``weights`` or random ones; its transform makes images grey.
        fold_batch_norm: fold batch normalisations into the preceding convolutions (``models.fold_batch_norm``): the
            same function, 20 to 40 % faster on a CPU, logits equal to about 1e-6 of their size. Default: True for
            models that are built here and False for an nn.Module, of which True wraps a folded copy.
        output: meaning of the model's output: "logits" of mutually exclusive classes; "probabilities", after a softmax
            or sigmoids; or "sigmoid", logits of independent classes or a single logit. Default: logits; outputs that
            are clearly something else are refused on use, with the value to set.

    Returns:
        The classifier in evaluation mode and fp32. A model that is built here or read from a file has channels-last
        weights on a CPU and on CUDA, if its output is the same with them. ``requires_grad`` of the parameters is not
        changed.

    Raises:
        ValueError: unknown name (with close matches), arguments that contradict each other or do not suit the model,
            weights that do not fit (with counts and examples), a file that is not a model, a wrong number of class
            names, a named model that does not accept images of ``input_size``, a module without values in its weights,
            an unknown ``output``.
        TypeError: an argument has the wrong type.
        FileNotFoundError: a path that does not exist.
        WeightsUnavailableError: pretrained weights are not cached and cannot be downloaded, within about ten seconds;
            the message says what to do.
    """
    _check_device(device)
    args = dict(model_args or {})
    _check_arguments(weights, pretrained, args)
    if num_classes is not None:
        num_classes = check_count("num_classes", num_classes)
    given = source if isinstance(source, Classifier) else None
    if given or source == EMBEDDED:
        _refuse(
            f"{'a Classifier' if given else 'the embedded classifier'} has its own",
            weights=weights,
            pretrained=pretrained,
            num_classes=num_classes,
            mean=mean,
            std=std,
            class_names=class_names,
            input_size=input_size,
            interpolation=interpolation,
            model_args=args or None,
            fold_batch_norm=fold_batch_norm or None,
            output=output,
        )
        classifier = given or load_embedded_classifier()
        with restored_on_failure(classifier, values=False):
            classifier.eval()
            return classifier if device is None else classifier.to(device)
    if not isinstance(source, str | os.PathLike | nn.Module):
        raise TypeError(f"source must be a model name, a path or an nn.Module, got {type(source).__name__}")

    # Checks everything possible before reading or fetching anything.
    means, stds = channel_statistics(0.0 if mean is None else mean, 1.0 if std is None else std)
    request = Request(
        weights=None if weights is None else Path(weights),
        pretrained=weights is None if pretrained is None else pretrained,
        num_classes=num_classes,
        mean=None if mean is None else means,
        std=None if std is None else stds,
        input_size=None if input_size is None else check_input_size(input_size),
        interpolation=interpolation,
        model_args=args,
    )
    if interpolation is not None and interpolation not in INTERPOLATIONS:
        raise ValueError(f"unknown interpolation {interpolation!r}; expected one of {', '.join(INTERPOLATIONS)}")
    if class_names is not None:
        check_class_names(class_names, num_classes)
    meaning = None if output is None else check_output(output)

    if not isinstance(source, nn.Module):
        resolved = _from_text(source, request, explicit_pretrained=bool(pretrained))
        classifier = _classify(resolved, request, class_names, device)
        classifier.output = meaning
        return classifier if fold_batch_norm is False else _folded(classifier)
    _refuse("an nn.Module has its weights or takes weights=PATH", pretrained=pretrained or None)
    _refuse("an nn.Module is already built", model_args=args or None)
    check_values(source, type(source).__name__, writable=weights is not None)
    with restored_on_failure(source, values=weights is not None):
        classifier = _classify(_from_module(source, request), request, class_names, device)
        classifier.output = meaning
        return _folded(classifier) if fold_batch_norm else classifier


def _classify(
    resolved: Resolved, request: Request, class_names: Sequence[str] | None, device: str | torch.device | None
) -> Classifier:
    """Wrap a model and run it, to find its numbers of channels and classes."""
    if resolved.origin != "given":
        resolved.model.float()
    if resolved.origin == "given" and needs_a_copy(resolved.model):
        classifier, output = _copied(resolved, device)
    else:
        classifier, output, failure = _tried(resolved, resolved.model, device)
        if failure is not None and resolved.origin == "built":
            height, width = classifier.input_size
            problem = f"{resolved.name} does not take images of {height} x {width}: {first_line(failure)}"
            raise ValueError(problem) from failure
    if output is not None and resolved.origin != "given":
        prefer_channels_last(classifier, output)
    found = number_of_classes(output, images_for(classifier)) or resolved.num_classes
    if None not in (request.num_classes, found) and found != request.num_classes:
        raise ValueError(f"num_classes={request.num_classes} was given for a model of {found} classes")
    known = resolved.class_names if resolved.class_names and len(resolved.class_names) == found else None
    names = known if class_names is None else class_names
    classifier.class_names = None if names is None else check_class_names(names, found)
    classifier.num_classes = found if classifier.class_names is None else len(classifier.class_names)
    return classifier


def _tried(
    resolved: Resolved, model: nn.Module, device: str | torch.device | None
) -> tuple[Classifier, object, Exception | None]:
    """Make a classifier, finding the number of channels if unknown, and return it with its output or its error."""
    first = input_channels(model)
    candidates: list[int | None] = [resolved.channels]
    if resolved.channels is None and len(resolved.mean) == len(resolved.std) == 1:
        # RGB first: a one-channel first convolution may follow a conversion to greyscale in the model.
        candidates = list(dict.fromkeys((CHANNELS, first or CHANNELS, 1, 4)))
    failure: Exception | None = None
    for channels in candidates:
        classifier = _wrapped(resolved, model, channels, device)
        try:
            return classifier, run_once(classifier), None
        except torch.OutOfMemoryError:  # says nothing about the model
            raise
        except Exception as error:  # foreign code may raise anything
            failure = failure or error
    return _wrapped(resolved, model, resolved.channels, device), None, failure


def _copied(resolved: Resolved, device: str | torch.device | None) -> tuple[Classifier, object]:
    """Make a classifier of a copy of the user's module, in fp32 unless only its own precision gives its outputs."""
    module = resolved.model
    own = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    try:
        single, same = in_single_precision(module), in_single_precision(module, convert=False)
    except Exception as error:  # of tensors that an operation made, of foreign __deepcopy__ and __reduce__
        raise ValueError(
            f"{resolved.name} computes in {str(own).removeprefix('torch.')} or was built under inference_mode, and "
            f"torch cannot copy it ({first_line(error)}): convert it yourself (.float()), or build it outside"
        ) from error
    classifier, output, _ = _tried(resolved, single, device)
    if own == torch.float32:
        return classifier, output
    original, expected, _ = _tried(resolved, same, device)
    tolerance = max(1e-4, 100 * torch.finfo(own).eps)
    if expected is not None and not agree(output, expected, tolerance):
        return original, expected
    return classifier, output


def _wrapped(
    resolved: Resolved, model: nn.Module, channels: int | None, device: str | torch.device | None
) -> Classifier:
    classifier = Classifier(
        model,
        name=resolved.name,
        mean=resolved.mean,
        std=resolved.std,
        input_size=resolved.input_size,
        transform=resolved.transform,
        num_classes=resolved.num_classes,
        channels=channels,
    )
    if resolved.transform is None:
        classifier.transform = default_transform(classifier.input_size, classifier.channels, resolved.interpolation)
    own = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    classifier.mean, classifier.std = classifier.mean.to(own), classifier.std.to(own)
    return classifier.eval() if device is None else classifier.eval().to(device)


def _check_arguments(weights: object, pretrained: object, model_args: Mapping[str, Any]) -> None:
    if weights is not None and not isinstance(weights, str | os.PathLike):
        raise TypeError(f"weights must be the path of a checkpoint, got {type(weights).__name__}")
    if not isinstance(pretrained, bool | None):
        raise TypeError(f"pretrained must be True, False or None, got {pretrained!r}")
    if weights is not None and pretrained:
        raise ValueError("weights and pretrained=True contradict each other; give one of them")
    if not all(isinstance(key, str) for key in model_args):
        raise TypeError(f"model_args must be keyword arguments, got the keys {list(model_args)}")


def _check_device(device: str | torch.device | None) -> None:
    if device is not None:
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"device {str(device)!r} cannot be used: {first_line(error)}") from error


def _refuse(reason: str, **arguments: object) -> None:
    """Refuse the arguments that are not None."""
    given = sorted(name for name, value in arguments.items() if value is not None)
    if given:
        raise ValueError(f"{', '.join(given)} cannot be given here: {reason}")


def _from_text(source: str | os.PathLike[str], request: Request, *, explicit_pretrained: bool) -> Resolved:
    """Load a model by a name or a path."""
    text = os.fspath(source)
    if not text:
        raise ValueError("the model name is empty")
    if isinstance(source, str):
        torchvision = torchvision_name(source)
        if torchvision is not None:
            return load_torchvision(torchvision, request)
        if source.startswith(("hf-hub:", "hf_hub:")):
            return load_timm(source.replace("hf_hub:", "hf-hub:", 1), request)
        if source.startswith("local-dir:"):
            return _from_folder(Path(source.removeprefix("local-dir:")), request)
        if source.startswith("timm/"):
            return load_timm(source.removeprefix("timm/"), request)
        if _looks_like_a_name(source) and (_in_timm(source) or not Path(source).exists()):
            return load_timm(source, request)
    path = Path(source)
    if path.is_dir():
        return _from_folder(path, request)
    if not path.exists():
        hint = f" For a model on the Hugging Face hub write hf-hub:{text}" if text.count("/") == 1 else ""
        raise FileNotFoundError(f"no such model file or folder: {text}.{hint}")
    kind = file_kind(path)
    if kind is None:
        expected = "expected a folder in timm's layout, TorchScript or torch.export"
        raise ValueError(f"{text} is not a model: it {what_it_is(path)}; {expected}")
    if kind not in ("TorchScript", "torch.export"):
        read_state_dict(path)  # raises a description of the content if it has no weights
        raise ValueError(
            f"{text} holds weights without a model. Give the model's name as source and this file as weights: "
            f'load_classifier("NAME", weights="{text}") (--model NAME --weights {text})'
        )
    _refuse(f"{text} contains its weights", weights=request.weights, pretrained=explicit_pretrained or None)
    _refuse(f"{text} is already built", model_args=request.model_args or None)
    return _from_module(load_program(path, kind), request, name=path.stem, origin="file")


def absolute_source(source: str) -> str:
    """Make a model's source independent of the working directory: paths become absolute, names stay."""
    if source == EMBEDDED:
        return source
    if torchvision_name(source) is not None or source.startswith(("hf-hub:", "hf_hub:", "timm/")):
        return source
    if source.startswith("local-dir:"):
        return f"local-dir:{os.path.abspath(source.removeprefix('local-dir:'))}"
    if _looks_like_a_name(source) and (_in_timm(source) or not Path(source).exists()):
        return source
    return os.path.abspath(source)


def _looks_like_a_name(source: str) -> bool:
    known = (".pt", ".pth", ".pt2", ".ts", ".bin", ".safetensors", ".onnx", ".tar", ".ckpt")
    return not any(c in source for c in "/\\:~") and not source.lower().endswith(known)


def _in_timm(source: str) -> bool:
    import timm

    return bool(timm.is_model(source.partition(".")[0]))


def _from_folder(folder: Path, request: Request) -> Resolved:
    if not folder.is_dir():
        raise FileNotFoundError(f"no such model folder: {folder}")
    return load_timm(f"local-dir:{folder}", request)


def _from_module(
    module: nn.Module, request: Request, name: str | None = None, origin: Literal["file", "given"] = "given"
) -> Resolved:
    own: Any = unwrapped(module)  # what DataParallel and its like hide
    label = name or type(own).__name__
    declared = getattr(own, "num_classes", None)
    declared = declared if isinstance(declared, int) and declared > 0 else None
    if None not in (declared, request.num_classes) and declared != request.num_classes:
        raise ValueError(f"num_classes={request.num_classes} was given for a model of {declared} classes")
    num_classes = request.num_classes or declared
    if request.weights is not None:
        load_weights(lambda _: own, request.weights, num_classes=request.num_classes, what=label)
    try:
        module.eval()
    except NotImplementedError:  # what torch.export's programs say
        module = Exported(module)
    config = getattr(own, "pretrained_cfg", None)
    if isinstance(config, Mapping) and config:
        takes = input_channels(module) or CHANNELS
        size, mean, std, transform = timm_settings(own, request, takes)
        names = timm_class_names(config, num_classes) if num_classes else None
        return Resolved(module, label, mean, std, size, transform, num_classes, names, takes, origin)
    size = request.input_size or (224, 224)
    channels: int | None = None
    if isinstance(module, Exported) and module.shape is not None:
        channels, height, width = module.shape[1:]
        size = request.input_size or (height or size[0], width or size[1])
    mean = (0.0,) if request.mean is None else request.mean
    std = (1.0,) if request.std is None else request.std
    filter_ = request.interpolation or "bicubic"
    return Resolved(module, label, mean, std, size, None, num_classes, None, channels, origin, filter_)


def _folded(classifier: Classifier) -> Classifier:
    """Fold the batch normalisations of a classifier's model that can be folded."""
    size = (1, classifier.channels, *classifier.input_size)
    noise = torch.randn(size, generator=torch.Generator().manual_seed(0))
    classifier.model = fold_batch_norm_of(classifier.model, noise.to(classifier.mean))
    return classifier
