"""Stochastic quantisation in blocks, of the family of QSGD (Alistarh et al., 2017, arXiv:1610.02132).

With the largest absolute value a of a block and L levels a side, x becomes q = floor(L x / a + u) for u uniform in
[0, 1), and arrives as a q / L: E[a q / L] = x, and no entry is off by more than a / L.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from fedit import seeds
from fedit.errors import ConfigError, DamagedPayload
from fedit.strategies.base import Strategy
from fedit.transforms import wire
from fedit.transforms.base import Stage, Transform
from fedit.types import ClientUpdate, Tensors

BLOCK = 64
"""Entries that share a scale."""

LEVELS = {8: 127, 4: 7}
"""Bits of an entry -> steps from zero to a block's largest absolute value."""

_SHAPES, _CODES, _PEAKS = "#quantize.shapes", "#quantize.codes", "#quantize.peaks"


@dataclass(frozen=True)
class Quantize(Transform):
    """Send updates as whole numbers of 8 or 4 bits with a scale every 64 entries, rounded at random: unbiased.

    bits: of an entry, 8 or 4; half a bit more goes to the scales.
    """

    bits: int = 8

    stage = Stage.BITS

    # Deviation: blocks are scaled by their largest absolute value and not by their Euclidean norm, which would
    # leave most of a block's levels unused.

    def on_client(self, update: ClientUpdate, memory: Tensors, seed: int) -> tuple[ClientUpdate, Tensors]:
        delta = _encode(update.delta, self.bits, seeds.derive(seed, "delta"))
        return replace(
            update, delta=delta, extra=_encode(update.extra, self.bits, seeds.derive(seed, "extra"))
        ), memory

    def on_receive(self, update: ClientUpdate) -> ClientUpdate:
        return replace(update, delta=_decode(update.delta, self.bits), extra=_decode(update.extra, self.bits))

    def check(self, strategy: Strategy) -> None:
        if self.bits not in LEVELS:
            raise ConfigError(f"option 'bits' of transform 'quantize' is {self.bits}; expected 8 or 4.")


def _encode(held: Tensors, bits: int, seed: int) -> Tensors:
    floats, others = wire.floats_of(held)
    if not floats:
        return held
    levels = LEVELS[bits]
    values = torch.cat([_padded(tensor.detach().cpu().reshape(-1).float()) for tensor in floats.values()])
    blocks = values.view(-1, BLOCK)
    peaks = blocks.abs().amax(dim=1)
    # A block that is zero or not finite has no scale; what is sent of the latter is not finite either.
    scale = torch.where((peaks > 0) & peaks.isfinite(), peaks, 1.0).unsqueeze(1)
    noise = torch.cat([_noise(seeds.derive(seed, name), tensor.numel()) for name, tensor in floats.items()])
    steps = (blocks / scale * levels + noise.view(-1, BLOCK)).floor_().nan_to_num_(0.0).clamp_(-levels, levels)
    codes = _without_padding(steps.view(-1).to(torch.int8), floats)
    return {**others, _SHAPES: wire.describe(floats), _CODES: _pack(codes, bits), _PEAKS: peaks}


def _decode(held: Tensors, bits: int) -> Tensors:
    if _SHAPES not in held:
        return held
    held = dict(held)
    shapes, packed, peaks = wire.pop(held, _SHAPES, _CODES, _PEAKS)
    described = wire.described(shapes)
    sizes = [tensor.numel() for tensor in described.values()]
    if packed.numel() != -(-sum(sizes) * bits // 8) or peaks.numel() != sum(-(-size // BLOCK) for size in sizes):
        raise DamagedPayload(f"{packed.numel()} bytes and {peaks.numel()} scales came for {sum(sizes)} entries")
    codes = _unpack(packed, bits)[: sum(sizes)]
    blocks = torch.cat([_padded(piece) for piece in codes.split(sizes)]).view(-1, BLOCK)
    # Not by the step: seven times a seventh of the largest float may overflow.
    values = (blocks.float() / LEVELS[bits]) * peaks.float().view(-1, 1)
    return {**held, **wire.parted(_without_padding(values.view(-1), described), described)}


def _noise(seed: int, size: int) -> Tensor:
    return torch.rand(size + -size % BLOCK, generator=torch.Generator().manual_seed(seed))


def _padded(values: Tensor) -> Tensor:
    """Return ``values`` with zeros up to whole blocks."""
    return pad(values, (0, -len(values) % BLOCK))


def _without_padding(values: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
    """Return ``values``, in whole blocks for every tensor, without what was added to fill the last of each."""
    sizes = [tensor.numel() for tensor in tensors.values()]
    pieces = values.split([size + -size % BLOCK for size in sizes])
    return torch.cat([piece[:size] for piece, size in zip(pieces, sizes, strict=True)])


def _pack(codes: Tensor, bits: int) -> Tensor:
    if bits == 8:
        return codes.view(torch.uint8)
    nibbles = pad(codes + 8, (0, len(codes) % 2)).view(torch.uint8)
    return nibbles[0::2] | (nibbles[1::2] << 4)


def _unpack(packed: Tensor, bits: int) -> Tensor:
    if bits == 8:
        return packed.view(torch.int8)
    return torch.stack([packed & 0x0F, packed >> 4], dim=1).view(-1).to(torch.int8) - 8
