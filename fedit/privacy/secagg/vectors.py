"""What of an update enters a secure sum, as one vector: its entries, what follows them, and some figures."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedit import tensors
from fedit.errors import ProtocolError
from fedit.privacy.keystream import Keystream
from fedit.privacy.secagg.crypto import Words
from fedit.privacy.secagg.encoding import FixedPoint
from fedit.privacy.secagg.messages import AskMasked
from fedit.types import ClientUpdate

VECTOR = "masked"
"""Name of the masked vector among what a client sends, int64 (entries,)."""
FIGURE_LIMIT = 2.0**32
"""Largest number that can be added up beside updates, such as the tokens of a client's round."""
FIGURE_BITS = 52

Extras = tuple[tuple[str, tuple[int, ...]], ...]


def encoded(update: ClientUpdate, asked: AskMasked) -> tuple[Words, Extras]:
    """Return a client's vector, not masked yet, and the names and shapes of what follows its delta.

    Delta and extras together are clipped, and the client's part of the noise is added, where that was asked for.

    Raises:
        ProtocolError: an entry or the weight is beyond what was announced.
    """
    if not float(update.weight).is_integer():
        raise ProtocolError(f"a weight is {update.weight}; expected a whole number")
    extras = dict(sorted(update.extra.items()))
    grid, weight = FixedPoint(asked.limit, asked.bits, asked.heaviest), int(update.weight)
    values, unclipped = _clipped(np.concatenate([_row(update.delta), _row(extras)]), asked.clip, grid)
    vector = np.empty(len(values) + len(asked.figures), dtype=np.uint64)
    # n clients' rounded parts add up, on the grid, to one Gaussian of n times the variance and an independent
    # rounding error: by Poisson's summation formula what deviates is below exp(-pi^2 s^2) for parts of s grid
    # steps, which are thousands.
    noise = asked.noise * Keystream().normal(len(values)).numpy() if asked.noise > 0 else None
    grid.encode(values, weight, vector[: len(values)], noise)
    known = {
        "weight": float(weight),
        "loss": weight * float(update.metrics.get("loss", 0.0)),
        "tokens": float(update.metrics.get("tokens", 0.0)),
        "supervised_tokens": float(update.metrics.get("supervised_tokens", 0.0)),
        "unclipped": float(unclipped),
    }
    figures = np.array([known[name] for name in asked.figures], dtype=np.float64)
    figure_grid(asked.clients).encode(figures, 1, vector[len(values) :])
    return vector, tuple((name, tuple(tensor.shape)) for name, tensor in extras.items())


def decoded(total: Words, layouts: Sequence[tensors.Layout], grid: FixedPoint) -> list[tensors.Flat]:
    """Return the sets of tensors that follow each other in a sum of vectors, float64."""
    values, found, at = torch.from_numpy(grid.decode(total)), [], 0
    for layout in layouts:
        found.append(tensors.Flat(layout, values[at : at + layout.size].clone()))
        at += layout.size
    return found


def figure_grid(clients: int) -> FixedPoint:
    """Return the grid of figures in sums over so many clients."""
    return FixedPoint.for_cohort(FIGURE_LIMIT, clients, 1, FIGURE_BITS)


def read_figures(total: Words, names: Sequence[str], clients: int) -> dict[str, float]:
    """Return the sums of figures, the last entries of a sum of vectors."""
    values = figure_grid(clients).decode(total[len(total) - len(names) :])
    return dict(zip(names, values.tolist(), strict=True))


def _clipped(row: NDArray[np.floating], clip: float | None, grid: FixedPoint) -> tuple[NDArray[np.floating], bool]:
    """Return entries whose Euclidean norm on the grid is at most ``clip``, and whether it was that before."""
    if clip is None:
        return row, True
    wide = row.astype(np.float64)
    norm = float(np.linalg.norm(wide))
    # Rounding to the grid moves every entry by half a step at most.
    most = max(clip - 0.5 * grid.step * math.sqrt(len(row)), 0.0)
    return (wide, norm <= clip) if norm <= most else (wide * (most / norm), norm <= clip)


def _row(held: Mapping[str, Tensor]) -> NDArray[np.floating]:
    """Return the entries of some tensors, in the order of their names, float32."""
    if not held:
        return np.empty(0, dtype=np.float32)
    wide = {name: tensor.detach().cpu().float() for name, tensor in held.items()}
    flat = held if isinstance(held, tensors.Flat) and held.buffer.dtype == torch.float32 else tensors.flatten(wide)
    return flat.buffer.cpu().numpy()
