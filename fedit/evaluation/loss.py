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


def held_out_loss(
    model: AdaptedModel, rows: Sequence[TokenRow], categories: Sequence[str | None] | None = None
) -> LossReport:
    """Measure the loaded adapter on ``rows``; those without a supervised token do not count.

    categories: one per row; None: no per-category losses.
    """
    return row_losses(model, rows).report(categories)


def row_losses(model: AdaptedModel, rows: Sequence[TokenRow], share: tuple[int, int] = (0, 1)) -> RowLosses:
    """Measure the loaded adapter on the rows of every n-th pass, from the k-th on, for ``share`` (k, n).

    How rows are cut into passes depends on the rows alone, not on the share.
    """
    sums = torch.zeros(len(rows), dtype=torch.float64)
    counts = torch.zeros(len(rows), dtype=torch.int64)
    correct = torch.zeros(len(rows), dtype=torch.int64)
    measured = [i for i, row in enumerate(rows) if row.supervised[1:].any()]
    with torch.no_grad():
        for chosen in model.passes([rows[i] for i in measured], None)[share[0] :: share[1]]:
            members = [measured[i] for i in chosen]
            batch = model.collate([rows[i] for i in members])
            scores, likeliest = model.target_scores(batch)
            owners = torch.tensor(members)[batch.row_of_target.cpu()]
            sums.index_add_(0, owners, -scores.double().cpu())
            counts.index_add_(0, owners, torch.ones_like(owners))
            correct.index_add_(0, owners, likeliest.to("cpu", torch.int64))
    return RowLosses(sums, counts, correct)


def _by_category(sums: Tensor, counts: Tensor, categories: Sequence[str | None] | None) -> dict[str, float]:
    totals: dict[str, tuple[float, int]] = {}
    for total, count, category in zip(
        sums.tolist(), counts.tolist(), categories or [None] * len(sums), strict=True
    ):
        if category is not None and count:
            nll, tokens = totals.get(category, (0.0, 0))
            totals[category] = (nll + total, tokens + count)
    return {category: nll / tokens for category, (nll, tokens) in sorted(totals.items())}
