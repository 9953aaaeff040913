"""The factors of a pass's clients, as its products read them: in compute dtype, one client on top of the other."""

from collections.abc import Mapping, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from fedit.model.fast.frozen import Group
from fedit.model.fast.linear import Factors, Ledger
from fedit.model.parameters import Parameters
from fedit.tensors import Flat, Layout
from fedit.types import LEDGER

Staged = list[list[Factors | None]]
"""Per layer and group of linear layers, the factors of a pass's clients."""


def stage(
    layers: Sequence[Sequence[Group]], adapters: Sequence[Mapping[str, Tensor]], scales: Sequence[float]
) -> Staged:
    """Return the factors of all clients for the groups of every layer; None where a group has none.

    adapters: per client "m.A" (rank, in) and "m.B" (out, rank), and "ledger/m.A" where it has a ledger.
    scales:   per client, that B A is multiplied by.
    """
    dtypes = {group.dtype for groups in layers for group in groups if group.adapted}
    cast = _cast(adapters, scales, dtypes.pop()) if len(dtypes) == 1 else None
    return [[_stage(group, adapters, scales, cast) for group in groups] for groups in layers]


def _stage(
    group: Group,
    adapters: Sequence[Mapping[str, Tensor]],
    scales: Sequence[float],
    cast: Mapping[str, Tensor] | None,
) -> Factors | None:
    if not group.adapted:
        return None
    names = [name for name, _, _ in group.adapted]
    own_ranks = [[adapter[f"{name}.A"].shape[0] for name in names] for adapter in adapters]
    ranks = [max(own) for own in zip(*own_ranks, strict=True)]
    factor = _factor(adapters, scales, names[0])
    if cast is None:
        a, b = _one_by_one(group, adapters, factor, ranks)
    else:
        a, b = [cast[f"{name}.A"] for name in names], [cast[f"{name}.B"] for name in names]
    return Factors(
        a[0] if len(a) == 1 else torch.cat(a, 1),
        b,
        ranks,
        own_ranks,
        factor,
        [[adapter[f"{name}.A"].requires_grad for name in names] for adapter in adapters],
        [[adapter[f"{name}.B"].requires_grad for name in names] for adapter in adapters],
        _stage_ledger(group, adapters),
    )


def _cast(
    adapters: Sequence[Mapping[str, Tensor]], scales: Sequence[float], dtype: torch.dtype
) -> Mapping[str, Tensor] | None:
    """Return name -> (clients, *shape), the scales folded into B, by one pass over each client's buffer.

    None where adapters have no buffer, or not all have the same ranks.
    """
    held = [adapter.values_flat if isinstance(adapter, Parameters) else adapter for adapter in adapters]
    flats = [adapter for adapter in held if isinstance(adapter, Flat)]
    if len(flats) < len(held) or not all(flats[0].matches(flat) for flat in flats):
        return None
    first = flats[0]
    cast = torch.empty(len(flats), first.layout.size, dtype=dtype, device=first.buffer.device)
    for own, flat, scale in zip(cast, flats, scales, strict=True):
        torch.mul(flat.buffer, _multiplier(first.layout, scale, first.buffer.dtype, first.buffer.device), out=own)
    return first.layout.stacked_views(cast)


@lru_cache(maxsize=4)
def _multiplier(layout: Layout, scale: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return what a buffer's entries are multiplied by: 1 those of A, ``scale`` those of B."""
    found = torch.ones(layout.size, dtype=dtype, device=device)
    for name, view in layout.views(found).items():
        if name.endswith(".B"):
            view.fill_(scale)
    return found


def _factor(adapters: Sequence[Mapping[str, Tensor]], scales: Sequence[float], name: str) -> Tensor | float:
    """Return the scale of all clients, or (clients, 1, 1) where they differ."""
    if len(set(scales)) == 1:
        return scales[0]
    first = adapters[0][f"{name}.A"]
    return torch.tensor(scales, dtype=first.dtype).view(-1, 1, 1).to(first.device)


def _one_by_one(
    group: Group, adapters: Sequence[Mapping[str, Tensor]], factor: Tensor | float, ranks: Sequence[int]
) -> tuple[list[Tensor], list[Tensor]]:
    """Return per layer A (clients, rank, in) and B (clients, out, rank); lower ranks are filled up with zeros."""
    a, b = [], []
    for (name, _, _), rank in zip(group.adapted, ranks, strict=True):
        a.append(torch.stack([_filled(adapter[f"{name}.A"], 0, rank) for adapter in adapters]).to(group.dtype))
        own = torch.stack([_filled(adapter[f"{name}.B"], 1, rank) for adapter in adapters])
        b.append((own * factor).to(group.dtype))
    return a, b


def _stage_ledger(group: Group, adapters: Sequence[Mapping[str, Tensor]]) -> Ledger | None:
    names = [f"{LEDGER}{name}" for name, _, _ in group.adapted]
    if not any(f"{name}.A" in adapter for adapter in adapters for name in names):
        return None
    held = [[_ledger_of(adapter, name, place) for name, place in zip(names, group.adapted, strict=True)]
            for adapter in adapters]  # fmt: skip
    if all(_same(one, other) for own in held for one, other in zip(own, held[0], strict=True)):
        held = held[:1]
    ranks = [max(own[place][0].shape[0] for own in held) for place in range(len(names))]
    a = [torch.stack([_filled(own[place][0], 0, rank) for own in held]) for place, rank in enumerate(ranks)]
    b = [torch.stack([_filled(own[place][1], 1, rank) for own in held]) for place, rank in enumerate(ranks)]
    return Ledger(torch.cat(a, 1).to(group.dtype), [own.to(group.dtype) for own in b], ranks)


def _same(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> bool:
    """Return whether two corrections are one: they may share A and weigh it by another B."""
    return one[0] is other[0] and (one[1] is other[1] or torch.equal(one[1], other[1]))


def _ledger_of(adapter: Mapping[str, Tensor], name: str, place: tuple[str, int, int]) -> tuple[Tensor, Tensor]:
    """Return the factors of a layer's correction, of rank 0 where it has none."""
    if f"{name}.A" in adapter:
        return adapter[f"{name}.A"], adapter[f"{name}.B"]
    own, low, high = place
    a = adapter[f"{own}.A"]
    return a.new_zeros(0, a.shape[1]), a.new_zeros(high - low, 0)


def _filled(factor: Tensor, side: int, rank: int) -> Tensor:
    """Return a factor with zeros up to ``rank``."""
    factor = factor.detach()
    missing = rank - factor.shape[side]
    if missing == 0:
        return factor
    return torch.nn.functional.pad(factor, (0, 0, 0, missing) if side == 0 else (0, missing))
