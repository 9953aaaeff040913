"""Lossless packing: the first bytes of all numbers, then the second ones and so on, and Zstandard over them.

Exponents of numbers of one set resemble each other and random last bits do not: apart, the former compress.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import zstandard
from torch import Tensor

from fedit.errors import ConfigError, DamagedPayload
from fedit.strategies.base import Strategy
from fedit.transforms import wire
from fedit.transforms.base import Stage, Transform
from fedit.types import ClientUpdate, Tensors

MOST_BYTES = 8 * wire.MOST_ENTRIES
"""Bytes that a frame may unpack to; a frame that claims more is damage, or an attack on the server's memory."""

_SHAPES, _PACKED = "#zstd.shapes", "#zstd.packed"


@dataclass(frozen=True)
class Zstd(Transform):
    """Pack updates and broadcasts without loss, byte by byte of the numbers, with Zstandard.

    level: of compression, 1 (fast) to 19.
    """

    level: int = 3

    stage = Stage.BYTES

    def on_client(self, update: ClientUpdate, memory: Tensors, seed: int) -> tuple[ClientUpdate, Tensors]:
        return replace(update, delta=self._pack(update.delta), extra=self._pack(update.extra)), memory

    def on_receive(self, update: ClientUpdate) -> ClientUpdate:
        return replace(update, delta=_unpack(update.delta), extra=_unpack(update.extra))

    def on_broadcast(self, part: str, held: Tensors) -> Tensors:
        return self._pack(held)

    def on_arrival(self, part: str, held: Tensors) -> Tensors:
        return _unpack(held)

    def check(self, strategy: Strategy) -> None:
        if not 1 <= self.level <= 19:
            raise ConfigError(f"option 'level' of transform 'zstd' is {self.level}; expected 1 to 19.")

    def _pack(self, held: Tensors) -> Tensors:
        if not held:
            return held
        held = {name: held[name] for name in sorted(held)}
        content = b"".join(_planes(held, width) for width in _widths(held))
        packed = zstandard.ZstdCompressor(level=self.level).compress(content)
        return {_SHAPES: wire.describe(held), _PACKED: wire.from_bytes(packed)}


def _unpack(held: Tensors) -> Tensors:
    if not held:
        return held
    held = dict(held)
    shapes, packed = wire.pop(held, _SHAPES, _PACKED)
    described = wire.described(shapes)
    content = _decompressed(wire.to_bytes(packed), sum(t.numel() * t.element_size() for t in described.values()))
    found: Tensors = {}
    for width in _widths(described):
        own = {name: tensor for name, tensor in described.items() if tensor.element_size() == width}
        size = width * sum(tensor.numel() for tensor in own.values())
        rows, content = content[:size].view(width, -1).T.contiguous().view(-1), content[size:]
        pieces = rows.split([width * tensor.numel() for tensor in own.values()])
        for (name, like), piece in zip(own.items(), pieces, strict=True):
            # A copy where a piece does not begin at a multiple of its width.
            found[name] = piece.clone().view(like.dtype).view(like.shape)
    return {name: found[name] for name in described}


def _decompressed(packed: bytes, size: int) -> Tensor:
    try:
        if zstandard.frame_content_size(packed) != size or size > MOST_BYTES:
            raise DamagedPayload(f"its frame does not hold the {size} bytes that were described")
        content = zstandard.ZstdDecompressor().decompress(packed)
    except zstandard.ZstdError as error:
        raise DamagedPayload(f"its frame cannot be unpacked: {error}") from error
    return wire.from_bytes(content)


def _widths(held: Mapping[str, Tensor]) -> list[int]:
    """Return the sizes of the numbers there are, in bytes, ascending."""
    return sorted({tensor.element_size() for tensor in held.values()})


def _planes(held: Mapping[str, Tensor], width: int) -> bytes:
    """Return all numbers of one size, their first bytes first."""
    own = [wire.raw(tensor) for tensor in held.values() if tensor.element_size() == width]
    return torch.cat(own).view(-1, width).T.contiguous().numpy().tobytes()
