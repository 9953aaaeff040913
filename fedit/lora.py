"""Low-rank products: norms of B A without ever forming a matrix of the layer's size."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from fedit.types import LEDGER, Tensors


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


def rank_of(adapter: Mapping[str, Tensor]) -> int:
    """Return the rank of an adapter: the largest of its modules'."""
    return max(t.shape[0] for n, t in adapter.items() if n.endswith(".A") and not n.startswith(LEDGER))


def joined(model: Mapping[str, Tensor], scale: float) -> Tensors:
    """Return one pair of factors a module: ``scale`` times its product is the adapter's and the ledger's together.

    model: factors, and the ledger's under "ledger/m.A" (see `fedit.types.with_ledger`). All modules of the result
    have the same rank, filled up with zeros, so that it is an ordinary adapter to everybody.
    """
    names = modules({name: tensor for name, tensor in model.items() if not name.startswith(LEDGER)})
    pairs = {}
    for name in names:
        pair = [(model[f"{name}.A"], model[f"{name}.B"])]
        if f"{LEDGER}{name}.A" in model:
            pair.append((model[f"{LEDGER}{name}.A"], model[f"{LEDGER}{name}.B"] / scale))
        pairs[name] = (torch.cat([a for a, _ in pair]), torch.cat([b for _, b in pair], dim=1))
    rank = max(a.shape[0] for a, _ in pairs.values())
    found: Tensors = {}
    for name, (a, b) in pairs.items():
        found[f"{name}.A"] = torch.nn.functional.pad(a, (0, 0, 0, rank - a.shape[0]))
        found[f"{name}.B"] = torch.nn.functional.pad(b, (0, rank - b.shape[1]))
    return found


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
