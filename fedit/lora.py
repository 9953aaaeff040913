"""Low-rank products: norms of B A without ever forming a matrix of the layer's size."""

import math
from collections.abc import Mapping

from torch import Tensor

from fedit.types import Tensors


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


def cut_to(factors: Mapping[str, Tensor], partners: Mapping[str, Tensor]) -> Tensors:
    """Return ``factors`` cut to the rank of their other factor where ``partners`` has it."""
    cut: Tensors = {}
    for name, tensor in factors.items():
        module, _, factor = name.rpartition(".")
        cut[name] = tensor
        if factor == "A" and f"{module}.B" in partners:
            cut[name] = tensor[: partners[f"{module}.B"].shape[1]]
        elif factor == "B" and f"{module}.A" in partners:
            cut[name] = tensor[:, : partners[f"{module}.A"].shape[0]]
    return cut
