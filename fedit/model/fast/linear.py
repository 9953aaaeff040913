"""Frozen linear layers with low-rank updates: one product for the base of a group, small ones for the factors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

Gradients = list[dict[str, Tensor]]
"""Per client: canonical name -> gradient in the adapter's own precision."""


@dataclass(slots=True)
class Group:
    """Linear layers that read the same input and are computed as one product.

    weight:   compute dtype (out, in); the layers' own weights are views of it.
    bias:     compute dtype (out,) or None.
    adapted:  (canonical module name, first output, last output) of the layers that carry an adapter.
    """

    weight: Tensor
    bias: Tensor | None
    adapted: tuple[tuple[str, int, int], ...]

    @classmethod
    def of(cls, layers: Sequence[tuple[str, nn.Module]], adapted: Sequence[str]) -> "Group":
        """Join (name, linear layer) pairs; their weights become views of the joined one, so memory stays."""
        modules = [_plain(layer) for _, layer in layers]
        weights = [module.weight for module in modules]
        biases = [module.bias for module in modules]
        if len({bias is None for bias in biases}) > 1:
            raise TypeError("some layers have a bias and some have none")
        weight = weights[0].data if len(weights) == 1 else torch.cat([w.data for w in weights])
        known = [bias.data for bias in biases if bias is not None]
        bias = torch.cat(known) if known else None
        places, start = [], 0
        for (name, _), module in zip(layers, modules, strict=True):
            end = start + module.weight.shape[0]
            module.weight.data = weight[start:end]
            if name in adapted:
                places.append((name, start, end))
            start = end
        return cls(weight, bias, tuple(places))


def _plain(layer: nn.Module) -> nn.Linear:
    base = getattr(layer, "base_layer", layer)
    if type(base) is not nn.Linear:
        raise TypeError(f"{type(base).__name__} is not a plain linear layer")
    return base


@dataclass(slots=True)
class Factors:
    """One client's low-rank factors for a group, in compute dtype.

    a: (sum of ranks, in), the layers' A on top of each other; b: per layer (out, rank), the scale folded in.
    """

    a: Tensor
    b: list[Tensor]
    ranks: list[int]
    scale: float
    trains_a: list[bool]
    trains_b: list[bool]


@dataclass(slots=True)
class Saved:
    """What the backward pass of a group needs besides its input.

    u:     per client (tokens, sum of ranks), the input times A.
    masks: per client and layer, which inputs dropout kept; empty without dropout.
    """

    u: list[Tensor] = field(default_factory=list)
    masks: list[list[Tensor]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Dropout:
    """Dropout before the factors, drawn per client from its own generator (None: PyTorch's)."""

    rate: float
    generators: Sequence[torch.Generator | None]

    def masks(self, client: int, shape: tuple[int, ...], count: int, device: torch.device) -> list[Tensor]:
        """Return one mask of kept inputs a layer."""
        keep = 1 - self.rate
        return [
            torch.empty(shape, dtype=torch.bool, device=device).bernoulli_(keep, generator=self.generators[client])
            for _ in range(count)
        ]


def stage(group: Group, adapters: Sequence[Mapping[str, Tensor]], scales: Sequence[float]) -> list[Factors]:
    """Return the factors of every client for ``group`` in its compute dtype."""
    if not group.adapted:
        return []
    dtype = group.weight.dtype
    staged = []
    for adapter, scale in zip(adapters, scales, strict=True):
        a = [adapter[f"{name}.A"] for name, _, _ in group.adapted]
        b = [adapter[f"{name}.B"] for name, _, _ in group.adapted]
        staged.append(
            Factors(
                (a[0] if len(a) == 1 else torch.cat(a)).to(dtype),
                [(factor * scale).to(dtype) for factor in b],
                [factor.shape[0] for factor in a],
                scale,
                [factor.requires_grad for factor in a],
                [factor.requires_grad for factor in b],
            )
        )
    return staged


def forward(
    group: Group,
    factors: Sequence[Factors],
    x: Tensor,
    spans: Sequence[tuple[int, int]],
    dropout: Dropout | None,
    redo: Saved | None = None,
) -> tuple[Tensor, Saved]:
    """Return the group's output (tokens, out) for x (tokens, in), and what its backward pass needs.

    redo: what an earlier pass over the same input saved; its dropout masks are used again.
    """
    y = torch.mm(x, group.weight.T) if group.bias is None else torch.addmm(group.bias, x, group.weight.T)
    saved = Saved()
    for client, (factor, (start, end)) in enumerate(zip(factors, spans, strict=bool(factors))):
        rows = x[start:end]
        if dropout is None:
            u = rows @ factor.a.T
        else:
            masks = redo.masks[client] if redo else dropout.masks(client, rows.shape, len(factor.b), x.device)
            saved.masks.append(masks)
            parts = zip(masks, factor.a.split(factor.ranks), strict=True)
            u = torch.cat([_drop(rows, mask, dropout.rate) @ a.T for mask, a in parts], dim=1)
        for (_, low, high), b, part in zip(group.adapted, factor.b, u.split(factor.ranks, dim=1), strict=True):
            y[start:end, low:high].addmm_(part, b.T)
        saved.u.append(u)
    return y, saved


def backward(
    group: Group,
    factors: Sequence[Factors],
    x: Tensor | None,
    dy: Tensor,
    saved: Saved,
    spans: Sequence[tuple[int, int]],
    gradients: Gradients,
    *,
    needs_dx: bool,
    rate: float = 0.0,
) -> Tensor | None:
    """Add the factors' gradients to ``gradients`` and return that of the input (tokens, in), if it is needed.

    x: the input of the forward pass; only read where the group has factors.
    """
    dx = dy @ group.weight if needs_dx else None
    for client, (factor, (start, end)) in enumerate(zip(factors, spans, strict=bool(factors))):
        if x is None:
            raise ValueError("a group with factors needs its input")
        rows, found = x[start:end], gradients[client]
        du = torch.empty_like(saved.u[client])
        us, dus = saved.u[client].split(factor.ranks, dim=1), du.split(factor.ranks, dim=1)
        for place, (name, low, high) in enumerate(group.adapted):
            dy_own = dy[start:end, low:high]
            torch.mm(dy_own, factor.b[place], out=dus[place])
            if factor.trains_b[place]:
                _add(found, f"{name}.B", dy_own.T @ us[place], factor.scale)
        masks = saved.masks[client] if saved.masks else None
        _factor_inputs(group, factor, rows, du, masks, rate, found, None if dx is None else dx[start:end])
    return dx


def _factor_inputs(
    group: Group,
    factor: Factors,
    x: Tensor,
    du: Tensor,
    masks: list[Tensor] | None,
    rate: float,
    found: dict[str, Tensor],
    dx: Tensor | None,
) -> None:
    """Add the gradients of A to ``found`` and, through A, that of the input to ``dx``."""
    if masks is None:
        if any(factor.trains_a):
            da = du.T @ x
            for (name, _, _), trains, part in zip(
                group.adapted, factor.trains_a, da.split(factor.ranks), strict=True
            ):
                if trains:
                    _add(found, f"{name}.A", part, 1.0)
        if dx is not None:
            dx.addmm_(du, factor.a)
        return
    parts = zip(masks, du.split(factor.ranks, dim=1), factor.a.split(factor.ranks), strict=True)
    for place, (mask, du_own, a) in enumerate(parts):
        if factor.trains_a[place]:
            _add(found, f"{group.adapted[place][0]}.A", du_own.T @ _drop(x, mask, rate), 1.0)
        if dx is not None:
            dx.add_(_drop(du_own @ a, mask, rate))


def _drop(x: Tensor, mask: Tensor, rate: float) -> Tensor:
    return (x * mask).mul_(1 / (1 - rate))


def _add(found: dict[str, Tensor], name: str, gradient: Tensor, scale: float) -> None:
    # Compute dtype to the adapter's: float64 stays, everything else becomes float32.
    precise = gradient if gradient.dtype == torch.float64 else gradient.float()
    found[name] = precise * scale if scale != 1.0 else precise
