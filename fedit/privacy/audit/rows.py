"""Which rows are compared: trained on or held out, of the same categories or owners in the same numbers."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from fedit import seeds
from fedit.data.examples import Example, row_id
from fedit.data.partition import find_scheme
from fedit.job import Job

FEWEST = 10
"""With fewer rows of either kind nothing is said."""


@dataclass(frozen=True, slots=True)
class Compared:
    """Rows that were trained on, and as many that were not, each like one of the others in category or owner."""

    members: list[Example]
    others: list[Example]

    @property
    def all(self) -> list[Example]:
        """Members first."""
        return [*self.members, *self.others]


def compared(job: Job, trained: Collection[str], most: int, *, client: str | None = None) -> Compared:
    """Return at most ``most`` rows of either kind.

    trained: ids of the rows that were trained on; client: whose upload is attacked; None: the model of all.
    """
    planted = {row_id(canary.row) for canary in job.canaries}
    holders = job.seen if client is None else [client]
    unique = {row_id(row): row for holder in holders for row in job.clients[holder]}
    members = [row for name, row in unique.items() if name in trained and name not in planted]
    others = _with_target(job, [row for row in job.corpus.held_out if row_id(row) not in unique])
    by_owner = find_scheme(job.config.partitioner).needs == "owner"
    kind: Callable[[Example], str | None] = (lambda e: e.owner) if by_owner else (lambda e: e.category)
    seed = seeds.derive(job.config.seed, "audit", "rows", client or "")
    return matched(members, others, kind, most, seed)


def matched(
    members: Sequence[Example],
    others: Sequence[Example],
    kind: Callable[[Example], str | None],
    most: int,
    seed: int,
) -> Compared:
    """Return as many members as others of every kind, drawn by the seed, so that kinds do not count."""
    rng = np.random.default_rng(seed)
    pairs: list[tuple[Example, Example]] = []
    for name in sorted({str(kind(row)) for row in others}):
        sides = [[row for row in rows if str(kind(row)) == name] for rows in (members, others)]
        drawn = [[side[i] for i in rng.permutation(len(side)).tolist()] for side in sides]
        pairs += zip(*drawn, strict=False)
    chosen = sorted(rng.permutation(len(pairs))[:most].tolist())
    return Compared([pairs[i][0] for i in chosen], [pairs[i][1] for i in chosen])


def _with_target(job: Job, rows: Sequence[Example]) -> list[Example]:
    """Return the rows whose answer was not cut away."""
    return [row for row, own in zip(rows, job.tokens(rows), strict=True) if own.supervised[1:].any()]
