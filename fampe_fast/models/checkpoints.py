"""Checkpoint files: what kind a file is, its state dict, and whether that fits a model."""

from __future__ import annotations

import argparse
import io
import os
import pickle
import pickletools
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import first_line

__all__ = ["Mismatch", "archive_kind", "fit", "foreign_classes", "pickled", "read_state_dict", "what_it_is"]

StateDict = dict[str, Tensor]

# Where training scripts put the weights, in the order in which timm takes them: averaged weights come first.
_NESTED = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state_dict")
_PICKLE = b"\x80"
_LEGACY = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the number that torch.save wrote first before 1.6
# Left by torch.compile and DistributedDataParallel, in either order of wrapping.
_WRAPPERS = ("_orig_mod.", "module.", "_orig_mod.")


def archive_kind(path: Path) -> Literal["torchscript", "exported", "checkpoint"] | None:
    """What a file holds, by its contents: a TorchScript or torch.export program, a checkpoint, or None of them."""
    if path.suffix.lower() == ".safetensors" or _is_safetensors(path):
        return "checkpoint"
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = {name.split("/", 1)[-1] for name in archive.namelist()} | set(archive.namelist())
        if "constants.pkl" in names and any(name.startswith("code/") for name in names):
            return "torchscript"
        if "archive_format" in names or "serialized_exported_program.json" in names:
            return "exported"
        return "checkpoint" if "data.pkl" in names else None
    return "checkpoint" if _begins_with(path, _PICKLE) else None  # torch.save before 1.6


def what_it_is(path: Path) -> str:
    """A few words, for messages, on a file that is neither a model nor a checkpoint."""
    with path.open("rb") as stream:
        start = stream.read(512)
    if not start:
        return "is empty"
    if start.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the file itself (git lfs pull fetches it)"
    if start.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "is a web page, as a failed download leaves it"
    if start.startswith(b"\x89HDF"):
        return "is an HDF5 file (Keras?), not PyTorch's"
    if path.suffix.lower() == ".onnx":
        return "is an ONNX file, not PyTorch's"
    if zipfile.is_zipfile(path):
        return "is a zip archive that PyTorch did not write"
    return "is not a file of PyTorch's"


def foreign_classes(path: Path) -> list[str]:
    """The classes whose code would run if a checkpoint's pickle were loaded, without loading it; none of torch's own.

    Args:
        path: of a file that `archive_kind` calls a checkpoint.
    """
    if path.suffix.lower() == ".safetensors" or _is_safetensors(path):
        return []
    found: dict[str, None] = {}
    strings: list[str] = []  # those last pushed: the fourth protocol names a class by two of them
    memo: dict[int, str | None] = {}
    last_is_string = False
    try:
        for code, argument in _pickle_codes(path):
            pushed = argument if isinstance(argument, str) and "UNICODE" in code else None
            if code == "GLOBAL":
                found[str(argument).replace(" ", ".")] = None
            elif code == "STACK_GLOBAL":
                found[".".join(strings[-2:])] = None
            elif code == "MEMOIZE":
                memo[len(memo)] = strings[-1] if last_is_string else None
            elif code in ("BINGET", "LONG_BINGET") and isinstance(argument, int):
                pushed = memo.get(argument)
            last_is_string = pushed is not None
            if pushed is not None:
                strings = [*strings[-1:], pushed]
    except Exception:  # a damaged pickle; reading it says so
        return []
    return [name for name in found if not _is_plain(name)]


def _pickle_codes(path: Path) -> Iterator[tuple[str, object]]:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            [name] = [name for name in archive.namelist() if name.endswith("data.pkl")]
            content = io.BytesIO(archive.read(name))
        yield from ((code.name, argument) for code, argument, _ in pickletools.genops(content))
        return
    with path.open("rb") as stream:
        parts = 4 if _is_torchs(path) else 1  # a number, the protocol, sizes, and then the object
        for _ in range(parts):
            yield from ((code.name, argument) for code, argument, _ in pickletools.genops(stream))


def _is_plain(name: str) -> bool:
    """Whether a checkpoint may name this: tensors, storages, types and containers."""
    if name in ("collections.OrderedDict", "argparse.Namespace", "torch.Size", "torch.device", "torch.dtype"):
        return True
    module, _, last = name.rpartition(".")
    if module in ("builtins", "__builtin__") and last in ("set", "frozenset", "bytearray", "complex", "slice"):
        return True
    return module in ("torch._utils", "torch._tensor", "torch.nn.parameter", "torch.serialization", "_codecs") or (
        module in ("torch", "torch.storage") and (last.endswith("Storage") or last[:1].islower())
    )


def pickled(path: Path, classes: Sequence[str]) -> str:
    """A sentence on a file with pickled objects of these classes, and what to do."""
    layers = [name for name in classes if name.startswith("torch.nn.modules.")]
    what = "a whole model, pickled" if layers else "pickled Python objects"
    return (
        f"{path} holds {what} ({_examples(tuple(classes))}), and loading it would run code from the file. Save the "
        "state dict alone: torch.save(model.state_dict(), PATH); or, where you trust the file, load it yourself with "
        "torch.load(PATH, weights_only=False) and give load_classifier the module"
    )


def _begins_with(path: Path, start: bytes) -> bool:
    with path.open("rb") as stream:
        return stream.read(len(start)) == start


def _is_torchs(path: Path) -> bool:
    """Whether torch.save wrote a file."""
    with path.open("rb") as stream:
        return zipfile.is_zipfile(path) or _LEGACY in stream.read(32)


def _is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors does, with the length of a JSON object and the object."""
    with path.open("rb") as stream:
        start = stream.read(9)
    return start[8:] == b"{" and 2 <= int.from_bytes(start[:8], "little") <= path.stat().st_size - 8


def read_state_dict(path: str | os.PathLike[str]) -> StateDict:
    """Read the state dict of a checkpoint file, without running code from it (`weights_only=True`).

    Understands .safetensors and everything `torch.save` writes; state dicts nested under "state_dict", "model" and
    their averaged ("ema") counterparts, which win, as in timm; the prefixes "module." (DistributedDataParallel) and
    "_orig_mod." (torch.compile), and "model." where every key has it (Lightning).

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is not a checkpoint, damaged, would run code, or holds no tensors or non-finite weights.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"weights {path} is a directory; expected a checkpoint file")
    if not path.exists():
        raise FileNotFoundError(f"no such weights file: {path}")
    kind = archive_kind(path)
    if kind in ("torchscript", "exported"):
        raise ValueError(f"weights {path} is a {kind} program, not a state dict; pass it as the model itself")
    if kind is None:
        expected = "expected .safetensors or a file written by torch.save"
        raise ValueError(f"weights {path} is not a checkpoint: it {what_it_is(path)}; {expected}")
    if path.suffix.lower() != ".safetensors" and not _is_safetensors(path) and not _is_torchs(path):
        raise ValueError(f"weights {path} is a pickle that torch.save did not write, or damaged; save it by torch.save")
    state = _unnest(_read(path), path)
    for wrapper in _WRAPPERS:
        state = {key.removeprefix(wrapper): value for key, value in state.items()}
    if all(key.startswith("model.") for key in state):
        state = {key.removeprefix("model."): value for key, value in state.items()}
    for key, value in state.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise ValueError(f"weights {path}: {key} holds NaN or infinite values")
    return state


def _read(path: Path) -> object:
    if path.suffix.lower() == ".safetensors" or _is_safetensors(path):
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except SafetensorError as error:
            hint = ". It was written by torch.save: give it the suffix .pth" if _is_torchs(path) else ""
            raise ValueError(f"weights {path}: not a readable safetensors file ({error}){hint}") from error
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # timm's training script stores its arguments
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Weights only load failed" not in str(error):
            raise ValueError(f"weights {path}: damaged ({error})") from error
        raise ValueError(f"weights {pickled(path, foreign_classes(path) or ['unknown classes'])}") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise ValueError(f"weights {path}: damaged or truncated ({first_line(error)})") from error


def _unnest(checkpoint: object, path: Path) -> StateDict:
    if isinstance(checkpoint, Mapping):
        for key in _NESTED:
            if isinstance(checkpoint.get(key), Mapping):
                checkpoint = checkpoint[key]
                break
    if not isinstance(checkpoint, Mapping):
        raise ValueError(f"weights {path} holds a {type(checkpoint).__name__}; expected a state dict")
    state = {str(key): value for key, value in checkpoint.items() if isinstance(value, Tensor)}
    if not state:
        found = ", ".join(map(str, list(checkpoint)[:5])) or "nothing"
        raise ValueError(f"weights {path} holds no tensors; found {found}")
    return state


@dataclass(frozen=True)
class Mismatch:
    """How a state dict differs from what a model expects; false if it fits."""

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    reshaped: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]  # key, in the checkpoint, in the model

    @classmethod
    def between(cls, model: nn.Module, state: StateDict) -> Mismatch:
        """Compare keys and shapes. Counters of batch normalisation, absent from old checkpoints, may be missing."""
        own = model.state_dict()
        return cls(
            missing=tuple(k for k in own if k not in state and not k.endswith("num_batches_tracked")),
            unexpected=tuple(k for k in state if k not in own),
            reshaped=tuple(
                (k, tuple(v.shape), tuple(own[k].shape))
                for k, v in state.items()
                if k in own and v.shape != own[k].shape
            ),
        )

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.reshaped)

    def classes(self, current: int) -> int | None:
        """The checkpoint's number of classes, if a head of another size than `current` is all that differs."""
        if self.missing or self.unexpected or not self.reshaped:
            return None
        heads = {
            theirs[0] if theirs[1:] == ours[1:] and ours[:1] == (current,) else None
            for _, theirs, ours in self.reshaped
            if theirs
        }
        return heads.pop() if len(heads) == 1 else None

    def describe(self) -> str:
        """Counts and examples."""
        parts = []
        for keys, what in ((self.missing, "missing from it"), (self.unexpected, "unknown to the model")):
            if keys:
                parts.append(f"{len(keys)} {'key' if len(keys) == 1 else 'keys'} {what} ({_examples(keys)})")
        if self.reshaped:
            shapes = tuple(f"{key}: {theirs}, expected {ours}" for key, theirs, ours in self.reshaped)
            parts.append(f"{len(shapes)} of another shape ({_examples(shapes)})")
        return "; ".join(parts)


def _examples(items: tuple[str, ...], most: int = 3) -> str:
    return ", ".join(items[:most]) + (", ..." if len(items) > most else "")


def fit(
    build: Callable[[int | None], nn.Module],
    state: StateDict,
    *,
    num_classes: int | None,
    what: str,
    source: str,
    adapt: Callable[[nn.Module, StateDict], StateDict | None] | None = None,
) -> nn.Module:
    """Build a model and load a state dict into it, every key and shape.

    Args:
        build: makes the model for a number of classes; None is its default.
        state: the state dict.
        num_classes: the number of classes asked for; None takes it from the state dict's classifier.
        what: the model, for messages.
        source: the checkpoint, for messages.
        adapt: translates a foreign layout into the model's, tried where the state dict does not fit as it is.

    Raises:
        ValueError: it does not fit; the message counts what is missing, unknown and of another shape.
    """
    model = build(num_classes)
    first: Mismatch | None = None
    for candidate in _layouts(model, state, adapt):
        mismatch = Mismatch.between(model, candidate)
        current = getattr(model, "num_classes", None) or num_classes or 1000
        classes = mismatch.classes(current) if mismatch else None
        if classes is not None and num_classes is None:
            model = build(classes)
            mismatch = Mismatch.between(model, candidate)
        if not mismatch:
            model.load_state_dict(candidate, strict=False)
            return model
        if classes is not None:
            raise ValueError(f"weights {source} have {classes} classes; {current} were asked for ({what})")
        first = first or mismatch
    assert first is not None
    raise ValueError(f"weights {source} do not fit {what}: {first.describe()}")


def _layouts(
    model: nn.Module, state: StateDict, adapt: Callable[[nn.Module, StateDict], StateDict | None] | None
) -> Iterator[StateDict]:
    yield state
    if adapt is not None:
        try:
            adapted: Any = adapt(model, dict(state))
        except Exception:  # written for one family of checkpoints, and this is another
            return
        if isinstance(adapted, dict):
            yield {key: value for key, value in adapted.items() if isinstance(value, Tensor)}
