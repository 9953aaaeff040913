"""Krum: the adapter of the client that is nearest to its neighbours (Blanchard et al., 2017, arXiv:1703.02757)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from fedit import robust
from fedit.screening import admit, combine, refuse_bad_screen, refuse_small_cohort
from fedit.strategies.base import Strategy
from fedit.types import LocalTraining, ServerState
from fedit.updates import Updates


@dataclass(frozen=True)
class Krum(Strategy):
    """Take over one client's adapter: the one with the least squared distance to its K - f - 2 nearest others.

    Distances are those between the changes of the weights, not of the factors.

    max_attackers:     f, clients of a cohort that may be hostile; a cohort needs 2 f + 3.
    max_norm:          updates of more than this many times the median norm are rejected; 0 rejects none.
    reject_duplicates: whether of updates that are equal bit by bit only one counts.
    """

    max_attackers: int = 1
    max_norm: float = 10.0
    reject_duplicates: bool = True

    def aggregate(self, server: ServerState, updates: Updates) -> ServerState:
        members = admit(
            updates,
            attackers=self.max_attackers,
            least=_least,
            max_norm=self.max_norm,
            reject_duplicates=self.reject_duplicates,
        )
        weights = torch.zeros_like(members.weights)
        weights[robust.krum_order(members.squares, members.attackers)[0]] = 1.0
        return replace(server, adapter=combine(server.adapter, members, weights, updates))

    def check(self, training: LocalTraining) -> None:
        refuse_bad_screen("krum", self.max_norm)

    def check_cohort(self, size: int, clients: Sequence[str]) -> None:
        refuse_small_cohort("krum", size, self.max_attackers, _least(self.max_attackers))


def _least(attackers: int) -> int:
    return 2 * attackers + 3 if attackers else 1
