"""One decoder layer of the Llama family: normed attention and a gated MLP, each added to the residual stream.

The residual stream is float32 (float64 over a float64 base) whatever the base's precision.
Cheap elementwise results are computed again in the backward pass instead of being stored.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedit.model.fast import attention, fused, linear, varlen
from fedit.model.fast.attention import Heads, Masks, Rotation, SavedGroup
from fedit.model.fast.frozen import Group
from fedit.model.fast.layout import Layout
from fedit.model.fast.linear import Dropout, Factors, Gradients, Saved, Spans
from fedit.model.fast.past import Past
from fedit.model.fast.varlen import Bounds, Kernel, SavedRows


@dataclass(frozen=True, slots=True)
class Norm:
    """Root-mean-square norm (arXiv:1910.07467); its frozen weight (width,) has the residual stream's precision."""

    weight: Tensor
    eps: float

    def forward(self, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return x (..., width) normed, in ``dtype``, and what it was multiplied by (..., 1)."""
        return fused.norm(x, self.weight, self.eps, dtype)

    def again(self, x: Tensor, rate: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the forward pass's result from its own rate."""
        return fused.norm_again(x, rate, self.weight, dtype)

    def backward(self, dy: Tensor, x: Tensor, rate: Tensor) -> Tensor:
        """Return the gradient of x, in its dtype."""
        return fused.norm_backward(dy, x, rate, self.weight)

    def add_backward(self, dx: Tensor, dy: Tensor, x: Tensor, rate: Tensor) -> Tensor:
        """Add the gradient of x to ``dx``, which is returned."""
        return fused.add_norm_backward(dx, dy, x, rate, self.weight)


@dataclass(frozen=True, slots=True)
class Gate:
    """A gated MLP's middle: f(gate) * up of (tokens, gate and up side by side).

    opened:   (gate) -> f(gate).
    gated:    (gate and up) -> f(gate) * up.
    backward: (gradient of the product, which may be overwritten; gate and up; f(gate), None: it is computed again)
              -> gradient of gate and up.
    """

    opened: Callable[[Tensor], Tensor]
    gated: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor, Tensor | None], Tensor]

    @classmethod
    def of(cls, forward: Callable[[Tensor], Tensor], slope: Callable[[Tensor, Tensor], Tensor]) -> "Gate":
        """Return the gate of a function; slope: (upstream, gate) -> gradient of the gate."""

        def gated(gate_up: Tensor) -> Tensor:
            gate, up = gate_up.chunk(2, dim=1)
            return forward(gate).mul_(up)

        def backward(d_gated: Tensor, gate_up: Tensor, opened: Tensor | None) -> Tensor:
            gate, up = gate_up.chunk(2, dim=1)
            if opened is None:
                return torch.cat([slope(d_gated * up, gate), d_gated * forward(gate)], dim=1)
            found = torch.empty_like(gate_up)
            d_gate, d_up = found.chunk(2, dim=1)
            d_up.copy_(d_gated).mul_(opened)
            d_gate.copy_(slope(d_gated.mul_(up), gate))
            return found

        return cls(fused.fused(forward), fused.fused(gated), fused.fused(backward))


ACTIVATIONS: dict[str, Gate] = {
    "silu": Gate.of(torch.nn.functional.silu, torch.ops.aten.silu_backward),
    "gelu_pytorch_tanh": Gate.of(
        lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
        lambda dy, x: torch.ops.aten.gelu_backward(dy, x, approximate="tanh"),
    ),
    "gelu": Gate.of(torch.nn.functional.gelu, lambda dy, x: torch.ops.aten.gelu_backward(dy, x)),
}
"""Name in a model's config -> function."""


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """The frozen parts of a layer.

    index:       place in the model.
    rotary:      name of the layer's rotary positions; None: it has none.
    head_norms:  norms of each query's and key's head before rotation, as Qwen 3 has them.
    *_after:     norms of what attention and MLP give, before it is added, as Gemma 2 has them.
    """

    index: int
    attention_norm: Norm
    qkv: Group
    heads: Heads
    rotary: str | None
    head_norms: tuple[Norm, Norm] | None
    o: Group
    attention_after: Norm | None
    mlp_norm: Norm
    gate_up: Group
    down: Group
    gate: Gate
    mlp_after: Norm | None

    def groups(self) -> tuple[Group, Group, Group, Group]:
        """Return the groups of linear layers, in the order in which they are computed."""
        return self.qkv, self.o, self.gate_up, self.down


@dataclass(frozen=True, slots=True)
class Context:
    """What all layers of a pass share.

    spans:  of each client's tokens; rotations: by name, for every slot.
    kernel: attention over rows of any lengths, which lie at ``bounds``; None: it runs in blocks of the layout.
    past:   keys and values before the pass, whose tokens are one a row; None: rows begin in the pass.
    """

    layout: Layout
    spans: Spans
    rotations: dict[str, Rotation]
    masks: Masks
    dtype: torch.dtype
    dropout: Dropout | None
    kernel: Kernel | None
    bounds: Bounds | None
    past: Past | None

    @property
    def rate(self) -> float:
        """Dropout's rate."""
        return 0.0 if self.dropout is None else self.dropout.rate


@dataclass(slots=True)
class SavedAttention:
    """Of the attention half; ``raw``: queries and keys before their norms; ``out``: before the norm after."""

    x: Tensor
    rate: Tensor
    qkv: Saved
    raw: tuple[Tensor, Tensor, Tensor, Tensor] | None
    groups: list[SavedGroup] | SavedRows
    o_in: Tensor | None
    o: Saved
    out: tuple[Tensor, Tensor] | None


@dataclass(slots=True)
class SavedMlp:
    """Of the MLP half."""

    x: Tensor
    rate: Tensor
    gate_up: Tensor
    joined: Saved
    down: Saved
    out: tuple[Tensor, Tensor] | None


def attend(
    spec: LayerSpec, factors: Sequence[Factors | None], x: Tensor, context: Context, redo: SavedAttention | None
) -> tuple[Tensor, SavedAttention]:
    """Return the residual stream (tokens, width) after attention."""
    normed, rate = spec.attention_norm.forward(x, context.dtype)
    qkv, saved_qkv = linear.forward(
        spec.qkv,
        factors[0],
        normed,
        context.spans,
        context.dropout,
        redo.qkv if redo else None,
    )
    raw = None
    if spec.head_norms is not None:
        raw = _norm_heads(spec, spec.head_norms, qkv)
    mixed, groups = _mix(spec, qkv, context)
    y, saved_o = linear.forward(
        spec.o, factors[1], mixed, context.spans, context.dropout, redo.o if redo else None
    )
    after = None
    if spec.attention_after is not None:
        after, y = _norm_after(spec.attention_after, y.to(x.dtype))
    saved = SavedAttention(
        x, rate, saved_qkv, raw, groups, mixed if factors[1] is not None else None, saved_o, after
    )
    return fused.add(x, y), saved


def attend_backward(
    spec: LayerSpec,
    factors: Sequence[Factors | None],
    dx: Tensor,
    saved: SavedAttention,
    context: Context,
    gradients: Gradients,
    *,
    lowest: bool,
) -> Tensor | None:
    """Return the gradient of the attention half's input; None where nothing below needs it (``lowest``)."""
    dy = dx
    if spec.attention_after is not None and saved.out is not None:
        dy = spec.attention_after.backward(dx, *saved.out)
    dy = dy.to(context.dtype)
    d_mixed = linear.backward(
        spec.o, factors[1], saved.o_in, dy, saved.o, context.spans, gradients, needs_dx=True, rate=context.rate
    )
    if d_mixed is None or (lowest and factors[0] is None):
        return None
    d_qkv = _mix_backward(spec, d_mixed, saved.groups, context)
    if spec.head_norms is not None and saved.raw is not None:
        _norm_heads_backward(spec, spec.head_norms, d_qkv, saved.raw)
    normed = spec.attention_norm.again(saved.x, saved.rate, context.dtype) if factors[0] is not None else None
    d_normed = linear.backward(
        spec.qkv,
        factors[0],
        normed,
        d_qkv,
        saved.qkv,
        context.spans,
        gradients,
        needs_dx=not lowest,
        rate=context.rate,
    )
    if d_normed is None:
        return None
    return spec.attention_norm.add_backward(dx, d_normed, saved.x, saved.rate)


def _mix(spec: LayerSpec, qkv: Tensor, context: Context) -> tuple[Tensor, list[SavedGroup] | SavedRows]:
    """Return attention's output (tokens, queries * dim) and what its backward pass needs."""
    rotation = None if spec.rotary is None else context.rotations[spec.rotary]
    if context.past is not None:
        return context.past.attend(spec.index, qkv, spec.heads, rotation), []
    if context.kernel is not None and context.bounds is not None:
        return varlen.forward(context.kernel, qkv, context.bounds, spec.heads, rotation)
    layout = context.layout
    slots = qkv if layout.slots is None else qkv.index_select(0, layout.slots)
    mixed, groups = attention.forward(slots, layout, spec.heads, rotation, context.masks)
    return mixed if layout.slot_of_token is None else mixed.index_select(0, layout.slot_of_token), groups


def _mix_backward(
    spec: LayerSpec, d_mixed: Tensor, saved: list[SavedGroup] | SavedRows, context: Context
) -> Tensor:
    """Return the gradient of queries, keys and values (tokens, width)."""
    rotation = None if spec.rotary is None else context.rotations[spec.rotary]
    if isinstance(saved, SavedRows):
        return varlen.backward(d_mixed, saved, spec.heads, rotation)
    layout = context.layout
    if layout.slots is not None:
        d_mixed = d_mixed.index_select(0, layout.slots).index_fill_(0, layout.padding, 0)
    d_qkv = attention.backward(d_mixed, layout, spec.heads, rotation, saved)
    return d_qkv if layout.slot_of_token is None else d_qkv.index_select(0, layout.slot_of_token)


def feed(
    spec: LayerSpec,
    factors: Sequence[Factors | None],
    x: Tensor,
    context: Context,
    spans: Spans,
    redo: SavedMlp | None,
) -> tuple[Tensor, SavedMlp]:
    """Return the residual stream after the MLP; ``spans`` are those of x, which may be a part of the tokens."""
    normed, rate = spec.mlp_norm.forward(x, context.dtype)
    gate_up, joined = linear.forward(
        spec.gate_up, factors[2], normed, spans, context.dropout, redo.joined if redo else None
    )
    y, down = linear.forward(
        spec.down, factors[3], spec.gate.gated(gate_up), spans, context.dropout, redo.down if redo else None
    )
    after = None
    if spec.mlp_after is not None:
        after, y = _norm_after(spec.mlp_after, y.to(x.dtype))
    return fused.add(x, y), SavedMlp(x, rate, gate_up, joined, down, after)


def feed_backward(
    spec: LayerSpec,
    factors: Sequence[Factors | None],
    dx: Tensor,
    saved: SavedMlp,
    context: Context,
    spans: Spans,
    gradients: Gradients,
    *,
    lowest: bool,
) -> Tensor | None:
    """Return the gradient of the MLP half's input; None where nothing below needs it (``lowest``)."""
    dy = dx
    if spec.mlp_after is not None and saved.out is not None:
        dy = spec.mlp_after.backward(dx, *saved.out)
    dy = dy.to(context.dtype)
    gate, up = saved.gate_up.chunk(2, dim=1)
    # Where steps are compiled, computing it again costs nothing, and keeping it memory.
    opened = None if fused.compiles(saved.gate_up) else spec.gate.opened(gate)
    middle = None
    if factors[3] is not None:
        middle = spec.gate.gated(saved.gate_up) if opened is None else opened * up
    d_gated = linear.backward(
        spec.down,
        factors[3],
        middle,
        dy,
        saved.down,
        spans,
        gradients,
        needs_dx=True,
        rate=context.rate,
    )
    if d_gated is None or (lowest and factors[2] is None):
        return None
    d_joined = spec.gate.backward(d_gated, saved.gate_up, opened)
    normed = spec.mlp_norm.again(saved.x, saved.rate, context.dtype) if factors[2] is not None else None
    d_normed = linear.backward(
        spec.gate_up,
        factors[2],
        normed,
        d_joined,
        saved.joined,
        spans,
        gradients,
        needs_dx=not lowest,
        rate=context.rate,
    )
    if d_normed is None:
        return None
    return spec.mlp_norm.add_backward(dx, d_normed, saved.x, saved.rate)


def _norm_after(norm: Norm, y: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
    normed, rate = norm.forward(y, y.dtype)
    return (y, rate), normed


def _norm_heads(spec: LayerSpec, norms: tuple[Norm, Norm], qkv: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Norm every head of queries and keys in place; return (queries, keys) as they were and their rates."""
    q, k = _heads(spec, qkv)
    precise = torch.promote_types(qkv.dtype, torch.float32)
    raw_q, raw_k = q.to(precise, copy=True), k.to(precise, copy=True)
    normed_q, rate_q = norms[0].forward(raw_q, precise)
    normed_k, rate_k = norms[1].forward(raw_k, precise)
    q.copy_(normed_q)
    k.copy_(normed_k)
    return raw_q, raw_k, rate_q, rate_k


def _norm_heads_backward(
    spec: LayerSpec, norms: tuple[Norm, Norm], d_qkv: Tensor, raw: tuple[Tensor, Tensor, Tensor, Tensor]
) -> None:
    """Turn gradients of normed heads into those of the heads before, in place."""
    dq, dk = _heads(spec, d_qkv)
    raw_q, raw_k, rate_q, rate_k = raw
    dq.copy_(norms[0].backward(dq, raw_q, rate_q))
    dk.copy_(norms[1].backward(dk, raw_k, rate_k))


def _heads(spec: LayerSpec, qkv: Tensor) -> tuple[Tensor, Tensor]:
    heads = spec.heads
    q, k, _ = qkv.split([heads.queries * heads.dim, heads.keys * heads.dim, heads.keys * heads.dim], dim=1)
    return q.unflatten(1, (heads.queries, heads.dim)), k.unflatten(1, (heads.keys, heads.dim))
