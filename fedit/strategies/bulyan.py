"""Bulyan: Krum chooses clients one by one, then coordinates near the median count (arXiv:1802.07927).

El Mhamdi, Guerraoui, Rouault: The hidden vulnerability of distributed learning in Byzantium, 2018.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fedit import robust
from fedit.screening import (
    admit,
    coordinates,
    moved_by,
    refuse_bad_screen,
    refuse_small_cohort,
    refuse_two_factors,
)
from fedit.strategies.base import Strategy
from fedit.types import LocalTraining, ServerState
from fedit.updates import Updates


@dataclass(frozen=True)
class Bulyan(Strategy):
    """Choose K - 2 f clients by Krum, then move every entry of B by the mean of the moves nearest to their median.

    Only B is trained and sent: A stays frozen as drawn. Were both factors trained, a coordinate of B would come
    from one client and one of A from another.

    factor:            B, the one factor that is trained.
    max_attackers:     f, clients of a cohort that may be hostile; a cohort needs 4 f + 3.
    fast:              choose by the scores of one pass, not anew after each choice as the paper does.
    max_norm:          updates of more than this many times the median norm are rejected; 0 rejects none.
    reject_duplicates: whether of updates that are equal bit by bit only one counts.
    """

    factor: str = "B"
    max_attackers: int = 1
    fast: bool = False
    max_norm: float = 10.0
    reject_duplicates: bool = True

    def trains(self, name: str, round: int) -> bool:
        return name.endswith(".B")

    def sends(self, name: str, server: ServerState) -> bool:
        return name.endswith(".B")  # A stays as the run's seed drew it

    def aggregate(self, server: ServerState, updates: Updates) -> ServerState:
        members = admit(
            updates,
            attackers=self.max_attackers,
            least=_least,
            max_norm=self.max_norm,
            reject_duplicates=self.reject_duplicates,
        )
        chosen = members.only(robust.bulyan_selection(members.squares, members.attackers, fast=self.fast))
        count = len(chosen) - 2 * members.attackers
        vector = robust.by_coordinate(coordinates(chosen), lambda values: robust.mean_near_median(values, count))
        return replace(server, adapter=moved_by(server.adapter, members.updates[0].delta, vector))

    def check(self, training: LocalTraining) -> None:
        refuse_two_factors("bulyan", self.factor)
        refuse_bad_screen("bulyan", self.max_norm)

    def check_cohort(self, size: int, clients: Sequence[str]) -> None:
        refuse_small_cohort("bulyan", size, self.max_attackers, _least(self.max_attackers))


def _least(attackers: int) -> int:
    return 4 * attackers + 3 if attackers else 1
