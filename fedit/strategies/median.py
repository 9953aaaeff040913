"""Coordinate-wise median (Yin et al., 2018, arXiv:1803.01498)."""

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
class Median(Strategy):
    """Move every entry of B by the median of the clients' moves.

    Only B is trained and sent: A stays frozen as drawn. Were both factors trained, a coordinate of B would come
    from one client and one of A from another.

    factor:            B, the one factor that is trained.
    max_attackers:     f, clients of a cohort that may be hostile; a cohort needs 2 f + 1.
    max_norm:          updates of more than this many times the median norm are rejected; 0 rejects none.
    reject_duplicates: whether of updates that are equal bit by bit only one counts.
    """

    factor: str = "B"
    max_attackers: int = 1
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
        vector = robust.by_coordinate(coordinates(members), robust.median)
        return replace(server, adapter=moved_by(server.adapter, members.updates[0].delta, vector))

    def check(self, training: LocalTraining) -> None:
        refuse_two_factors("median", self.factor)
        refuse_bad_screen("median", self.max_norm)

    def check_cohort(self, size: int, clients: Sequence[str]) -> None:
        refuse_small_cohort("median", size, self.max_attackers, _least(self.max_attackers))


def _least(attackers: int) -> int:
    return 2 * attackers + 1
