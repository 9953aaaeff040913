"""Groups of similar rows: k-means over one vector per row, for data that has no categories."""

import numpy as np

from fedit.errors import DataError
from fedit.seeds import derive

_RESTARTS = 4
_MAX_STEPS = 100


def kmeans(vectors: np.ndarray, k: int, seed: int) -> np.ndarray:
    """Return a cluster number per row, (n,) int64, from vectors (n, d).

    Vectors are standardised per dimension and scaled to length 1: hidden states have a few
    dimensions that dwarf the others, and their length tells short texts from long ones rather
    than what they are about. The best of several k-means++ starts (Arthur and Vassilvitskii,
    2007) is kept. No cluster is empty; clusters are numbered in the order they first appear.

    Raises:
        DataError: a vector is not finite, or there are fewer different vectors than clusters.
    """
    if vectors.ndim != 2 or not np.isfinite(vectors).all():
        raise DataError(f"clusters need finite vectors (rows, dimensions), got shape {vectors.shape} or NaN.")
    points = _normalised(vectors)
    different = len(np.unique(points, axis=0))
    if not 1 <= k <= different:
        raise DataError(
            f"{k} clusters are asked for and the rows have {different} different vectors; ask for fewer."
        )
    best, best_cost = np.zeros(len(points), dtype=np.int64), np.inf
    for restart in range(_RESTARTS):
        rng = np.random.default_rng(derive(seed, "kmeans", restart))
        labels, cost = _lloyd(points, _start(points, k, rng))
        if cost < best_cost:
            best, best_cost = labels, cost
    return _renumbered(best)


def _normalised(vectors: np.ndarray) -> np.ndarray:
    centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    deviation = centred.std(axis=0)
    scaled = centred / np.where(deviation > 0, deviation, 1.0)
    length = np.linalg.norm(scaled, axis=1, keepdims=True)
    # Rounded, so that vectors either are equal or lie apart by more than rounding errors.
    unit: np.ndarray = (scaled / np.where(length > 0, length, 1.0)).round(9)
    return unit


def _start(points: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """Return k first centres (k, d), each far from those before it (k-means++)."""
    centres = [points[rng.integers(len(points))]]
    nearest = np.full(len(points), np.inf)
    while len(centres) < k:
        nearest = np.minimum(nearest, ((points - centres[-1]) ** 2).sum(axis=1))
        centres.append(points[rng.choice(len(points), p=nearest / nearest.sum())])
    return np.stack(centres)


def _lloyd(points: np.ndarray, centres: np.ndarray) -> tuple[np.ndarray, float]:
    k = len(centres)
    labels = np.full(len(points), -1, dtype=np.int64)
    cost = np.inf
    for _ in range(_MAX_STEPS):
        distances = _squared_distances(points, centres)
        new = distances.argmin(axis=1)
        own = distances[np.arange(len(points)), new]
        _fill_empty(new, own, k)
        cost = float(own.sum())
        if np.array_equal(new, labels):
            break
        labels = new
        centres = np.stack([points[labels == cluster].mean(axis=0) for cluster in range(k)])
    return labels, cost


def _squared_distances(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Return (n, k); the expanded square avoids an (n, k, d) array."""
    squares = (points**2).sum(axis=1)[:, None] - 2 * points @ centres.T + (centres**2).sum(axis=1)
    distances: np.ndarray = squares.clip(min=0)
    return distances


def _fill_empty(labels: np.ndarray, distances: np.ndarray, k: int) -> None:
    """Give each empty cluster, in place, the row farthest from its centre in a cluster of two or more."""
    sizes = np.bincount(labels, minlength=k)
    for cluster in np.flatnonzero(sizes == 0):
        spare = np.where(sizes[labels] > 1, distances, -1.0)
        row = int(spare.argmax())
        sizes[labels[row]] -= 1
        labels[row], distances[row], sizes[cluster] = cluster, 0.0, 1


def _renumbered(labels: np.ndarray) -> np.ndarray:
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return first.argsort().argsort()[inverse].astype(np.int64)
