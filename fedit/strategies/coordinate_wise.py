"""Coordinate-wise median and trimmed mean (Yin et al., 2018, arXiv:1803.01498).

Byzantine-robust distributed learning: towards optimal statistical rates.

Only B is trained and sent: A stays frozen as drawn. Were both factors trained, a coordinate of B would come
from one client and one of A from another.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from fedit import robust
from fedit.screening import (
    Members,
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

    factor:            B, the one factor that is trained.
    max_attackers:     f, clients of a cohort that may be hostile; a cohort needs 2 f + 1.
    max_norm:          updates of more than this many times the median norm are rejected; 0 rejects none.
    reject_duplicates: whether of updates that are equal bit by bit only one counts.
    """

    factor: str = "B"
    max_attackers: int = 1
    max_norm: float = 10.0
    reject_duplicates: bool = True

    def sends(self, name: str, server: ServerState) -> bool:
        return name.endswith(".B")  # A stays as the run's seed drew it

    def trains(self, name: str, round: int) -> bool:
        return name.endswith(".B")

    def aggregate(self, server: ServerState, updates: Updates) -> ServerState:
        return _move(server, _admit(self, updates), robust.median)

    def check(self, training: LocalTraining) -> None:
        _check("median", self)

    def check_cohort(self, size: int, clients: Sequence[str]) -> None:
        refuse_small_cohort("median", size, self.max_attackers, _least(self.max_attackers))


@dataclass(frozen=True)
class TrimmedMean(Strategy):
    """Move every entry of B by the mean of the clients' moves without the f largest and the f smallest.

    factor:            B, the one factor that is trained.
    max_attackers:     f, clients of a cohort that may be hostile; a cohort needs 2 f + 1.
    max_norm:          updates of more than this many times the median norm are rejected; 0 rejects none.
    reject_duplicates: whether of updates that are equal bit by bit only one counts.
    """

    factor: str = "B"
    max_attackers: int = 1
    max_norm: float = 10.0
    reject_duplicates: bool = True

    def sends(self, name: str, server: ServerState) -> bool:
        return name.endswith(".B")  # A stays as the run's seed drew it

    def trains(self, name: str, round: int) -> bool:
        return name.endswith(".B")

    def aggregate(self, server: ServerState, updates: Updates) -> ServerState:
        members = _admit(self, updates)
        return _move(server, members, lambda values: robust.trimmed_mean(values, members.attackers))

    def check(self, training: LocalTraining) -> None:
        _check("trimmed_mean", self)

    def check_cohort(self, size: int, clients: Sequence[str]) -> None:
        refuse_small_cohort("trimmed_mean", size, self.max_attackers, _least(self.max_attackers))


def _admit(rule: Median | TrimmedMean, updates: Updates) -> Members:
    return admit(
        updates,
        attackers=rule.max_attackers,
        least=_least,
        max_norm=rule.max_norm,
        reject_duplicates=rule.reject_duplicates,
    )


def _move(server: ServerState, members: Members, rule: Callable[[Tensor], Tensor]) -> ServerState:
    vector = robust.by_coordinate(coordinates(members), rule)
    return replace(server, adapter=moved_by(server.adapter, members.updates[0].delta, vector))


def _check(name: str, rule: Median | TrimmedMean) -> None:
    refuse_two_factors(name, rule.factor)
    refuse_bad_screen(name, rule.max_norm)


def _least(attackers: int) -> int:
    return 2 * attackers + 1
