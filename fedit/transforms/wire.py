"""Tensors as bytes on their way: descriptions of what was packed, checksums, and what a decoder may believe."""

import json
import math
import zlib
from collections.abc import Mapping

import torch
from torch import Tensor

from fedit.errors import DamagedPayload
from fedit.types import Tensors

CHECKSUM = "#crc32"
"""Name of the four bytes that go with every set that was transformed."""

MOST_ENTRIES = 1 << 31
"""Entries that a description may claim: more is damage, or an attack on the server's memory."""

_LONGEST_DESCRIPTION = 1 << 26
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.uint8,
        torch.bool,
    )
}


def raw(tensor: Tensor) -> Tensor:
    """Return the bytes of a tensor, uint8 in one dimension, without a copy where that can be."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def from_bytes(content: bytes) -> Tensor:
    """Return bytes as a uint8 tensor that may be written to."""
    return (
        torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.zeros(0, dtype=torch.uint8)
    )


def to_bytes(tensor: Tensor) -> bytes:
    """Return the bytes of a tensor."""
    return raw(tensor).numpy().tobytes()


def sealed(held: Tensors) -> Tensors:
    """Return ``held`` with the CRC-32 of all names, dtypes, shapes and bytes; an empty set stays empty."""
    if not held:
        return held
    return {**held, CHECKSUM: from_bytes(_crc(held).to_bytes(4, "little"))}


def opened(held: Tensors) -> Tensors:
    """Return what `sealed` was given.

    Raises:
        DamagedPayload: a bit differs, or there is no checksum.
    """
    if not held:
        return held
    content = {name: tensor for name, tensor in held.items() if name != CHECKSUM}
    if CHECKSUM not in held or to_bytes(held[CHECKSUM]) != _crc(content).to_bytes(4, "little"):
        raise DamagedPayload("its checksum differs from its content's: it was damaged on the way")
    return content


def floats_of(held: Mapping[str, Tensor]) -> tuple[Tensors, Tensors]:
    """Return the floating tensors of a set in the order of their names, and the others."""
    floats = {name: held[name] for name in sorted(held) if held[name].is_floating_point()}
    return floats, {name: tensor for name, tensor in held.items() if name not in floats}


def joined(held: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    """Return all entries of the tensors, one after the other, in one dimension."""
    pieces = [tensor.detach().cpu().reshape(-1).to(dtype) for tensor in held.values()]
    return torch.cat(pieces) if pieces else torch.zeros(0, dtype=dtype)


def parted(buffer: Tensor, described: Mapping[str, Tensor]) -> Tensors:
    """Return the tensors that `joined` was given, with names, shapes and dtypes of ``described``.

    Raises:
        DamagedPayload: the buffer has another size.
    """
    sizes = [tensor.numel() for tensor in described.values()]
    if sum(sizes) != buffer.numel():
        raise DamagedPayload(f"{buffer.numel()} entries came where {sum(sizes)} were described")
    pieces = zip(described.items(), buffer.split(sizes), strict=True)
    return {name: piece.view(like.shape).to(like.dtype) for (name, like), piece in pieces}


def describe(held: Mapping[str, Tensor]) -> Tensor:
    """Return names, dtypes and shapes as compressed JSON, about 5 bytes a tensor of a large model."""
    listed = [[n, str(t.dtype).removeprefix("torch."), list(t.shape)] for n, t in held.items()]
    return from_bytes(zlib.compress(json.dumps(listed, separators=(",", ":")).encode(), 9))


def described(description: Tensor) -> Tensors:
    """Return tensors without content ("meta") of the names, dtypes and shapes that `describe` was given.

    Raises:
        DamagedPayload: it is no description.
    """
    try:
        unpacker = zlib.decompressobj()
        text = unpacker.decompress(to_bytes(description), _LONGEST_DESCRIPTION)
        listed = json.loads(text)
        found = {
            str(name): torch.empty([_length(n) for n in shape], dtype=_DTYPES[dtype], device="meta")
            for name, dtype, shape in listed
        }
        if len(found) != len(listed) or sum(tensor.numel() for tensor in found.values()) > MOST_ENTRIES:
            raise ValueError("it names something twice, or too much")
    except (zlib.error, ValueError, KeyError, TypeError, RuntimeError, RecursionError) as error:
        raise DamagedPayload(f"its description cannot be read: {error}") from error
    return found


def pop(held: Tensors, *names: str) -> list[Tensor]:
    """Remove tensors from ``held`` and return them.

    Raises:
        DamagedPayload: one is missing.
    """
    if missing := [name for name in names if name not in held]:
        raise DamagedPayload(f"{missing[0]} is missing")
    return [held.pop(name) for name in names]


def _length(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MOST_ENTRIES:
        raise ValueError(f"{value!r} is no length")
    return value


def _crc(held: Mapping[str, Tensor]) -> int:
    crc = 0
    for name in sorted(held):
        tensor = held[name]
        crc = zlib.crc32(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode(), crc)
        if math.prod(tensor.shape):
            crc = zlib.crc32(raw(tensor).numpy().data, crc)
    return crc
