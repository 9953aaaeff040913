"""How sure is what clients may expect of an arm? Rows are drawn anew, and with them every client's loss."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from fedit.evaluation.intervals import Array, Statistic
from fedit.study.items import Items


def _mean(losses: Array) -> Array:
    return np.asarray(np.nanmean(losses, axis=1))


def _worst_decile(losses: Array) -> Array:
    """Return the mean of the worst tenth of the clients that have a loss, rounded up."""
    worst_first = -np.sort(-losses, axis=1)  # clients without a loss come last
    clients = np.isfinite(losses).sum(axis=1)
    tenth = -(-clients // 10)
    sums = np.nancumsum(worst_first, axis=1)
    return np.asarray(sums[np.arange(len(sums)), tenth - 1] / tenth)


SUMMARIES: Mapping[str, Callable[[Array], Array]] = {"mean": _mean, "worst_decile": _worst_decile}
"""What is said of all clients' losses, (resamples, clients), as `fedit.data.statistics.summary` does."""


@dataclass(frozen=True, slots=True)
class ClientTable:
    """An arm's held-out rows at one seed as its clients see them.

    nll, tokens: (rows, labels), a row's own in the column of its label, its owner or its category, else 0.
    mix:         (clients, labels), what a label weighs in a client's loss.
    """

    nll: Array
    tokens: Array
    mix: Array

    @classmethod
    def of(
        cls, items: Items, sizes: Mapping[str, float], category_counts: Mapping[str, Mapping[str, int]]
    ) -> "ClientTable | None":
        """Return the table; None where no client has a loss, or the arm diverged.

        sizes: rows of each client. Where held-out rows have owners, a client's loss is that of its own rows, else
        the mean of its categories', weighted by ``category_counts`` (as `per_client_loss`).
        """
        owned = any(owner in sizes for owner in items.owners)
        names = items.owners if owned else items.categories
        measured = [(name, tokens) for name, tokens in zip(names, items.tokens, strict=True)]
        labels = sorted({name for name, tokens in measured if name is not None and tokens})
        if not labels or not np.isfinite(items.nll).all():
            return None
        place = {label: number for number, label in enumerate(labels)}
        tables = np.zeros((2, len(names), len(labels)))
        for row, name in enumerate(names):
            if name in place:
                tables[:, row, place[name]] = items.nll[row], items.tokens[row]
        if owned:
            mix = np.eye(len(labels))
        else:
            counts = [[own.get(label, 0) for label in labels] for own in category_counts.values()]
            mix = np.array([own for own in counts if any(own)], dtype=np.float64)
        return cls(tables[0], tables[1], mix) if len(mix) else None

    def losses(self, picked: Array) -> Array:
        """Return every client's loss, (resamples, clients), NaN without any of its labels.

        picked: (resamples, rows), places of the rows that are drawn.
        """
        counts = np.zeros((len(picked), len(self.nll)))
        np.add.at(counts, (np.arange(len(picked))[:, np.newaxis], picked.astype(np.int64)), 1)
        sums, tokens = counts @ self.nll, counts @ self.tokens
        known = tokens > 0
        of_label = np.divide(sums, tokens, out=np.zeros_like(sums), where=known)
        weights = known.astype(np.float64) @ self.mix.T
        losses = np.divide(of_label @ self.mix.T, weights, out=np.full(weights.shape, np.nan), where=weights > 0)
        return np.asarray(losses)

    def statistic(self, name: str, other: "ClientTable | None" = None) -> Statistic:
        """Return one of `SUMMARIES` of drawn rows; with ``other``, less the other arm's on the same rows."""
        summary = SUMMARIES[name]
        if other is None:
            return lambda picked: summary(self.losses(picked))
        return lambda picked: np.asarray(summary(self.losses(picked)) - summary(other.losses(picked)))

    @property
    def places(self) -> Array:
        """What is drawn from: the places of all rows, (rows,)."""
        return np.arange(len(self.nll), dtype=np.float64)
