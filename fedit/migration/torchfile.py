"""Tensors in a file that ``torch.save`` wrote, read without unpickling it.

Such a file is a ZIP archive of raw numbers and a pickle that says which numbers make which tensor. A pickle is a
program, and whoever runs it trusts its author. Here it is only read: `pickletools` tells its instructions apart
without executing any, the dozen that a dict of tensors needs are followed on plain values, and no name in it is
ever looked up or called. Everything else is refused.
"""

import math
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fedit.errors import ModelError
from fedit.files import reason
from fedit.types import Tensors

_DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
}
_DICT, _TENSOR, _PARAMETER = (
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = ("BINUNICODE", "SHORT_BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1")
_IGNORED = ("PROTO", "FRAME")
LONGEST_PROGRAM = 1 << 24
"""Bytes of the pickle; an adapter of ten thousand tensors has some two million."""
MOST_DIMENSIONS = 8


class _Unsuited(ValueError):
    """The file says something that a dict of tensors does not need."""


@dataclass(frozen=True, slots=True)
class _Name:
    """A name that the pickle mentions, "module attribute"; it is compared and never looked up."""

    text: str


@dataclass(frozen=True, slots=True)
class _Storage:
    """Raw numbers: the archive's entry, their type, and how many there are."""

    key: str
    dtype: torch.dtype
    count: int


@dataclass(frozen=True, slots=True)
class _View:
    """A tensor: which numbers of a storage it takes."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


_MARK = object()
_DAMAGES = (EOFError, LookupError, TypeError, ValueError, RuntimeError, OverflowError, struct.error)


def read_torch_file(path: Path) -> Tensors:
    """Return the tensors of a dict that ``torch.save`` wrote, by name.

    Raises:
        ModelError: the file is damaged, is of another kind, or holds anything but a dict of tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _tensors(archive)
    except OSError as error:
        raise ModelError(f"cannot read {path}: {reason(error)}") from error
    except zipfile.BadZipFile as error:
        raise ModelError(
            f"{path} is not in PyTorch's ZIP format, which torch.save writes since 1.6; files of older versions "
            "are pickles through and through and are not read. Save it again as safetensors where you trust it."
        ) from error
    except (*_DAMAGES, zlib.error) as error:
        raise ModelError(
            f"{path} holds something else than a dict of tensors, as adapters are saved ({error}). Nothing of it "
            "was loaded or run."
        ) from error


def _tensors(archive: zipfile.ZipFile) -> Tensors:
    entries = {info.filename: info for info in archive.infolist()}
    program = next((name for name in entries if name.endswith("/data.pkl")), None)
    if program is None:
        raise _Unsuited("it has no data.pkl")
    root = program.removesuffix("/data.pkl")
    if f"{root}/byteorder" in entries and archive.read(f"{root}/byteorder") != b"little":
        raise _Unsuited("its numbers are not little-endian")
    if entries[program].file_size > LONGEST_PROGRAM:
        raise _Unsuited(f"its description has {entries[program].file_size} bytes")
    held = _follow(archive.read(program))
    if not isinstance(held, dict):
        raise _Unsuited("it is no dict")
    found: Tensors = {}
    left = sum(info.file_size for info in entries.values())  # tensors that share storages could become many more
    for name, view in held.items():
        if not isinstance(name, str) or not isinstance(view, _View):
            raise _Unsuited(f"entry {str(name)[:80]!r} is no tensor")
        left -= math.prod(view.shape) * view.storage.dtype.itemsize
        if left < 0:
            raise _Unsuited("its tensors overlap")
        found[name] = _tensor(archive, entries, root, view)
    return found


def _tensor(archive: zipfile.ZipFile, entries: Mapping[str, zipfile.ZipInfo], root: str, view: _View) -> Tensor:
    storage, info = view.storage, entries[f"{root}/data/{view.storage.key}"]
    size = storage.count * storage.dtype.itemsize
    # Stored, not compressed: a few bytes cannot become gigabytes.
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != size:
        raise _Unsuited(f"storage {storage.key} does not have {size} bytes")
    last = view.offset + sum((n - 1) * step for n, step in zip(view.shape, view.strides, strict=True))
    if math.prod(view.shape) > storage.count or (math.prod(view.shape) > 0 and last >= storage.count):
        raise _Unsuited(f"a tensor of shape {view.shape} goes beyond its storage")
    if math.prod(view.shape) == 0:
        return torch.empty(view.shape, dtype=storage.dtype)
    numbers = torch.frombuffer(bytearray(archive.read(info)), dtype=storage.dtype)
    return numbers.as_strided(view.shape, view.strides, view.offset).contiguous()


def _follow(program: bytes) -> object:
    """Return what the instructions describe: dicts, tuples, texts, numbers, names and tensors."""
    stack: list[object] = []
    memo: dict[int, object] = {}
    for opcode, argument, _ in pickletools.genops(program):
        name = opcode.name
        if name in _IGNORED:
            continue
        if name == "STOP":
            return stack.pop()
        if name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _LITERALS:
            stack.append(argument)
        elif name == "GLOBAL":
            stack.append(_Name(str(argument)))
        elif name == "MARK":
            stack.append(_MARK)
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "EMPTY_TUPLE":
            stack.append(())
        elif name == "TUPLE":
            stack.append(tuple(_since_mark(stack)))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            items = [stack.pop() for _ in range(int(name[-1]))]
            stack.append(tuple(reversed(items)))
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[_whole(argument)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[_whole(argument)])
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            _set(stack[-1], [key, value])
        elif name == "SETITEMS":
            items = _since_mark(stack)
            _set(stack[-1], items)
        elif name == "BINPERSID":
            stack.append(_storage(stack.pop()))
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(_made(function, arguments))
        elif name == "BUILD":
            stack.pop()  # an OrderedDict's attributes, such as versions of modules
            if not isinstance(stack[-1], dict):
                raise _Unsuited("it gives an object a state")
        else:
            raise _Unsuited(f"it has the instruction {name}")
    raise _Unsuited("it ends in the middle")


def _since_mark(stack: list[object]) -> list[object]:
    items: list[object] = []
    while (item := stack.pop()) is not _MARK:
        items.append(item)
    return items[::-1]


def _set(target: object, items: list[object]) -> None:
    if not isinstance(target, dict) or len(items) % 2:
        raise _Unsuited("it fills something else than a dict")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, str):
            raise _Unsuited(f"a key is {type(key).__name__}")
        target[key] = value


def _storage(description: object) -> _Storage:
    match description:
        case ("storage", _Name(text=text), str(key), str(), count):
            module, _, kind = text.partition(" ")
            if module == "torch" and kind in _DTYPES and key.isdecimal():
                return _Storage(key, _DTYPES[kind], _whole(count))
            raise _Unsuited(f"it has numbers of the kind {text[:80]!r}")
    raise _Unsuited("a storage is described in another way")


def _made(function: object, arguments: object) -> object:
    """Return what a call in the pickle stands for; only three are known, and none is made."""
    match function, arguments:
        case _Name(text=text), () if text == _DICT:
            return {}
        case _Name(text=text), (_Storage() as storage, offset, tuple(shape), tuple(strides), *_) if (
            text == _TENSOR
        ):
            if len(shape) != len(strides) or len(shape) > MOST_DIMENSIONS:
                raise _Unsuited("a tensor's shape and strides do not fit")
            return _View(storage, _whole(offset), tuple(map(_whole, shape)), tuple(map(_whole, strides)))
        case _Name(text=text), (_View() as view, *_) if text == _PARAMETER:
            return view
        case _Name(text=text), _:
            raise _Unsuited(f"it asks for {text[:80]!r}")
    raise _Unsuited("it calls something that has no name")


def _whole(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise _Unsuited("a size is no whole number from 0")
    return value
