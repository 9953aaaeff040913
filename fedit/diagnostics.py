"""What a round says about itself: client drift, agreement of updates, the error of its aggregate."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from fedit import lora, seeds, tensors
from fedit.tensors import Flat
from fedit.types import ClientUpdate, Tensors

EXACT_COST = 4_000_000
"""Multiply-adds that a distance of products may cost a client to be exact; beyond them, a sketch estimates it."""

SKETCH_COLUMNS = 16
"""Columns of the sketch. The error falls with their root, the cost of a client rises with their number."""

_SMALLEST_NORM = 1e-30
"""Updates below it count as not moved: float32 has no room for their direction."""

_UNMOVED = 1e-6
"""Models that are this much of their own norm apart are the same up to float32."""


class Drift:
    """How far clients moved and how much they agree; holds one set of tensors, whatever the cohort.

    adapter: of the round; its names and shapes are those of the updates.
    """

    def __init__(self, adapter: Tensors) -> None:
        self.norms: dict[str, float] = {}
        self._directions = tensors.empty_like(adapter, torch.float32)
        self._directions.buffer.zero_()
        self._pointing = 0
        self._weight = 0.0
        self._weighted_squares = 0.0

    def observe(self, update: ClientUpdate, norm: float) -> None:
        """Take one accepted update, and the Euclidean norm of its delta, into account."""
        self.norms[update.client_id] = norm
        self._weight += update.weight
        self._weighted_squares += update.weight * norm**2
        # Directions of adapters of other ranks have no common space.
        comparable = all(tensor.shape == self._directions[name].shape for name, tensor in update.delta.items())
        if norm > _SMALLEST_NORM and comparable:
            self._pointing += 1
            tensors.add_to(self._directions, update.delta, 1 / norm)

    def report(self, mean: Mapping[str, Tensor]) -> dict[str, float]:
        """Return update norms, the mean pairwise cosine of updates, and gradient diversity.

        mean: of the deltas observed, by their weights; empty where they have no mean.
        Diversity is sum p_k |d_k|^2 / |mean d|^2: 1 when all clients agree, larger as they cancel.
        """
        if not self.norms:
            return {}
        mean_norm = tensors.norm(mean)
        report = {
            "update_norm_mean": sum(self.norms.values()) / len(self.norms),
            "update_norm_max": max(self.norms.values()),
            "mean_update_norm": mean_norm,
        }
        count = self._pointing
        if count > 1:
            # |sum of unit vectors|^2 = count + sum over ordered pairs of their cosines
            report["pairwise_cosine"] = (tensors.norm(self._directions) ** 2 - count) / (count * (count - 1))
        if mean_norm > 0:
            report["diversity"] = self._weighted_squares / self._weight / mean_norm**2
        return report


class AggregationBias:
    """|sum p dB dA - mean dB mean dA| over |sum p B A - B_t A_t|: what averaging factors apart loses.

    d is the client's delta from the round's adapter. The numerator is the weighted covariance
    of the factors' drifts, the difference between the mean of the products and the product of
    the means (arXiv:2305.05644 averages factors; arXiv:2410.09432 names the difference).
    Both are matrices of the adapted layers' size. Small ones are added up as they are, which is
    exact; of larger ones only products with a seeded Gaussian probe are, which estimates the
    ratio and its standard error. Either holds the same few numbers whatever the cohort.
    """

    def __init__(self, adapter: Tensors, seed: int) -> None:
        self._adapter = tensors.flatten(adapter)
        self._groups = _groups(self._adapter)
        self.exact = sum(group.dense_cost for group in self._groups) <= EXACT_COST
        dtype = self._adapter.buffer.dtype
        self._probes = [None if self.exact else _probe(group, seed, dtype) for group in self._groups]
        self._sums = [
            torch.zeros(group.count, group.out, group.width if self.exact else SKETCH_COLUMNS, dtype=dtype)
            for group in self._groups
        ]
        self._weight = 0.0
        self._incomplete = False

    def observe(self, update: ClientUpdate) -> None:
        """Take one accepted update into account."""
        delta = self._aligned(update.delta)
        if delta is None:
            self._incomplete = True
            return
        self._weight += update.weight
        for group, probe, total in zip(self._groups, self._probes, self._sums, strict=True):
            a, b = group.factors(delta)
            total.baddbmm_(b, _seen(a, probe), alpha=update.weight)

    def report(self, mean: Mapping[str, Tensor]) -> dict[str, float]:
        """Return ``aggregation_bias`` and, from a sketch, ``aggregation_bias_error`` (one standard error).

        mean: of the deltas observed, by their weights.
        Nothing where an update lacked a factor: it has no product to compare.
        """
        aligned = self._aligned(mean)
        if self._weight == 0 or self._incomplete or aligned is None:
            return {}
        lost, moved = self._squares(aligned)
        if float(moved.sum()) == 0:
            return {}
        return _told("aggregation_bias", "aggregation_bias_error", lost, moved, exact=self.exact)

    def error(
        self,
        mean: Mapping[str, Tensor],
        after: Mapping[str, Tensor],
        ledgers: tuple[Mapping[str, Tensor], Mapping[str, Tensor]],
        scale: float,
    ) -> dict[str, float]:
        """Return what `AggregationError` does, where all clients started from the round's adapter and sent it all.

        What was added up for the bias is enough then, so that a client costs nothing more.

        mean:    of the deltas observed, by their weights.
        after:   the next adapter; ledgers: before and after; scale: of the adapter's B A.
        """
        step, new = self._aligned(mean), self._aligned(after)
        if self._weight == 0 or self._incomplete or step is None or new is None:
            return {}
        columns = 1 if self.exact else SKETCH_COLUMNS
        lost, moved = torch.zeros(columns, dtype=torch.float64), torch.zeros(columns, dtype=torch.float64)
        for group, probe, total in zip(self._groups, self._probes, self._sums, strict=True):
            (a, b), (mean_a, mean_b), (new_a, new_b) = (group.factors(x) for x in (self._adapter, step, new))
            wanted = total / self._weight + b @ _seen(mean_a, probe) + mean_b @ _seen(a, probe)
            # B' A' - B A in two parts, each as small as the step: the difference of products would round it away.
            went = (new_b - b) @ _seen(new_a, probe) + b @ _seen(new_a - a, probe)
            difference = scale * (went - wanted).double()
            for sign, ledger in zip((-1, 1), ledgers, strict=True):
                _add_ledger(difference, group, ledger, probe, sign)
            lost += difference.square().sum((0, 1)).reshape(columns, -1).sum(1)
            moved += (scale * wanted.double()).square().sum((0, 1)).reshape(columns, -1).sum(1)
        if float(moved.sum()) == 0:
            return {}
        return _told("aggregation_error", "aggregation_error_se", lost, moved, exact=self.exact)

    def _squares(self, mean: Flat) -> tuple[Tensor, Tensor]:
        """Return numerator and denominator squared, float64: one number, or one a column of the sketch."""
        columns = 1 if self.exact else SKETCH_COLUMNS
        lost, moved = torch.zeros(columns, dtype=torch.float64), torch.zeros(columns, dtype=torch.float64)
        for group, probe, total in zip(self._groups, self._probes, self._sums, strict=True):
            a, b = group.factors(self._adapter)
            mean_a, mean_b = group.factors(mean)
            products, mean_a_seen = total / self._weight, _seen(mean_a, probe)
            for squares, matrix in (
                (lost, products - mean_b @ mean_a_seen),
                (moved, products + b @ mean_a_seen + mean_b @ _seen(a, probe)),
            ):
                squares += matrix.double().square().sum((0, 1)).reshape(columns, -1).sum(1)
        return lost, moved

    def _aligned(self, values: Mapping[str, Tensor]) -> Flat | None:
        """Return ``values`` over one buffer like the adapter's; None if it lacks some of its names."""
        if tensors.layout_of(values) is not self._adapter.layout:
            return None
        if self._adapter.matches(values) and isinstance(values, Flat):
            return values
        dtype = self._adapter.buffer.dtype
        return tensors.flatten({name: tensor.to(dtype) for name, tensor in values.items()})


class AggregationError:
    """|W_after - mean W_k| over |mean W_k - W_before|: how far the new model is from the mean of the clients'.

    W is what a model adds to its base, scale B A + ledger, so that ranks, scales, ledgers and whatever else an
    algorithm trains in place of factors are all compared as what they do. Averaging A and B apart makes it the
    aggregation bias; it is zero for an exact algorithm, up to float32. Estimated as `AggregationBias` is.

    factors, ledger, scale: of the server's model at the round's start.
    """

    def __init__(
        self, factors: Mapping[str, Tensor], ledger: Mapping[str, Tensor], scale: float, seed: int
    ) -> None:
        both = [m for m in lora.modules(factors) if f"{m}.A" in factors and f"{m}.B" in factors]
        shapes = {m: (*factors[f"{m}.B"].shape, factors[f"{m}.A"].shape[1]) for m in both}
        self.exact = sum(math.prod(shape) for shape in shapes.values()) <= EXACT_COST
        self._modules = list(shapes)
        self._probes: dict[str, Tensor] = {}
        if not self.exact:
            self._draw({module: shape[2] for module, shape in shapes.items()}, seed)
        self._ledger, self._ledger_seen = ledger, self._seen(ledger, 1.0)
        self._before = self._all_seen(factors, ledger, scale)
        self._sums = {module: torch.zeros_like(seen) for module, seen in self._before.items()}
        self._weight = 0.0

    def observe(
        self, factors: Mapping[str, Tensor], ledger: Mapping[str, Tensor], scale: float, weight: float
    ) -> None:
        """Take the model that one client ended with into account: ``scale * B A + ledger``."""
        self._weight += weight
        for module, seen in self._all_seen(factors, ledger, scale).items():
            self._sums[module].add_(seen, alpha=weight)

    def report(
        self, factors: Mapping[str, Tensor], ledger: Mapping[str, Tensor], scale: float
    ) -> dict[str, float]:
        """Return ``aggregation_error`` and, from a sketch, ``aggregation_error_se`` (one standard error).

        factors, ledger, scale: of the server's model at the round's end.
        Nothing where no client was seen, or their mean did not move.
        """
        if self._weight == 0:
            return {}
        columns = 1 if self.exact else SKETCH_COLUMNS
        lost, moved = torch.zeros(columns, dtype=torch.float64), torch.zeros(columns, dtype=torch.float64)
        size = 0.0
        for module, after in self._all_seen(factors, ledger, scale).items():
            mean = self._sums[module] / self._weight
            size += float(mean.square().sum())
            for squares, matrix in ((lost, after - mean), (moved, mean - self._before[module])):
                squares += matrix.square().sum(0).reshape(columns, -1).sum(1)
        if float(moved.sum()) <= _UNMOVED**2 * size:
            return {}
        return _told("aggregation_error", "aggregation_error_se", lost, moved, exact=self.exact)

    def _draw(self, widths: Mapping[str, int], seed: int) -> None:
        """Draw a Gaussian probe (width, columns) that the same projection of every layer shares."""
        drawn: dict[tuple[str, int], Tensor] = {}
        for module, width in widths.items():
            kind = (re.sub(r"\d+", "#", module), width)
            if kind not in drawn:
                generator = torch.Generator().manual_seed(seeds.derive(seed, "sketch", kind[0], width))
                drawn[kind] = torch.randn(width, SKETCH_COLUMNS, generator=generator)
            self._probes[module] = drawn[kind]

    def _all_seen(self, factors: Mapping[str, Tensor], ledger: Mapping[str, Tensor], scale: float) -> Tensors:
        seen = self._seen(factors, scale)
        held = self._ledger_seen if ledger is self._ledger else self._seen(ledger, 1.0)
        return {module: seen[module] + held[module] if module in held else seen[module] for module in seen}

    def _seen(self, factors: Mapping[str, Tensor], scale: float) -> Tensors:
        """Return float64 what the probe sees of ``scale * B A`` of the modules that ``factors`` has."""
        found: Tensors = {}
        for module in self._modules:
            if f"{module}.A" in factors:
                a, b = factors[f"{module}.A"], factors[f"{module}.B"]
                if self.exact:
                    found[module] = scale * (b.double() @ a.double())
                else:
                    found[module] = scale * (b @ (a @ self._probes[module].to(a.dtype))).double()
        return found


@dataclass(frozen=True, slots=True)
class _Group:
    """Modules of one shape at equal distances in the flat buffer, so that their factors are one strided view.

    a, b:  offsets of the first module's factors; step: from one module to the next, in entries.
    """

    modules: tuple[str, ...]
    rank: int
    width: int
    out: int
    a: int
    b: int
    step: int

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.modules)

    @property
    def dense_cost(self) -> int:
        """Multiply-adds of all products."""
        return self.count * self.rank * self.width * self.out

    def factors(self, flat: Flat) -> tuple[Tensor, Tensor]:
        """Return views (count, rank, width) and (count, out, rank)."""
        start = flat.buffer.storage_offset()
        a = flat.buffer.as_strided((self.count, self.rank, self.width), (self.step, self.width, 1), start + self.a)
        b = flat.buffer.as_strided((self.count, self.out, self.rank), (self.step, self.rank, 1), start + self.b)
        return a, b


def _groups(adapter: Flat) -> list[_Group]:
    """Return all modules that have both factors, as few groups as possible."""
    places = dict(zip(adapter.layout.names, adapter.layout.offsets, strict=True))
    alike: dict[tuple[str, torch.Size, torch.Size], list[str]] = {}
    for module in lora.modules(adapter):
        if f"{module}.A" in adapter and f"{module}.B" in adapter:
            kind = re.sub(r"\d+", "#", module)  # the same projection of every layer
            alike.setdefault((kind, adapter[f"{module}.A"].shape, adapter[f"{module}.B"].shape), []).append(module)
    groups = []
    for (_, (rank, width), (out, _)), modules in alike.items():
        pairs = [(places[f"{module}.A"], places[f"{module}.B"]) for module in modules]
        start = 0
        for end in _ends_of_runs(pairs):
            a, b = pairs[start]
            step = pairs[start + 1][0] - a if end - start > 1 else 0
            groups.append(_Group(tuple(modules[start:end]), rank, width, out, a, b, step))
            start = end
    return groups


def _ends_of_runs(pairs: Sequence[tuple[int, int]]) -> list[int]:
    """Return where runs of pairs at equal distances end; every pair is in one run."""
    ends: list[int] = []
    start, distance = 0, None
    for index, (one, two) in enumerate(pairwise(pairs), start=1):
        here = (two[0] - one[0], two[1] - one[1])
        if here[0] != here[1] or (distance is not None and here != distance):
            ends.append(index)
            start, distance = index, None
        elif index - start >= 1:
            distance = here
    return [*ends, len(pairs)]


def _probe(group: _Group, seed: int, dtype: torch.dtype) -> Tensor:
    """Return a Gaussian probe (count, width, columns) that all modules of the group share."""
    generator = torch.Generator().manual_seed(seeds.derive(seed, "sketch", group.modules[0]))
    probe = torch.randn(group.width, SKETCH_COLUMNS, generator=generator, dtype=dtype)
    return probe.expand(group.count, -1, -1)


def _seen(a: Tensor, probe: Tensor | None) -> Tensor:
    """Return what the probe sees of ``a``; all of it without a probe."""
    return a if probe is None else torch.bmm(a, probe)


def _add_ledger(
    to: Tensor, group: _Group, ledger: Mapping[str, Tensor], probe: Tensor | None, sign: float
) -> None:
    """Add what the probe sees of a ledger's products, times ``sign``, to ``to``, float64 (count, out, columns)."""
    for place, module in enumerate(group.modules):
        if f"{module}.A" in ledger:
            a, b = ledger[f"{module}.A"], ledger[f"{module}.B"]
            to[place] += sign * (b @ (a if probe is None else a @ probe[place].to(a.dtype))).double()


def _told(name: str, error_name: str, lost: Tensor, moved: Tensor, *, exact: bool) -> dict[str, float]:
    """Return a ratio of norms from squares by column and, from a sketch, its standard error."""
    ratio = math.sqrt(float(lost.sum() / moved.sum()))
    return {name: ratio} if exact else {name: ratio, error_name: ratio * _ratio_error(lost, moved)}


def _ratio_error(numerator: Tensor, denominator: Tensor) -> float:
    """Return the relative standard error of sqrt(sum numerator / sum denominator) over paired columns."""
    count = len(numerator)
    relative = (
        numerator / numerator.mean() - denominator / denominator.mean() if float(numerator.sum()) > 0 else None
    )
    return 0.0 if relative is None else 0.5 * float(relative.std()) / math.sqrt(count)
