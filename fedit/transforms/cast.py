"""Sending floats in 16 bits: a delta's own rounding errors are small beside it, an adapter's would not be."""

from dataclasses import dataclass, replace

import torch

from fedit.transforms import wire
from fedit.transforms.base import Stage, Transform
from fedit.types import ClientUpdate, Tensors

_SHAPES, _VALUES = "#cast.shapes", "#cast.values"


@dataclass(frozen=True)
class Cast(Transform):
    """Send updates as bfloat16, rounded to nearest: half the bytes of float32, about 0.2 % of error."""

    stage = Stage.BITS

    def on_client(self, update: ClientUpdate, memory: Tensors, seed: int) -> tuple[ClientUpdate, Tensors]:
        return replace(update, delta=_encode(update.delta), extra=_encode(update.extra)), memory

    def on_receive(self, update: ClientUpdate) -> ClientUpdate:
        return replace(update, delta=_decode(update.delta), extra=_decode(update.extra))


def _encode(held: Tensors) -> Tensors:
    floats, others = wire.floats_of(held)
    if not floats:
        return held
    return {**others, _SHAPES: wire.describe(floats), _VALUES: wire.joined(floats, torch.bfloat16)}


def _decode(held: Tensors) -> Tensors:
    if _SHAPES not in held:
        return held
    held = dict(held)
    shapes, values = wire.pop(held, _SHAPES, _VALUES)
    return {**held, **wire.parted(values, wire.described(shapes))}
