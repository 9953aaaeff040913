"""Causal grouped-query attention over rows of a pass, forward and backward, without repeating keys or values.

Rows of one group form one batched product per block of queries; a block sees only the keys
up to its own last position, so most of what causality hides is never computed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedit.model.fast.layout import AttentionGroup, Layout

QUERIES_PER_BLOCK = 128


@dataclass(frozen=True, slots=True)
class Heads:
    """Shape of a layer's attention.

    window:  how many positions back a query sees, itself included; None: all.
    softcap: scores become softcap * tanh(scores / softcap); None: as they are.
    """

    queries: int
    keys: int
    dim: int
    scale: float
    window: int | None
    softcap: float | None

    @property
    def width(self) -> int:
        """Columns of queries, keys and values side by side."""
        return (self.queries + 2 * self.keys) * self.dim


@dataclass(slots=True)
class SavedGroup:
    """What the backward pass of one group needs.

    q: (count * key heads, length * queries per key, dim), scaled; k, v: (count * key heads, prefix + length, dim);
    p: per block the attention weights; capped: per block the capped scores, where there is a cap.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    p: list[Tensor]
    capped: list[Tensor]


class Rotation:
    """Rotary positions of every slot, as (slots, rotated pairs) cosines and sines; none where a layer has none.

    signed, back: (slots, 2, pairs), what each half of a head is given of the other: forward and backward.
    """

    def __init__(self, cos: Tensor, sin: Tensor) -> None:
        half = cos.shape[-1] // 2
        self.half = half
        self.cos, self.sin = cos[:, :half].contiguous(), sin[:, :half].contiguous()
        self.signed = torch.stack([-self.sin, self.sin], 1)
        self.back = -self.signed

    def apply(self, x: Tensor, out: Tensor, start: int, scale: float, *, inverse: bool = False) -> None:
        """Write the rotated and scaled x into ``out``; both (count, length, ..., dim), slots from ``start`` on."""
        count, length = x.shape[:2]
        shape = (count, length, *(1,) * (x.dim() - 3), self.half)
        cos = self.cos[start : start + count * length].view(shape)
        sin = self.sin[start : start + count * length].view(shape)
        if scale != 1.0:
            cos, sin = cos * scale, sin * scale
        sign = -1 if inverse else 1
        low, high = x[..., : self.half], x[..., self.half : 2 * self.half]
        torch.mul(low, cos, out=out[..., : self.half]).addcmul_(high, sin, value=-sign)
        torch.mul(high, cos, out=out[..., self.half : 2 * self.half]).addcmul_(low, sin, value=sign)
        if 2 * self.half < x.shape[-1]:
            torch.mul(x[..., 2 * self.half :], scale, out=out[..., 2 * self.half :])


def turn(
    rotation: Rotation | None, x: Tensor, out: Tensor, start: int, scale: float, *, inverse: bool = False
) -> None:
    """Write x, scaled and, where there is a rotation, rotated into ``out``; see `Rotation.apply`."""
    if rotation is None:
        torch.mul(x, scale, out=out)
    else:
        rotation.apply(x, out, start, scale, inverse=inverse)


class Masks:
    """Additive masks of blocks, kept over the layers of a pass."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype, self._device = dtype, device
        self._made: dict[tuple[int, int, int, int | None, int], Tensor] = {}

    def of(self, first: int, last: int, prefix: int, window: int | None, repeat: int) -> tuple[int, Tensor]:
        """Return (first masked key, mask (queries * repeat, masked keys)) for queries first..last of the own rows.

        Keys before the first masked one are seen by all these queries.
        """
        begin = prefix + first if window is None or prefix + last <= window else 0
        key = (first, last, prefix, window, repeat)
        if key not in self._made:
            query = torch.arange(prefix + first, prefix + last, device=self._device).unsqueeze(1)
            keys = torch.arange(begin, prefix + last, device=self._device).unsqueeze(0)
            hidden = keys > query
            if window is not None:
                hidden |= keys <= query - window
            mask = torch.zeros(hidden.shape, dtype=self._dtype, device=self._device)
            self._made[key] = mask.masked_fill_(hidden, float("-inf")).repeat_interleave(repeat, 0)
        return begin, self._made[key]


def forward(
    qkv: Tensor, layout: Layout, heads: Heads, rotation: Rotation | None, masks: Masks
) -> tuple[Tensor, list[SavedGroup]]:
    """Return attention's output (slots, queries * dim) for qkv (slots, width), and what backward needs."""
    output = qkv.new_empty(qkv.shape[0], heads.queries * heads.dim)
    saved: list[SavedGroup] = []
    by_start: dict[int, SavedGroup] = {}
    for group in layout.groups:
        own = _prepare(qkv, group, heads, rotation, by_start)
        result = own.q.new_empty(own.q.shape)
        share = heads.queries // heads.keys
        before = group.prefix[1] if group.prefix else 0
        for first in range(0, group.length, QUERIES_PER_BLOCK):
            last = min(first + QUERIES_PER_BLOCK, group.length)
            begin, mask = masks.of(first, last, before, heads.window, share)
            block = slice(first * share, last * share)
            scores = torch.bmm(own.q[:, block], own.k[:, : before + last].transpose(1, 2))
            if heads.softcap is not None:
                scores.div_(heads.softcap).tanh_()
                own.capped.append(scores)
                scores = scores * heads.softcap
            scores[:, :, begin:].add_(mask)
            weights = torch.softmax(scores, -1)
            own.p.append(weights)
            result[:, block] = torch.bmm(weights, own.v[:, : before + last])
        _split(output, group, heads.queries * heads.dim).copy_(_join(result, group, heads))
        saved.append(own)
        by_start[group.start] = own
    return output, saved


def backward(
    d_output: Tensor,
    layout: Layout,
    heads: Heads,
    rotation: Rotation | None,
    saved: Sequence[SavedGroup],
) -> Tensor:
    """Return the gradient of qkv (slots, width) for that of the output (slots, queries * dim).

    Slots without a token must have a gradient of 0.
    """
    d_qkv = d_output.new_empty(d_output.shape[0], heads.width)
    share = heads.queries // heads.keys
    waiting: dict[int, tuple[Tensor, Tensor]] = {}
    for group, own in zip(reversed(layout.groups), reversed(saved), strict=True):
        d_out = _split(d_output, group, heads.keys, share * heads.dim).transpose(1, 2)
        d_out = d_out.reshape(own.q.shape)
        dq, dk, dv = torch.empty_like(own.q), torch.zeros_like(own.k), torch.zeros_like(own.v)
        before = group.prefix[1] if group.prefix else 0
        for index, first in enumerate(range(0, group.length, QUERIES_PER_BLOCK)):
            last = min(first + QUERIES_PER_BLOCK, group.length)
            block, seen = slice(first * share, last * share), before + last
            weights = own.p[index]
            d_weights = torch.bmm(d_out[:, block], own.v[:, :seen].transpose(1, 2))
            d_scores = torch._softmax_backward_data(d_weights, weights, -1, weights.dtype)
            if heads.softcap is not None:
                d_scores.mul_(1 - own.capped[index].square())
            dq[:, block] = torch.bmm(d_scores, own.k[:, :seen])
            dk[:, :seen].baddbmm_(d_scores.transpose(1, 2), own.q[:, block])
            dv[:, :seen].baddbmm_(weights.transpose(1, 2), d_out[:, block])
        shape = (group.count, heads.keys, -1, heads.dim)
        dk, dv = dk.view(shape), dv.view(shape)
        for more_k, more_v in [waiting.pop(group.start)] if group.start in waiting else []:
            dk, dv = dk + more_k, dv + more_v
        if group.prefix:
            _keep_for_prefix(waiting, group, dk[:, :, :before], dv[:, :, :before])
            dk, dv = dk[:, :, before:], dv[:, :, before:]
        _collect(d_qkv, group, heads, rotation, dq, dk, dv)
    return d_qkv


def _keep_for_prefix(
    waiting: dict[int, tuple[Tensor, Tensor]], group: AttentionGroup, dk: Tensor, dv: Tensor
) -> None:
    """Add what a group's rows say about the keys and values of their shared prefix."""
    assert group.prefix is not None
    start = group.prefix[0]
    dk, dv = dk.sum(0, keepdim=True), dv.sum(0, keepdim=True)
    if start in waiting:
        dk, dv = dk + waiting[start][0], dv + waiting[start][1]
    waiting[start] = (dk, dv)


def _prepare(
    qkv: Tensor, group: AttentionGroup, heads: Heads, rotation: Rotation | None, done: dict[int, SavedGroup]
) -> SavedGroup:
    """Return rotated queries, and the prefix's and the own keys and values, of a group."""
    share = heads.queries // heads.keys
    before = group.prefix[1] if group.prefix else 0
    q, k, v = _columns(qkv, group, heads)
    batch = (group.count, heads.keys)
    turned = q.new_empty(*batch, group.length, share, heads.dim)
    turn(rotation, q, turned.permute(0, 2, 1, 3, 4), group.start, heads.scale)
    keys = k.new_empty(*batch, before + group.length, heads.dim)
    values = torch.empty_like(keys)
    turn(rotation, k, keys[:, :, before:].transpose(1, 2), group.start, 1.0)
    values[:, :, before:].copy_(v.transpose(1, 2))
    if group.prefix:
        first = done[group.prefix[0]]
        keys[:, :, :before], values[:, :, :before] = first.k, first.v
    merged = group.count * heads.keys
    return SavedGroup(
        turned.view(merged, group.length * share, heads.dim),
        keys.view(merged, before + group.length, heads.dim),
        values.view(merged, before + group.length, heads.dim),
        [],
        [],
    )


def _collect(
    d_qkv: Tensor,
    group: AttentionGroup,
    heads: Heads,
    rotation: Rotation | None,
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
) -> None:
    """Write a group's gradients, turned back, into its slots of ``d_qkv``."""
    share = heads.queries // heads.keys
    q, k, v = _columns(d_qkv, group, heads)
    own = dq.view(group.count, heads.keys, group.length, share, heads.dim).permute(0, 2, 1, 3, 4)
    turn(rotation, own, q, group.start, heads.scale, inverse=True)
    turn(rotation, dk.transpose(1, 2), k, group.start, 1.0, inverse=True)
    v.copy_(dv.transpose(1, 2))


def _columns(qkv: Tensor, group: AttentionGroup, heads: Heads) -> tuple[Tensor, Tensor, Tensor]:
    """Return a group's q (count, length, keys, share, dim), k and v (count, length, keys, dim), as views."""
    rows = qkv[group.start : group.start + group.count * group.length]
    q, k, v = rows.split([heads.queries * heads.dim, heads.keys * heads.dim, heads.keys * heads.dim], dim=1)
    place = (group.count, group.length, heads.keys)
    return (
        q.unflatten(1, (heads.keys, heads.queries // heads.keys, heads.dim)).unflatten(0, place[:2]),
        k.unflatten(1, (heads.keys, heads.dim)).unflatten(0, place[:2]),
        v.unflatten(1, (heads.keys, heads.dim)).unflatten(0, place[:2]),
    )


def _split(x: Tensor, group: AttentionGroup, *columns: int) -> Tensor:
    """Return a group's slots of x as (count, length, *columns)."""
    rows = x[group.start : group.start + group.count * group.length]
    return rows.view(group.count, group.length, *columns)


def _join(result: Tensor, group: AttentionGroup, heads: Heads) -> Tensor:
    """Return (count, length, queries * dim) of a group's result (count * keys, length * share, dim)."""
    share = heads.queries // heads.keys
    by_head = result.view(group.count, heads.keys, group.length, share * heads.dim)
    return by_head.transpose(1, 2).reshape(group.count, group.length, heads.queries * heads.dim)
