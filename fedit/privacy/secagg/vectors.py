"""What of an update enters a secure sum, as one vector: its entries, what follows them, and some figures."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedit import tensors
from fedit.errors import ProtocolError
from fedit.privacy.secagg.crypto import Words
from fedit.privacy.secagg.encoding import FixedPoint
from fedit.privacy.secagg.messages import AskMasked
from fedit.privacy.secagg.noise import gaussian
from fedit.types import ClientUpdate, Tensors

VECTOR = "masked"
"""Name of the masked vector among what a client sends, int64 (entries,)."""
FIGURE_LIMIT = 2.0**32
"""Largest number that can be added up beside updates, such as the tokens of a client's round."""
FIGURE_BITS = 52

Extras = tuple[tuple[str, tuple[int, ...]], ...]


def encoded(update: ClientUpdate, asked: AskMasked) -> tuple[Words, Extras]:
    """Return a client's vector, not masked yet, and the names and shapes of what follows its delta.

    The delta is clipped and the client's part of the noise added to it where that was asked for.

    Raises:
        ProtocolError: an entry or the weight is beyond what was announced, or extras come with a clip.
    """
    extras = dict(sorted(update.extra.items()))
    shapes = tuple((name, tuple(tensor.shape)) for name, tensor in extras.items())
    if extras and (asked.clip is not None or asked.noise > 0):
        raise ProtocolError(
            f"'{next(iter(extras))}' goes with the update, and is neither clipped nor hidden by noise"
        )
    if not float(update.weight).is_integer():
        raise ProtocolError(f"a weight is {update.weight}; expected a whole number")
    grid = FixedPoint(asked.limit, asked.bits, asked.heaviest)
    delta, unclipped = _clipped(_row(update.delta), asked.clip, grid)
    size, more = len(delta), _row(extras)
    vector = np.empty(size + len(more) + len(asked.figures), dtype=np.uint64)
    noise = gaussian(size, asked.noise) if asked.noise > 0 else None
    weight = int(update.weight)
    grid.encode(delta, weight, vector[:size], noise)
    grid.encode(more, weight, vector[size : size + len(more)])
    known = {
        "weight": float(weight),
        "loss": weight * float(update.metrics.get("loss", 0.0)),
        "tokens": float(update.metrics.get("tokens", 0.0)),
        "supervised_tokens": float(update.metrics.get("supervised_tokens", 0.0)),
        "unclipped": float(unclipped),
    }
    figures = np.array([known[name] for name in asked.figures], dtype=np.float64)
    figure_grid(asked.clients).encode(figures, 1, vector[size + len(more) :])
    return vector, shapes


def decoded(total: Words, layout: tensors.Layout, extras: Extras, grid: FixedPoint) -> tuple[Tensors, Tensors]:
    """Return the sums of deltas and of extras, float64, in the first entries of a sum of vectors."""
    values = torch.from_numpy(grid.decode(total))
    found: Tensors = {}
    at = layout.size
    for name, shape in extras:
        size = math.prod(shape)
        found[name] = values[at : at + size].reshape(shape)
        at += size
    return tensors.Flat(layout, values[: layout.size].clone()), found


def figure_grid(clients: int) -> FixedPoint:
    """Return the grid of figures in sums over so many clients."""
    return FixedPoint.for_cohort(FIGURE_LIMIT, clients, 1, FIGURE_BITS)


def read_figures(total: Words, names: Sequence[str], clients: int) -> dict[str, float]:
    """Return the sums of figures, the last entries of a sum of vectors."""
    values = figure_grid(clients).decode(total[len(total) - len(names) :])
    return dict(zip(names, values.tolist(), strict=True))


def _clipped(row: NDArray[np.floating], clip: float | None, grid: FixedPoint) -> tuple[NDArray[np.floating], bool]:
    """Return a delta whose Euclidean norm on the grid is at most ``clip``, and whether it was that before."""
    if clip is None:
        return row, True
    wide = row.astype(np.float64)
    norm = float(np.linalg.norm(wide))
    # Rounding to the grid moves every entry by half a step at most.
    most = max(clip - 0.5 * grid.step * math.sqrt(len(row)), 0.0)
    return (wide, norm <= clip) if norm <= most else (wide * (most / norm), norm <= clip)


def _row(held: Mapping[str, Tensor]) -> NDArray[np.floating]:
    """Return the entries of some tensors, in the order of their names."""
    wide = {name: tensor.detach().cpu().float() for name, tensor in held.items()}
    flat = held if isinstance(held, tensors.Flat) and held.buffer.dtype == torch.float32 else tensors.flatten(wide)
    return flat.buffer.cpu().numpy()
