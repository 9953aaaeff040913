"""Low-rank products: norms of B A without ever forming a matrix of the layer's size."""

import math
from collections.abc import Mapping

from torch import Tensor


def modules(adapter: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the adapted modules, sorted."""
    return sorted({name.rpartition(".")[0] for name in adapter})


def product_norm(b: Tensor, a: Tensor) -> float:
    """Return the Frobenius norm of ``b @ a`` from two rank x rank Gram matrices, in float64.

    b: (out, rank); a: (rank, in).
    """
    left, right = b.double(), a.double()
    squared = float(((left.T @ left) * (right @ right.T)).sum())
    return math.sqrt(max(squared, 0.0))
