"""Sets of which only the largest entries are sent: their values, and where they stand."""

import numpy as np
import torch
from torch import Tensor

from fedit.errors import DamagedPayload
from fedit.transforms import wire
from fedit.types import Tensors

SHAPES, PLACES, VALUES = "#sparse.shapes", "#sparse.places", "#sparse.values"

_BITMAP, _GAPS = 0, 1
_LONGEST_GAP = 5
"""Bytes of the longest gap, seven bits a byte: enough for `wire.MOST_ENTRIES`."""


def sparsify(held: Tensors, fraction: float, value_bits: int = 32) -> Tensors:
    """Return the largest entries of all tensors together as three tensors.

    "#sparse.shapes" says what the set was; "#sparse.places" is a bit an entry, or the gaps between the places as
    variable-length numbers, whichever is shorter; "#sparse.values" are bfloat16 or of the set's own dtype. A NaN
    counts as large: it is sent and not hidden.

    fraction:   of entries that are sent, at least one.
    value_bits: 16 or 32.
    """
    held = {name: held[name] for name in sorted(held)}
    dtypes = {tensor.dtype for tensor in held.values()}
    dense = wire.joined(held, dtypes.pop() if len(dtypes) == 1 else torch.float32)
    places = largest(dense, fraction)
    values = dense[places]
    return {
        SHAPES: wire.describe(held),
        PLACES: pack(places, dense.numel()),
        VALUES: values.to(torch.bfloat16) if value_bits == 16 else values,
    }


def densify(held: Tensors) -> Tensors:
    """Return the set that `sparsify` was given, zero where nothing was sent.

    Raises:
        DamagedPayload: the parts do not fit together.
    """
    held = dict(held)
    shapes, packed, values = wire.pop(held, SHAPES, PLACES, VALUES)
    described = wire.described(shapes)
    size = sum(tensor.numel() for tensor in described.values())
    places = unpack(packed, size)
    if places.numel() != values.numel():
        raise DamagedPayload(f"{values.numel()} values came for {places.numel()} places")
    dense = torch.zeros(size, dtype=torch.float32 if values.dtype == torch.bfloat16 else values.dtype)
    dense[places] = values.reshape(-1).to(dense.dtype)
    return {**held, **wire.parted(dense, described)}


def largest(dense: Tensor, fraction: float) -> Tensor:
    """Return the ascending places of the largest entries by absolute value, at least one of any."""
    count = min(dense.numel(), max(1, int(fraction * dense.numel())))
    return dense.abs().topk(count, sorted=False).indices.sort().values


def pack(places: Tensor, size: int) -> Tensor:
    """Return ascending places below ``size`` as bytes: which form, then the shorter of bitmap and gaps."""
    gaps = np.diff(places.numpy(), prepend=-1).astype(np.uint64) - 1
    lengths = np.ones(len(gaps), dtype=np.int64)
    for groups in range(1, _LONGEST_GAP):
        lengths += gaps >= np.uint64(1 << 7 * groups)
    if lengths.sum() < -(-size // 8):
        return wire.from_bytes(bytes([_GAPS]) + _variable(gaps, lengths))
    bitmap = np.zeros(size, dtype=np.uint8)
    bitmap[places.numpy()] = 1
    return wire.from_bytes(bytes([_BITMAP]) + np.packbits(bitmap).tobytes())


def unpack(packed: Tensor, size: int) -> Tensor:
    """Return the places that `pack` was given.

    Raises:
        DamagedPayload: these are no ascending places below ``size``.
    """
    content = np.frombuffer(wire.to_bytes(packed), dtype=np.uint8)
    form, body = content[:1].tolist(), content[1:]
    if form == [_BITMAP] and len(body) == -(-size // 8):
        places = np.flatnonzero(np.unpackbits(body, count=size))
    elif form == [_GAPS]:
        places = np.cumsum(_read_variable(body) + 1) - 1
        if len(places) and (places[0] < 0 or places[-1] >= size or (np.diff(places) <= 0).any()):
            raise DamagedPayload(f"places lie outside of {size} entries")
    else:
        raise DamagedPayload("its places are in no known form")
    return torch.from_numpy(places.astype(np.int64))


def _variable(numbers: np.ndarray, lengths: np.ndarray) -> bytes:
    """Return numbers in groups of seven bits, lowest first, the top bit saying that more follow (LEB128)."""
    starts = np.cumsum(lengths) - lengths
    out = np.zeros(int(lengths.sum()), dtype=np.uint8)
    for place in range(int(lengths.max(initial=0))):
        some = lengths > place
        group = (numbers[some] >> np.uint64(7 * place)) & np.uint64(0x7F)
        more = np.where(lengths[some] > place + 1, 0x80, 0)
        out[starts[some] + place] = group.astype(np.uint8) | more.astype(np.uint8)
    return out.tobytes()


def _read_variable(content: np.ndarray) -> np.ndarray:
    last = np.flatnonzero(content < 0x80)
    if len(content) and (not len(last) or last[-1] != len(content) - 1):
        raise DamagedPayload("its places end within a number")
    starts = np.concatenate([[0], last[:-1] + 1]) if len(last) else last
    lengths = last - starts + 1
    if lengths.max(initial=0) > _LONGEST_GAP:
        raise DamagedPayload("a gap between places is too long")
    numbers = np.zeros(len(last), dtype=np.int64)
    for place in range(int(lengths.max(initial=0))):
        some = lengths > place
        numbers[some] |= (content[starts[some] + place].astype(np.int64) & 0x7F) << (7 * place)
    return numbers
