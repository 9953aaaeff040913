"""Attention of a GPU: one call over rows of any lengths, by a library's kernel that knows where they begin.

The kernel is differentiated by PyTorch; everything around it is fedit's own pass.
"""

import functools
import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedit.model.fast import fused
from fedit.model.fast.attention import Heads, Rotation

log = logging.getLogger(__name__)

Kernel = Callable[[Tensor, Tensor, Tensor, "Bounds", Heads], Tensor]
"""(q (tokens, queries, dim), k and v (tokens, keys, dim), where rows lie, heads) -> like q; differentiable."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Where rows lie, one after the other: int32 (rows + 1,) on the device, and the longest row's length."""

    offsets: Tensor
    longest: int

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> "Bounds":
        """Return the bounds of rows of the given lengths."""
        offsets = torch.tensor([0, *lengths], dtype=torch.int64).cumsum(0).to(device, torch.int32)
        return cls(offsets, max(lengths))


@dataclass(frozen=True, slots=True)
class SavedRows:
    """Inputs of the kernel and its output, between which PyTorch keeps what it needs."""

    q: Tensor
    k: Tensor
    v: Tensor
    output: Tensor


def flash(q: Tensor, k: Tensor, v: Tensor, bounds: Bounds, heads: Heads) -> Tensor:
    """Return causal attention by PyTorch's FlashAttention (Dao, 2023, arXiv:2307.08691)."""
    from torch.nn.attention.varlen import varlen_attn

    back = -1 if heads.window is None else heads.window - 1
    output = varlen_attn(
        q,
        k,
        v,
        bounds.offsets,
        bounds.offsets,
        bounds.longest,
        bounds.longest,
        scale=heads.scale,
        window_size=(back, 0),
        **_grouped(heads),
    )
    assert isinstance(output, Tensor)  # a pair only where more was asked for
    return output


def _grouped(heads: Heads) -> dict[str, Any]:
    """Return how PyTorch is told that several queries share a key; before 2.12 it need not be told."""
    return {"enable_gqa": heads.queries != heads.keys} if _is_told_of_groups() else {}


@functools.cache
def _is_told_of_groups() -> bool:
    from torch.nn.attention.varlen import varlen_attn

    return "enable_gqa" in inspect.signature(varlen_attn).parameters


def choose(heads: Sequence[Heads], dtype: torch.dtype, device: torch.device) -> Kernel | None:
    """Return the kernel for layers of these heads; None where none serves and attention runs in blocks.

    It is tried once on a few tokens, forward and backward: whether it runs depends on the GPU, its driver and the
    build of PyTorch.
    """
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return None
    if any(own.softcap is not None or own.dim > 256 or own.dim % 8 for own in heads):
        return None
    try:
        for own in set(heads):
            q = torch.ones(5, own.queries, own.dim, dtype=dtype, device=device, requires_grad=True)
            k = torch.ones(5, own.keys, own.dim, dtype=dtype, device=device)
            flash(q, k, k, Bounds.of([2, 3], device), own).sum().backward()
        torch.cuda.synchronize(device)
    except (RuntimeError, ImportError, TypeError, ValueError) as error:
        log.info("attention runs in blocks: FlashAttention does not run here (%s)", error)
        return None
    return flash


def forward(
    kernel: Kernel, qkv: Tensor, bounds: Bounds, heads: Heads, rotation: Rotation | None
) -> tuple[Tensor, SavedRows]:
    """Return attention's output (tokens, queries * dim) for qkv (tokens, width), and what backward needs."""
    meeting, v = qkv.detach().unflatten(1, (-1, heads.dim)).split([heads.queries + heads.keys, heads.keys], dim=1)
    if rotation is not None:
        meeting = fused.turn(meeting, rotation.cos, rotation.signed)
    q, k = meeting.split([heads.queries, heads.keys], dim=1)
    with torch.enable_grad():
        q, k, v = q.requires_grad_(), k.requires_grad_(), v.clone().requires_grad_()
        output = kernel(q, k, v, bounds, heads)
    return output.detach().flatten(1), SavedRows(q, k, v, output)


def backward(d_output: Tensor, saved: SavedRows, heads: Heads, rotation: Rotation | None) -> Tensor:
    """Return the gradient of qkv (tokens, width) for that of the output (tokens, queries * dim)."""
    upstream = d_output.view(saved.output.shape)
    with _fixed_order():
        dq, dk, dv = torch.autograd.grad(saved.output, (saved.q, saved.k, saved.v), upstream)
    if rotation is not None:
        dq, dk = (fused.turn(part, rotation.cos, rotation.back) for part in (dq, dk))
    return torch.cat([part.flatten(1) for part in (dq, dk, dv)], dim=1)


@contextmanager
def _fixed_order() -> Iterator[None]:
    """Let the kernel add up gradients in one order, so that a run can be repeated bit for bit."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = torch.utils.deterministic
    filled = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    memory.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        memory.fill_uninitialized_memory = filled
