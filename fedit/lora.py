"""Low-rank products: their norms and bases without ever forming a matrix of the layer's size."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from fedit.errors import ConfigError
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


def bases(b: Tensor, a: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return (left, values, right) with orthonormal bases and ``b @ a == left @ diag(values) @ right``.

    The values descend. Directions in which the product is zero are there all the same: on the left they are drawn
    from ``seed``, on the right they complete ``a``'s row space. Found in float64, returned in ``b``'s dtype.

    b: (out, rank); a: (rank, in). left: (out, rank); values: (rank,); right: (rank, in).

    Raises:
        ConfigError: the layer is narrower than the rank.
    """
    _refuse_narrow(a.shape[0], min(b.shape[0], a.shape[1]))
    rank = a.shape[0]
    q_b, r_b = torch.linalg.qr(b.double())
    q_a, r_a = torch.linalg.qr(a.double().T)
    u, values, v = torch.linalg.svd(r_b @ r_a.T)
    left, right = q_b @ u, v @ q_a.T
    kept = int((values > 1e-12 * values[0]).sum())
    values[kept:] = 0
    if kept < rank:
        noise = torch.randn(
            len(left), rank - kept, dtype=left.dtype, generator=torch.Generator().manual_seed(seed)
        )
        completed, _ = torch.linalg.qr(torch.cat([left[:, :kept], noise], 1))
        left = torch.cat([left[:, :kept], completed[:, kept:]], 1)
    # Singular vectors have no sign of their own.
    largest = left.gather(0, left.abs().argmax(0, keepdim=True))
    signs = torch.where(largest < 0, -1.0, 1.0).to(left.dtype)
    signs[:, kept:] = 1
    return (left * signs).to(b.dtype), values.to(b.dtype), (right * signs.T).to(b.dtype)


def orthonormal_rows(b: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """Return (b, a) with the same product and the same row space whose ``a`` has orthonormal rows.

    b: (out, rank); a: (rank, in), of full rank.

    Raises:
        ConfigError: the layer is narrower than the rank.
    """
    _refuse_narrow(a.shape[0], a.shape[1])
    q, r = torch.linalg.qr(a.double().T)
    signs = r.diagonal().sign()
    return (b.double() @ (signs[:, None] * r).T).to(b.dtype), (q * signs).T.contiguous().to(a.dtype)


def _refuse_narrow(rank: int, width: int) -> None:
    if rank > width:
        raise ConfigError(
            f"a layer of width {width} has no {rank} orthogonal directions; set lora_r to {width} or less."
        )
