"""Low-rank products: norms and inner products of B A without forming a matrix of the layer's size."""

import math
from collections.abc import Mapping, Sequence
from typing import cast

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
    """Return the rank of an adapter: the largest of its modules', 0 where it has no factors."""
    ranks = (t.shape[0] for n, t in adapter.items() if n.endswith(".A") and not n.startswith(LEDGER))
    return max(ranks, default=0)


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


def completed(adapter: Mapping[str, Tensor], whole: Mapping[str, Tensor]) -> Tensors:
    """Return ``adapter`` with what it lacks of ``whole``, cut to its ranks; that itself where it lacks nothing."""
    missing = {name: tensor for name, tensor in whole.items() if name not in adapter}
    return {**cut_to(missing, adapter), **adapter} if missing else cast(Tensors, adapter)


def change(start: Mapping[str, Tensor], trained: Mapping[str, Tensor], scale: float = 1.0) -> Tensors:
    """Return factors of ``scale * (B_k A_k - B_t A_t)``: how far training moved each module's weight.

    Where both have one rank they are [dB | B_t] and [A_k ; dA], which subtracts small numbers from small ones
    and not one product from another that is nearly it.

    start:   what a client received, "m.A" (rank, in) and "m.B" (out, rank); trained: what it ended with.
    Returns: "m.A" (sum of both ranks, in) and "m.B" (out, sum of both ranks), the scale folded into B.
    """
    moved: Tensors = {}
    for module in modules(trained):
        a, b = trained[f"{module}.A"], trained[f"{module}.B"]
        a_start, b_start = start[f"{module}.A"], start[f"{module}.B"]
        if a.shape == a_start.shape:
            left, right = [b - b_start, b_start], [a, a - a_start]
        else:
            left, right = [b, -b_start], [a, a_start]
        moved[f"{module}.A"] = torch.cat(right)
        moved[f"{module}.B"] = scale * torch.cat(left, dim=1)
    return moved


def with_product(ledger: Mapping[str, Tensor], factors: Mapping[str, Tensor], scale: float) -> Tensors:
    """Return a ledger whose product is that of ``ledger`` plus ``scale`` B A of ``factors``."""
    added: Tensors = dict(ledger)
    for name, factor in factors.items():
        own = factor * scale if name.endswith(".B") else factor
        if name in added:
            own = torch.cat([added[name], own], dim=1 if name.endswith(".B") else 0)
        added[name] = own
    return added


def gram(deltas: Sequence[Mapping[str, Tensor]], scales: Sequence[float] | None = None) -> Tensor:
    """Return all inner products of the clients' products, <s_i B_i A_i, s_j B_j A_j> summed over the modules.

    deltas: one set of factors a client, "m.A" (rank, in) and "m.B" (out, rank), of the same modules; ranks may
            differ from client to client and from module to module.
    scales: that each client's products are multiplied by; None: 1.
    Returns: float64 (clients, clients), symmetric. `squared_distances` makes distances of it.
    """
    count = len(deltas)
    total = torch.zeros(count, count, dtype=torch.float64)
    for module in modules(deltas[0]) if deltas else []:
        total += _gram_of([d[f"{module}.A"].double() for d in deltas], [d[f"{module}.B"].double() for d in deltas])
    if scales is None:
        return total
    factors = torch.tensor(list(scales), dtype=torch.float64)
    return total * torch.outer(factors, factors)


def squared_distances(inner: Tensor) -> Tensor:
    """Return |x_i - x_j|^2 from a matrix of inner products (see `gram`); none is below 0."""
    squares = inner.diagonal()
    return (squares[:, None] + squares[None, :] - 2 * inner).clamp(min=0.0)


def _gram_of(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """Return the inner products of one module's products, by whichever way takes fewer multiplications."""
    (out, _), (_, width) = b[0].shape, a[0].shape
    ranks = [len(factor) for factor in a]
    rank, count = sum(ranks), len(a)
    if rank * out * width + count**2 * out * width < rank**2 * (out + width):
        flat = torch.stack([(left @ right).flatten() for left, right in zip(b, a, strict=True)])
        return flat @ flat.T
    # <B_i A_i, B_j A_j> is the sum of the entries of (B_i^T B_j) * (A_i A_j^T): a block of both Gram matrices.
    rows, columns = torch.cat(list(a)), torch.cat(list(b), dim=1)
    entries = (rows @ rows.T) * (columns.T @ columns)
    blocks = torch.zeros(count, rank, dtype=torch.float64)
    blocks[torch.arange(count).repeat_interleave(torch.tensor(ranks)), torch.arange(rank)] = 1.0
    return blocks @ entries @ blocks.T
