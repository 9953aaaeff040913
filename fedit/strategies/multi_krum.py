"""Multi-Krum: the mean of the clients with the best Krum scores (Blanchard et al., 2017, arXiv:1703.02757)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from fedit import robust
from fedit.errors import ConfigError
from fedit.screening import admit, combine, refuse_bad_screen, refuse_small_cohort
from fedit.strategies.base import Strategy
from fedit.types import LocalTraining, ServerState
from fedit.updates import Updates


@dataclass(frozen=True)
class MultiKrum(Strategy):
    """Average the factors, as FedIT does, of the clients that Krum scores best by the changes of the weights.

    max_attackers:     f, clients of a cohort that may be hostile; a cohort needs 2 f + 3.
    select:            clients that are averaged; 0: all but f of those that delivered.
    max_norm:          updates of more than this many times the median norm are rejected; 0 rejects none.
    reject_duplicates: whether of updates that are equal bit by bit only one counts.
    weight_cap:        0: all weigh the same; else the announced weight, up to this many times the median.
    """

    max_attackers: int = 1
    select: int = 0
    max_norm: float = 10.0
    reject_duplicates: bool = True
    weight_cap: float = 0.0

    def aggregate(self, server: ServerState, updates: Updates) -> ServerState:
        members = admit(
            updates,
            attackers=self.max_attackers,
            least=_least,
            max_norm=self.max_norm,
            reject_duplicates=self.reject_duplicates,
            weight_cap=self.weight_cap,
        )
        most = len(members) - members.attackers
        chosen = robust.krum_order(members.squares, members.attackers)[: min(self.select or most, most)]
        weights = torch.zeros_like(members.weights)
        weights[chosen] = members.weights[chosen]
        return replace(server, adapter=combine(server.adapter, members, weights, updates))

    def check(self, training: LocalTraining) -> None:
        if self.select < 0:
            raise ConfigError(f"option 'select' of strategy 'multi_krum' is {self.select}; expected 0 or more.")
        refuse_bad_screen("multi_krum", self.max_norm, self.weight_cap)

    def check_cohort(self, size: int, clients: Sequence[str]) -> None:
        refuse_small_cohort("multi_krum", size, self.max_attackers, _least(self.max_attackers))
        if self.select > size - self.max_attackers:
            raise ConfigError(
                f"option 'select' of strategy 'multi_krum' is {self.select}; expected at most "
                f"{size - self.max_attackers}, the {size} clients of a round without max_attackers."
            )


def _least(attackers: int) -> int:
    return 2 * attackers + 3 if attackers else 1
