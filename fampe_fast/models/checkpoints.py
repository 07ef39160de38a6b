"""Read checkpoint files: detect their kind, load their state dict, and compare it with a model.

The libraries' own readers do not suffice: timm's goes by the file's suffix, knows fewer layouts and would be imported
for models of other libraries; ``torch.serialization.get_unsafe_globals_in_checkpoint`` reads only zip archives of
protocol 2; ``Module.load_state_dict`` fails after writing a part, with a line for every key.
"""

from __future__ import annotations

import argparse
import io
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import torch
from torch import Tensor, nn

from ..errors import first_line

StateDict = dict[str, Tensor]
FileKind = Literal["TorchScript", "torch.export", "safetensors", "torch.save", "pickle"]

# Keys of the weights in training checkpoints, in timm's order: averaged weights come first.
_NESTED = ("state_dict_ema", "model_ema", "state_dict", "model", "model_state_dict")
_PICKLE = b"\x80"
_LEGACY = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the number that torch.save wrote first before 1.6
# Left by torch.compile and DistributedDataParallel, in either order of wrapping.
_WRAPPERS = ("_orig_mod.", "module.", "_orig_mod.")
# Names that a checkpoint may refer to: tensors, storages, types and containers.
_PLAIN = re.compile(
    r"collections\.OrderedDict|argparse\.Namespace|(builtins|__builtin__)\.(set|frozenset|bytearray|complex|slice)"
    r"|(torch\.(_utils|_tensor|nn\.parameter|serialization)|_codecs)\.\w+|torch\.(storage\.)?([a-z]\w*|\w*Storage|Size)"
)


def file_kind(path: Path) -> FileKind | None:
    """Detect a file's kind by its contents (safetensors also by the suffix); None if PyTorch cannot read it."""
    with path.open("rb") as stream:
        start = stream.read(32)
    length = int.from_bytes(start[:8], "little")  # safetensors: of the JSON object that follows
    if path.suffix.lower() == ".safetensors" or (start[8:9] == b"{" and 2 <= length <= path.stat().st_size - 8):
        return "safetensors"
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = {name.split("/", 1)[-1] for name in archive.namelist()} | set(archive.namelist())
        if "constants.pkl" in names and any(name.startswith("code/") for name in names):
            return "TorchScript"
        if "archive_format" in names or "serialized_exported_program.json" in names:
            return "torch.export"
        return "torch.save" if "data.pkl" in names else None
    if _LEGACY in start:
        return "torch.save"
    return "pickle" if start.startswith(_PICKLE) else None


def check_trusted(source: str, trust_model: bool) -> None:
    """Refuse a model that is a program, unless it is trusted, as loading it may run any code.

    Args:
        source: the source for ``load_classifier``.
        trust_model: whether the source is trusted.

    Raises:
        ValueError: the source is a TorchScript or torch.export file.
    """
    path = Path(source)
    if not trust_model and path.is_file() and file_kind(path) in ("TorchScript", "torch.export"):
        raise ValueError(
            f"{source} is a program ({file_kind(path)}), and loading it may run any code: if you trust its origin, "
            "give --trust-model (trust_model=True)"
        )


def what_it_is(path: Path) -> str:
    """Describe in a few words a file that is neither a model nor a checkpoint."""
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


def unreadable(file: object, kind: FileKind, error: Exception) -> ValueError:
    """Make the error for a file of a known kind that cannot be read."""
    return ValueError(f"{file} cannot be read as a {kind} file ({first_line(error)})")


def read_state_dict(path: str | os.PathLike[str]) -> StateDict:
    """Read the state dict of a checkpoint file, without running code from it (``weights_only=True``).

    Understands .safetensors and everything ``torch.save`` writes; state dicts nested under "state_dict", "model" and
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
    kind = file_kind(path)
    if kind in ("TorchScript", "torch.export"):
        raise ValueError(f"weights {path} is a {kind} program, not a state dict; pass it as the model itself")
    if kind is None:
        expected = "expected .safetensors or a file written by torch.save"
        raise ValueError(f"weights {path} is not a checkpoint: it {what_it_is(path)}; {expected}")
    if kind == "pickle":
        raise ValueError(f"weights {path} is a pickle that torch.save did not write, or damaged; save it by torch.save")
    state = _unnest(_read_safetensors(path) if kind == "safetensors" else _read_pickle(path), path)
    for wrapper in _WRAPPERS:
        state = {key.removeprefix(wrapper): value for key, value in state.items()}
    if all(key.startswith("model.") for key in state):
        state = {key.removeprefix("model."): value for key, value in state.items()}
    for key, value in state.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise ValueError(f"weights {path}: {key} holds NaN or infinite values")
    return state


def _read_safetensors(path: Path) -> StateDict:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        if zipfile.is_zipfile(path):
            raise ValueError(f"weights {path} was written by torch.save: give it the suffix .pth") from error
        raise unreadable(f"weights {path}", "safetensors", error) from error


def _read_pickle(path: Path) -> object:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # timm's training script stores its arguments
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Weights only load failed" not in str(error):
            raise unreadable(f"weights {path}", "torch.save", error) from error
        raise ValueError(f"weights {path} {_pickled(_foreign_classes(path))}") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise unreadable(f"weights {path}", "torch.save", error) from error


def _pickled(classes: list[str]) -> str:
    """Describe the content of a pickle that torch refuses, and the remedy."""
    if not classes:
        return (
            "is damaged, or a pickle of another protocol than 2, which torch can only read by running it. Save the "
            "state dict again: torch.save(model.state_dict(), PATH)"
        )
    layers = any(name.startswith("torch.nn.modules.") for name in classes)
    what = "a whole model, pickled" if layers else "pickled Python objects"
    return (
        f"holds {what} ({_examples(tuple(classes))}), and loading it would run code from the file. Save the "
        "state dict alone: torch.save(model.state_dict(), PATH); or, where you trust the file, load it yourself with "
        "torch.load(PATH, weights_only=False) and give load_classifier the module"
    )


def _foreign_classes(path: Path) -> list[str]:
    """List the classes, other than torch's, whose code would run if a checkpoint's pickle were loaded.

    Args:
        path: a file written by ``torch.save``.
    """
    stream: IO[bytes]
    names: dict[str, None] = {}
    with path.open("rb") as stream:
        parts = 4  # before 1.6: a number, the protocol, sizes, and then the object
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                [name] = [name for name in archive.namelist() if name.endswith("data.pkl")]
                stream, parts = io.BytesIO(archive.read(name)), 1
        try:
            for _ in range(parts):
                _ClassNames(stream, names).load()
        except Exception:  # a damaged pickle, which may still have named some
            pass
    return [name for name in names if not _PLAIN.fullmatch(name)]


class _ClassNames(pickle.Unpickler):
    """Records the classes that a pickle names, in order, without instantiating them, so that no code runs."""

    def __init__(self, stream: IO[bytes], names: dict[str, None]) -> None:
        super().__init__(stream)
        self.names = names

    def find_class(self, module: str, name: str) -> type[_Nothing]:
        """Record a class, and return a substitute."""
        self.names[f"{module}.{name}"] = None
        return _Nothing

    def persistent_load(self, pid: object) -> type[_Nothing]:
        """Return a substitute for a storage or, before torch 1.6, for a class with its source."""
        return _Nothing


class _Nothing:
    """Substitute for every object of a pickle, which accepts all pickle operations."""

    def __new__(cls, *_: object, **__: object) -> _Nothing:
        return super().__new__(cls)

    def _take(self, *_: object) -> None: ...

    __setstate__ = __setitem__ = append = extend = add = _take


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
    """The differences between a state dict and a model; false if it fits."""

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
        """Return the checkpoint's number of classes, if only the head's size differs from ``current``."""
        if self.missing or self.unexpected or not self.reshaped:
            return None
        heads = {
            theirs[0] if theirs[1:] == ours[1:] and ours[:1] == (current,) else None
            for _, theirs, ours in self.reshaped
            if theirs
        }
        return heads.pop() if len(heads) == 1 else None

    def describe(self) -> str:
        """Describe the differences, with counts and examples."""
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


def load_weights(
    build: Callable[[int | None], nn.Module],
    weights: Path,
    *,
    num_classes: int | None,
    what: str,
    adapt: Callable[[nn.Module, StateDict], StateDict | None] | None = None,
) -> nn.Module:
    """Build a model and load a checkpoint into it, every key and shape.

    Args:
        build: makes the model for a number of classes; None is its default.
        weights: the checkpoint.
        num_classes: the requested number of classes; None takes it from the checkpoint's classifier.
        what: name of the model, for messages.
        adapt: translates a foreign layout into the model's; tried if the state dict does not fit.

    Raises:
        FileNotFoundError, ValueError: as ``read_state_dict``; or the state dict does not fit, and the message counts
            missing and unknown keys and other shapes.
    """
    state = read_state_dict(weights)
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
            raise ValueError(f"weights {weights} have {classes} classes, but {current} are needed ({what})")
        first = first or mismatch
    assert first is not None
    raise ValueError(f"weights {weights} do not fit {what}: {first.describe()}")


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
