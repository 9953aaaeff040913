"""Orthonormal bases of what a low-rank product reads and writes."""

import torch
from torch import Tensor

from fedit.errors import ConfigError


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
