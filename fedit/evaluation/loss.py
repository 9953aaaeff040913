"""Held-out loss of the answers: overall and per category."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedit.data.tokens import TokenRow
from fedit.model.adapted import AdaptedModel


@dataclass(frozen=True, slots=True)
class LossReport:
    """Losses in nats per supervised token; ``example_loss`` is the mean of the rows' own means.

    per_category: category -> its loss.
    """

    loss: float
    example_loss: float
    token_accuracy: float
    tokens: int
    examples: int
    per_category: Mapping[str, float] = field(default_factory=dict)

    @property
    def perplexity(self) -> float:
        """exp(loss), capped where it would overflow."""
        return math.exp(min(self.loss, 700.0))


@dataclass(frozen=True, slots=True)
class RowLosses:
    """What each row lost; rows that were not measured have zeros, so that shares add up to the whole.

    sums: float64 (rows,), nats; counts: int64 (rows,), targets; correct: int64 (rows,), likeliest targets.
    """

    sums: Tensor
    counts: Tensor
    correct: Tensor

    def __add__(self, other: "RowLosses") -> "RowLosses":
        # Exact: a row is in one pass, and a pass in one share.
        return RowLosses(self.sums + other.sums, self.counts + other.counts, self.correct + other.correct)

    def report(self, categories: Sequence[str | None] | None = None) -> LossReport:
        """Return the means; rows without a supervised token do not count.

        categories: one per row; None: no per-category losses.
        """
        total = int(self.counts.sum())
        counted = self.counts > 0
        per_row = self.sums[counted] / self.counts[counted]
        return LossReport(
            loss=float(self.sums.sum()) / max(total, 1),
            example_loss=float(per_row.mean()) if len(per_row) else 0.0,
            token_accuracy=int(self.correct.sum()) / max(total, 1),
            tokens=total,
            examples=int(counted.sum()),
            per_category=_by_category(self.sums, self.counts, categories),
        )


def row_losses(
    model: AdaptedModel,
    adapters: Sequence[Mapping[str, Tensor]],
    rows: Sequence[Sequence[TokenRow]],
    share: tuple[int, int] = (0, 1),
) -> list[RowLosses]:
    """Measure every adapter on its ``rows``: those of every n-th pass, from the k-th on, for ``share`` (k, n).

    On the fast path rows of several adapters share a pass where those of one do not fill it. How rows are cut into
    passes depends on the rows alone, not on the share.
    """
    found = [_Sums(len(own)) for own in rows]
    with torch.no_grad():
        for members in cut_into_passes(model, rows)[share[0] :: share[1]]:
            chosen = [[rows[index][i] for i in own] for index, own in members]
            if model.fast is not None:
                used = [adapters[index] for index, _ in members]
                scores, likeliest, owners = model.stacked_target_scores(chosen, used)
            else:
                ((index, _),) = members
                model.load(adapters[index])
                batch = model.collate(chosen[0])
                (scores, likeliest), owners = model.target_scores(batch), batch.row_of_target
            places = [(index, i) for index, own in members for i in own]
            _add(found, places, scores, likeliest, owners.cpu())
    return [RowLosses(own.sums, own.counts, own.correct) for own in found]


class _Sums:
    """What is being added up for the rows of one adapter."""

    def __init__(self, rows: int) -> None:
        self.sums = torch.zeros(rows, dtype=torch.float64)
        self.counts = torch.zeros(rows, dtype=torch.int64)
        self.correct = torch.zeros(rows, dtype=torch.int64)


def _add(
    found: Sequence[_Sums],
    places: Sequence[tuple[int, int]],
    scores: Tensor,
    likeliest: Tensor,
    owners: Tensor,
) -> None:
    """Add a pass's targets to the rows (adapter, row) at ``places``; owners: which of them each target is of."""
    size = len(places)
    losses = torch.zeros(size, dtype=torch.float64).index_add_(0, owners, -scores.double().cpu())
    counts = torch.zeros(size, dtype=torch.int64).index_add_(0, owners, torch.ones_like(owners))
    correct = torch.zeros(size, dtype=torch.int64).index_add_(0, owners, likeliest.to("cpu", torch.int64))
    for place, (index, row) in enumerate(places):
        own = found[index]
        own.sums[row], own.counts[row], own.correct[row] = losses[place], counts[place], correct[place]


def cut_into_passes(model: AdaptedModel, rows: Sequence[Sequence[TokenRow]]) -> list[list[tuple[int, list[int]]]]:
    """Return passes of (adapter, its rows): the passes that each would make alone, small ones put together."""
    passes: list[list[tuple[int, list[int]]]] = []
    room = 0
    for index, own in enumerate(rows):
        measured = [i for i, row in enumerate(own) if row.supervised[1:].any()]
        for chosen in model.passes([own[i] for i in measured], None):
            members = [measured[i] for i in chosen]
            tokens = sum(len(own[i].ids) for i in members)
            together = passes and model.fast is not None and tokens <= room and passes[-1][-1][0] != index
            if not together:
                passes.append([])
                room = model.tokens_per_pass
            passes[-1].append((index, members))
            room -= tokens
    return passes


def _by_category(sums: Tensor, counts: Tensor, categories: Sequence[str | None] | None) -> dict[str, float]:
    totals: dict[str, tuple[float, int]] = {}
    for total, count, category in zip(
        sums.tolist(), counts.tolist(), categories or [None] * len(sums), strict=True
    ):
        if category is not None and count:
            nll, tokens = totals.get(category, (0.0, 0))
            totals[category] = (nll + total, tokens + count)
    return {category: nll / tokens for category, (nll, tokens) in sorted(totals.items())}
