"""Robust rules as plain mathematics: which clients count, and how much, and rules on single coordinates.

Rules over clients see K points through their squared distances or inner products alone, float64 (K, K): the
points may be anything that has them, products of factors too. Rules over coordinates see K vectors.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

CHUNK = 65_536
"""Coordinates that are sorted at a time, so that memory does not hold a second copy of all vectors."""


def krum_scores(squares: Tensor, attackers: int) -> Tensor:
    """Return every point's sum of squared distances to its K - f - 2 nearest others (Krum, arXiv:1703.02757).

    squares: (K, K), |x_i - x_j|^2. At least one neighbour counts, which small sets fall short of.
    """
    count = len(squares)
    nearest = min(max(count - attackers - 2, 1), count - 1)
    apart = squares.clone()
    # A point is not its own neighbour. It is left out by its place: copies of it are at distance 0 as well.
    apart.fill_diagonal_(math.inf)
    return apart.sort(dim=1).values[:, :nearest].sum(dim=1)


def krum_order(squares: Tensor, attackers: int) -> list[int]:
    """Return all points from the lowest score to the highest; equal ones in the order given."""
    return [int(i) for i in krum_scores(squares, attackers).argsort(stable=True)]


def bulyan_selection(squares: Tensor, attackers: int, *, fast: bool = False) -> list[int]:
    """Return the K - 2f points that Bulyan's first phase chooses (arXiv:1802.07927), in the order chosen.

    Krum chooses one, which is taken out, and scores are made anew among those that are left.
    fast: the K - 2f best scores of one pass.
    """
    wanted = len(squares) - 2 * attackers
    if fast:
        return krum_order(squares, attackers)[:wanted]
    left = list(range(len(squares)))
    chosen: list[int] = []
    while len(chosen) < wanted:
        best = krum_order(squares[left][:, left], attackers)[0]
        chosen.append(left.pop(best))
    return chosen


def geometric_median(squares: Tensor, base: Tensor, *, smoothing: float, iterations: int) -> Tensor:
    """Return the weights, of sum 1, whose mean is the smoothed geometric median (RFA, arXiv:1912.13445).

    Weiszfeld: z = sum_k w_k x_k with w_k proportional to base_k / max(nu, |x_k - z|), from the base weights on.
    z stays in the span of the points, so that |x_k - z|^2 = (D w)_k - w'D w / 2 with D the squared distances.

    base:      (K,), at least 0; the same in every iteration.
    smoothing: nu as a share of the median distance from the first mean, which keeps the rule free of units.
    """
    weights = base / base.sum()
    apart = _distances_from_mean(squares, weights)
    least = smoothing * float(median(apart)) or smoothing
    for _ in range(iterations):
        weights = base / apart.clamp(min=least)
        weights = weights / weights.sum()
        apart = _distances_from_mean(squares, weights)
    return weights


def clipping(norms: Tensor, bound: float) -> Tensor:
    """Return min(1, bound / norm) of every norm; 1 where a norm is 0.

    Raises:
        ValueError: a norm is not finite, which a comparison would let pass as not too large.
    """
    if not bool(torch.isfinite(norms).all()):
        raise ValueError("a norm is not finite")
    return torch.where(norms > bound, bound / norms.clamp(min=torch.finfo(norms.dtype).tiny), 1.0)


def median(values: Tensor) -> Tensor:
    """Return the median over the first dimension, the mean of the middle two where there is no middle one."""
    ordered = values.sort(dim=0).values
    count = len(ordered)
    return (ordered[(count - 1) // 2] + ordered[count // 2]) / 2


def trimmed_mean(values: Tensor, trim: int) -> Tensor:
    """Return the mean of each coordinate without its ``trim`` largest and smallest values (arXiv:1803.01498)."""
    return values.sort(dim=0).values[trim : len(values) - trim].mean(dim=0)


def mean_near_median(values: Tensor, count: int) -> Tensor:
    """Return the mean of the ``count`` values nearest to each coordinate's median (Bulyan, arXiv:1802.07927)."""
    apart = (values - median(values)).abs()
    nearest = apart.argsort(dim=0, stable=True)[:count]
    return values.gather(0, nearest).mean(dim=0)


def by_coordinate(vectors: Sequence[Tensor], rule: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply a rule on (K, n) float64, coordinate by coordinate, to K vectors, piece by piece."""
    out = torch.empty_like(vectors[0])
    for pieces in zip(out.split(CHUNK), *(vector.split(CHUNK) for vector in vectors), strict=True):
        pieces[0].copy_(rule(torch.stack([piece.double() for piece in pieces[1:]])))
    return out


def _distances_from_mean(squares: Tensor, weights: Tensor) -> Tensor:
    towards = squares @ weights
    return (towards - weights @ towards / 2).clamp(min=0).sqrt()
