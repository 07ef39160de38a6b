"""Compute digests of Python objects from their class, settings, tensors and code, without memory addresses."""

from __future__ import annotations

import hashlib
import io
import itertools
import pickle
import re
import sys
import sysconfig
import types
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from enum import Enum
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, fx, nn

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
# TorchScript numbers classes of the same name in the order of a process.
_MANGLED = re.compile(r"[./]?___torch_mangle_\d+")
# What nn.Module keeps about itself, where parameters, buffers and submodules are read by name; torch.compile's mark;
# and timm's record of the weights' origin, of which only the transform matters.
_INTERNAL = frozenset(vars(nn.Module())) - {"training"} | {"_is_torch_compile", "pretrained_cfg", "default_cfg"}
_PLAIN = (bool, int, float, complex, str, bytes, type(None), type(Ellipsis))


def digest_of(value: object, *, without: Iterable[str] = ()) -> str:
    """Compute the SHA-256 of an object's content, the same in every process and on every device.

    Of modules: class, settings (attributes, shown by ``repr`` or not), parameters, buffers, persistent or not,
    hooks, and the code of classes outside libraries. Of functions: code, defaults, closures and the module's globals
    that they use. Of TorchScript: code, constants and attributes. Names of parameters count, devices and memory formats
    do not.

    Args:
        value: any object; for opaque objects, class and ``repr`` without addresses are used.
        without: attributes of ``value`` itself to leave out.
    """
    return _Digests().read(value, frozenset(without)).hex()


class _Digests:
    """Computes digests by identity, so that shared objects are read once and recursion ends."""

    def __init__(self) -> None:
        self._known: dict[int, bytes] = {}
        self._alive: list[object] = []  # otherwise another object may get a known one's id
        self._tensors: dict[tuple[Any, ...], bytes] = {}
        self._open = 0  # nesting depth of the current object

    def read(self, value: object, without: frozenset[str] = frozenset()) -> bytes:
        """Digest any object."""
        if isinstance(value, _PLAIN):
            return _hash(type(value).__name__, repr(value))
        if id(value) in self._known:
            return self._known[id(value)]
        self._known[id(value)] = _hash("a reference to what contains it", str(self._open))
        self._alive.append(value)
        self._open += 1
        self._known[id(value)] = found = self._compound(value, without)
        self._open -= 1
        return found

    def _compound(self, value: Any, without: frozenset[str]) -> bytes:
        if isinstance(value, Tensor):
            return self.tensor(value)
        if isinstance(value, torch.jit.ScriptModule):
            return self.program(value)
        if isinstance(value, nn.Module):
            return self.module(value, without)
        if isinstance(value, np.ndarray):
            return _hash("array", str(value.dtype), str(value.shape), np.ascontiguousarray(value).tobytes())
        if isinstance(value, Mapping):
            items = sorted(self.read(key) + self.read(part) for key, part in value.items())
            return _hash("mapping", *items)
        if isinstance(value, list | tuple):
            return _hash(type(value).__name__, *map(self.read, value))
        if isinstance(value, set | frozenset):
            return _hash("set", *sorted(map(self.read, value)))
        if isinstance(value, Enum):
            return _hash(_name(type(value)), value.name)
        return self._code_or_instance(value, without)

    def _code_or_instance(self, value: Any, without: frozenset[str]) -> bytes:
        if isinstance(value, partial):
            return _hash("partial", *map(self.read, (value.func, value.args, value.keywords)))
        if isinstance(value, types.MethodType):
            return _hash("method", self.read(value.__self__), self.read(value.__func__))
        if isinstance(value, types.FunctionType):
            return self.function(value)
        if isinstance(value, types.CodeType):
            return self.code(value)
        if isinstance(value, types.CellType):
            try:
                return self.read(value.cell_contents)
            except ValueError:  # not filled yet
                return _hash("empty cell")
        if isinstance(value, type):
            return self.kind(value)
        if isinstance(value, torch.device):
            return _hash("device")  # the same model elsewhere
        if isinstance(value, types.ModuleType | types.BuiltinFunctionType):
            return _hash("builtin", getattr(value, "__name__", ""))
        settings = None if _origin(type(value)) == "standard" else self._settings(value)
        if settings is None:  # loggers and locks refer to the whole process
            return _hash(self.kind(type(value)), _ADDRESS.sub("", repr(value)))
        return _hash(
            self.kind(type(value)), *self._named((k, part) for k, part in settings.items() if k not in without)
        )

    def _settings(self, value: object) -> dict[str, Any] | None:
        slots = [name for kind in type(value).__mro__ for name in _slots(kind) if hasattr(value, name)]
        if not hasattr(value, "__dict__") and not slots:
            return None
        return {**{name: getattr(value, name) for name in slots}, **getattr(value, "__dict__", {})}

    def _named(self, items: Iterable[tuple[str, object]]) -> list[bytes]:
        return [_hash(name, self.read(part)) for name, part in sorted(items, key=lambda item: item[0])]

    def module(self, module: nn.Module, without: frozenset[str] = frozenset()) -> bytes:
        """Digest a module's class, settings, tensors and submodules, each by name."""
        if hasattr(module, "_orig_mod"):  # torch.compile's wrapper, which holds the compiler's state
            return self.read(module._orig_mod)
        own = {key: part for key, part in vars(module).items() if key not in _INTERNAL and key not in without}
        if isinstance(module, fx.GraphModule):  # its graph holds file names and examples; the code is what it does
            own = {key: part for key, part in own.items() if isinstance(part, Tensor)} | {"code": module.code}
        tensors: list[tuple[str, object]] = [(f"parameter {key}", part) for key, part in module._parameters.items()]
        tensors += [(f"buffer {key}", part) for key, part in module._buffers.items()]
        hooks = [
            (f"{kind} hooks", list(getattr(module, f"_{kind}_hooks").values())) for kind in ("forward", "forward_pre")
        ]
        saved: dict[str, Any] = {}
        if type(module)._save_to_state_dict is not nn.Module._save_to_state_dict:
            module._save_to_state_dict(saved, "", False)  # quantised modules keep their weights nowhere else
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            saved["extra state"] = module.get_extra_state()
        children = [_hash(key, self.read(child)) for key, child in module._modules.items()]
        parts = [self._named(some) for some in (own.items(), tensors, hooks, saved.items())]
        kind = b"graph" if isinstance(module, fx.GraphModule) else self.kind(type(module))
        return _hash(kind, *itertools.chain(*parts), *children)

    def tensor(self, tensor: Tensor) -> bytes:
        """Digest a tensor's shape, type and values; of one that is not plain, its parts."""
        where = (tensor.shape, tensor.dtype, tensor.layout, _place(tensor))
        if where[3] is None or where not in self._tensors:
            self._tensors[where] = _hash("tensor", str(tuple(tensor.shape)), str(tensor.dtype), *self._values(tensor))
        return self._tensors[where]

    def _values(self, tensor: Tensor) -> list[bytes | memoryview]:
        tensor = tensor.detach()
        if tensor.is_meta:
            return []
        if hasattr(tensor, "__tensor_flatten__"):  # a subclass made of others, as torchao's quantised weights
            names, rest = tensor.__tensor_flatten__()
            return [*(self.read(getattr(tensor, name)) for name in names), repr(rest).encode()]
        if tensor.is_quantized:
            scales = (
                [tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points(), tensor.q_per_channel_axis()]
                if tensor.qscheme() in (torch.per_channel_affine, torch.per_channel_affine_float_qparams)
                else [tensor.q_scale(), tensor.q_zero_point()]
            )
            return [self.read(tensor.int_repr()), *map(self.read, scales)]
        if tensor.layout != torch.strided:
            tensor = tensor.to_dense()
        flat = tensor.resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
        raw: Any = flat.view(torch.uint8).numpy() if flat.numel() else b""
        return [memoryview(raw)]

    def function(self, function: types.FunctionType) -> bytes:
        """Digest a function's code and the objects it refers to."""
        name = function.__qualname__
        if _of_a_library(function):
            return _hash("function", function.__module__, name)
        code, outside = function.__code__, function.__globals__
        named = {key: _as_global(outside[key]) for key in _names(code) if key in outside}
        parts = (code, function.__defaults__, function.__kwdefaults__, function.__closure__, named)
        return _hash("function", *map(self.read, parts))

    def code(self, code: types.CodeType) -> bytes:
        """Digest instructions, constants and names, without file and line."""
        constants = [
            constant if not isinstance(constant, frozenset) else sorted(map(repr, constant))
            for constant in code.co_consts
        ]
        return _hash("code", code.co_code, *map(self.read, (constants, code.co_names, code.co_varnames)))

    def kind(self, kind: type) -> bytes:
        """Digest a class by its name and, if it belongs to no library, by its code."""
        if id(kind) in self._known:
            return self._known[id(kind)]
        bases = [base for base in kind.__mro__ if not _of_a_library(base)]
        self._alive.append(kind)
        self._known[id(kind)] = _hash("class", _name(kind))  # for methods that name their own class
        methods = [
            (f"{base.__qualname__}.{key}", part)
            for base in bases
            for key, part in ((key, _function_of(part)) for key, part in vars(base).items())
            if isinstance(part, (*_PLAIN, types.FunctionType)) and key not in _OF_CLASSES
        ]
        self._known[id(kind)] = found = _hash("class", _name(kind), *self._named(methods))
        return found

    def program(self, program: torch.jit.ScriptModule) -> bytes:
        """Digest TorchScript's code, constants, attributes and weights, as it would be saved."""
        saved = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # newer torch advises authors of archives to move on
            torch.jit.save(program, saved)  # type: ignore[no-untyped-call]
        with zipfile.ZipFile(saved) as archive:
            files = {name.partition("/")[2]: name for name in archive.namelist()}
            code = sorted(
                _hash(_MANGLED.sub("", name), _in_order(_MANGLED.sub("", archive.read(full).decode())))
                for name, full in files.items()
                if name.startswith("code/") and name.endswith(".py")
            )
            content = []
            for part in ("data", "constants"):
                if f"{part}.pkl" in files:
                    content.append(self.read(_Unpickler(archive, files, part).load()))
        return _hash("program", *code, *content)


def _in_order(code: str) -> str:
    """Sort the constants of TorchScript's classes, which are written in any order, to the beginning of its code."""
    lines = code.splitlines()
    return "\n".join(sorted(lines, key=lambda line: (0, line) if " : Final[" in line else (1, "")))


class _Unpickler(pickle.Unpickler):
    """Reads the attributes of a saved program into plain objects, without running it."""

    def __init__(self, archive: zipfile.ZipFile, files: dict[str, str], part: str) -> None:
        super().__init__(io.BytesIO(archive.read(files[f"{part}.pkl"])))
        self._archive, self._files, self._part = archive, files, part

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuilt
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        if module == "torch" and name.endswith("Storage"):
            return name
        return type("Thing", (_Thing,), {"shown": f"{_MANGLED.sub('', module)}.{name}"})

    def persistent_load(self, pid: Any) -> Any:
        _, storage, key, *_ = pid
        return storage, self._archive.read(self._files[f"{self._part}/{key}"])


class _Thing:
    """An object of a saved program: its class's name, and what it was made from."""

    shown = ""
    content: Any = None

    def __init__(self, *arguments: object) -> None:
        self.content = (type(self).shown, arguments)

    def __setstate__(self, state: object) -> None:
        self.content = (type(self).shown, self.content, state)


def _rebuilt(storage: tuple[str, bytes], offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Any:
    """Read the values of a saved tensor, in the order of its indices whatever its memory format."""
    kind, raw = storage
    numbers = int(np.prod(size, dtype=np.int64))
    if numbers == 0:
        return kind, size
    item = _BYTES.get(kind.removesuffix("Storage"))
    if item is None:
        return kind, size, stride, offset, raw
    units = np.frombuffer(raw, dtype=np.dtype((np.void, item)))
    view = np.lib.stride_tricks.as_strided(units[offset:], size, [step * item for step in stride])
    return kind, size, np.ascontiguousarray(view).tobytes()


_BYTES = {
    **dict.fromkeys(("Byte", "Char", "Bool", "QInt8", "QUInt8"), 1),
    **dict.fromkeys(("Short", "Half", "BFloat16"), 2),
    **dict.fromkeys(("Int", "Float", "QInt32"), 4),
    **dict.fromkeys(("Long", "Double", "ComplexFloat"), 8),
    "ComplexDouble": 16,
}
_OF_CLASSES = frozenset(
    {"__module__", "__doc__", "__qualname__", "__firstlineno__", "__annotate__", "__annotate_func__"}
)


def _hash(*parts: str | bytes | memoryview) -> bytes:
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.digest()


def _name(kind: type) -> str:
    """Name a class, with its module only for libraries: others may be in "__main__" in some processes."""
    return f"{kind.__module__}.{kind.__qualname__}" if _of_a_library(kind) else kind.__qualname__


def _of_a_library(owner: object) -> bool:
    """Tell whether a class or function belongs to an installed package, so that the version determines its code."""
    return _origin(owner) != "own"


def _origin(owner: object) -> Literal["own", "package", "standard"]:
    return _home((getattr(owner, "__module__", None) or "builtins").partition(".")[0])


@cache
def _home(package: str) -> Literal["own", "package", "standard"]:
    file = getattr(sys.modules.get(package), "__file__", None)
    if package in ("__main__", "__mp_main__"):
        return "own"
    if package == "fampe_fast":
        return "package"
    if package in sys.stdlib_module_names:
        return "standard"
    folders = {sysconfig.get_paths()[key] for key in ("purelib", "platlib")}
    installed = file is not None and any(Path(file).is_relative_to(folder) for folder in folders)
    return "package" if installed or (file and {"site-packages", "dist-packages"} & set(Path(file).parts)) else "own"


def _as_global(value: object) -> object:
    """Return a global of a function's module; a library's object, such as a logger, only by its class."""
    told = (*_PLAIN, Tensor, nn.Module, np.ndarray, Enum, partial, type, types.FunctionType, types.ModuleType)
    if isinstance(value, (*told, list, tuple, set, frozenset, dict)) or not _of_a_library(type(value)):
        return value
    return type(value)


def _function_of(member: object) -> object:
    """Unwrap the function of a static method, class method or property."""
    if isinstance(member, staticmethod | classmethod):
        return member.__func__
    return member.fget if isinstance(member, property) else member


def _names(code: types.CodeType) -> set[str]:
    """List the global names of a function and of those within it."""
    inner = (_names(constant) for constant in code.co_consts if isinstance(constant, types.CodeType))
    return set(code.co_names).union(*inner)


def _slots(kind: type) -> tuple[str, ...]:
    slots = vars(kind).get("__slots__", ())
    names = (slots,) if isinstance(slots, str) else tuple(slots)
    return tuple(name for name in names if name not in ("__dict__", "__weakref__"))


def _place(tensor: Tensor) -> tuple[Any, ...] | None:
    """Return the location of a tensor's values, so that a shared one is read once; None if unknown."""
    try:
        return (tensor.device, tensor.data_ptr(), tensor.stride()) if tensor.data_ptr() else None
    except RuntimeError:  # for sparse and packed tensors
        return None
