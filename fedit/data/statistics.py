"""How unequal clients are: sizes, mixes of categories, lengths; and what that does to each one's loss."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TypedDict

import numpy as np

from fedit.data.examples import Example
from fedit.errors import DataError


@dataclass(frozen=True, slots=True)
class PartitionStatistics:
    """A partition in numbers. Fields about categories or lengths are None where rows have none.

    size_gini:           0: equal sizes; towards 1: one client has nearly all rows.
    effective_clients:   1 / Σ p², p the share of rows: how many equal clients would weigh as unequally.
    jensen_shannon_*:    between a client's mix of categories and the pooled mix; base 2, 0 (same) to 1.
    total_variation_*:   half the sum of differences between the same mixes, 0 to 1.
    label_entropy_ratio: Σ p H(client's mix) / H(pooled mix); 1: all alike, 0: one category per client.
    length_distance_*:   Wasserstein-1 between a client's token lengths and the pooled ones, in tokens.
    """

    clients: int
    rows: int
    size_min: int
    size_median: float
    size_max: int
    size_gini: float
    effective_clients: float
    categories: int | None = None
    categories_min: int | None = None
    categories_median: float | None = None
    categories_max: int | None = None
    jensen_shannon_mean: float | None = None
    jensen_shannon_max: float | None = None
    total_variation_mean: float | None = None
    total_variation_max: float | None = None
    label_entropy_ratio: float | None = None
    length_distance_mean: float | None = None
    length_distance_max: float | None = None

    def as_dict(self) -> dict[str, int | float | None]:
        """Return the fields by name, for JSON."""
        return asdict(self)


class _CategoryNumbers(TypedDict, total=False):
    categories: int
    categories_min: int
    categories_median: float
    categories_max: int
    jensen_shannon_mean: float
    jensen_shannon_max: float
    total_variation_mean: float
    total_variation_max: float
    label_entropy_ratio: float


class _LengthNumbers(TypedDict, total=False):
    length_distance_mean: float
    length_distance_max: float


def category_counts(clients: Mapping[str, Sequence[Example]]) -> dict[str, dict[str, int]]:
    """Return client -> category -> rows, categories in sorted order; rows without one are not counted."""
    counts = {
        client: Counter(e.category for e in rows if e.category is not None) for client, rows in clients.items()
    }
    return {client: {name: count[name] for name in sorted(count)} for client, count in counts.items()}


def measure(
    sizes: Mapping[str, int],
    category_counts: Mapping[str, Mapping[str, int]] | None = None,
    token_lengths: Mapping[str, Sequence[int]] | None = None,
) -> PartitionStatistics:
    """Measure a partition: client -> rows, client -> category -> rows, client -> tokens of each row.

    Clients none of whose rows has a category do not enter the numbers about categories.

    Raises:
        DataError: there are no clients, or one has no rows.
    """
    if not sizes or min(sizes.values()) < 1:
        empty = min(sizes, key=lambda client: sizes[client], default=None)
        raise DataError(f"client '{empty}' has no rows." if sizes else "there are no clients to measure.")
    rows = np.array(list(sizes.values()), dtype=float)
    share = rows / rows.sum()
    return PartitionStatistics(
        clients=len(sizes),
        rows=int(rows.sum()),
        size_min=int(rows.min()),
        size_median=float(np.median(rows)),
        size_max=int(rows.max()),
        size_gini=_gini(rows),
        effective_clients=float(1 / (share**2).sum()),
        **_category_numbers(category_counts or {}),
        **_length_numbers(token_lengths or {}),
    )


def per_client_loss(
    per_category_loss: Mapping[str, float], client_category_counts: Mapping[str, Mapping[str, int]]
) -> dict[str, float]:
    """Return the held-out loss each client may expect: the mean over categories, weighted by its own mix.

    Categories without a held-out loss are left out and the other weights scaled up; a client that
    has only such categories is left out.
    """
    losses = {}
    for client, counts in client_category_counts.items():
        known = {name: count for name, count in counts.items() if count > 0 and name in per_category_loss}
        if known:
            total = sum(known.values())
            losses[client] = sum(per_category_loss[name] * count for name, count in known.items()) / total
    return losses


def summary(losses: Mapping[str, float]) -> dict[str, float]:
    """Return "mean" over clients and "worst_decile", the mean of the worst tenth of them, rounded up.

    Raises:
        DataError: there are no losses.
    """
    if not losses:
        raise DataError("no client has a loss: no category of any client is in the held-out rows.")
    worst_first = sorted(losses.values(), reverse=True)
    worst = worst_first[: -(-len(worst_first) // 10)]
    return {"mean": sum(worst_first) / len(worst_first), "worst_decile": sum(worst) / len(worst)}


def _gini(sizes: np.ndarray) -> float:
    n = len(sizes)
    rank = np.arange(1, n + 1)
    return float(((2 * rank - n - 1) * np.sort(sizes)).sum() / (n * sizes.sum()))


def _category_numbers(counts: Mapping[str, Mapping[str, int]]) -> _CategoryNumbers:
    labelled = [mine for mine in counts.values() if sum(mine.values()) > 0]
    if not labelled:
        return {}
    names = sorted({name for mine in labelled for name, count in mine.items() if count > 0})
    table = np.array([[mine.get(name, 0) for name in names] for mine in labelled], dtype=float)
    held = (table > 0).sum(axis=1)
    mixes = table / table.sum(axis=1, keepdims=True)
    pooled = table.sum(axis=0) / table.sum()
    middle = (mixes + pooled) / 2
    divergence = _entropy(middle) - (_entropy(mixes) + _entropy(pooled)) / 2
    divergence = divergence.clip(0, 1)  # rounding errors only
    variation = np.abs(mixes - pooled).sum(axis=1) / 2
    weights = table.sum(axis=1) / table.sum()
    whole = float(_entropy(pooled))
    return {
        "categories": len(names),
        "categories_min": int(held.min()),
        "categories_median": float(np.median(held)),
        "categories_max": int(held.max()),
        "jensen_shannon_mean": float(divergence.mean()),
        "jensen_shannon_max": float(divergence.max()),
        "total_variation_mean": float(variation.mean()),
        "total_variation_max": float(variation.max()),
        # With a single category all mixes are alike.
        "label_entropy_ratio": float(weights @ _entropy(mixes)) / whole if whole > 0 else 1.0,
    }


def _length_numbers(lengths: Mapping[str, Sequence[int]]) -> _LengthNumbers:
    """Return Wasserstein-1 distances, ∫ |F_client - F_pooled|, of token lengths."""
    measured = [np.sort(np.asarray(mine, dtype=float)) for mine in lengths.values() if len(mine)]
    if not measured:
        return {}
    pooled = np.sort(np.concatenate(measured))
    # Every sample is part of the pooled one, so these are all points at which a distribution steps.
    points = np.unique(pooled)
    below, widths = _share_up_to(points[:-1], pooled), np.diff(points)
    distances = [float(np.abs(_share_up_to(points[:-1], mine) - below) @ widths) for mine in measured]
    return {"length_distance_mean": float(np.mean(distances)), "length_distance_max": max(distances)}


def _entropy(shares: np.ndarray) -> np.ndarray:
    """Return the entropy in bits over the last axis; 0 log 0 is 0."""
    logs = np.log2(np.where(shares > 0, shares, 1.0))
    bits: np.ndarray = -(shares * logs).sum(axis=-1)
    return bits


def _share_up_to(points: np.ndarray, sample: np.ndarray) -> np.ndarray:
    """Return the share of a sorted sample that is at most each of ``points``."""
    share: np.ndarray = np.searchsorted(sample, points, side="right") / len(sample)
    return share
