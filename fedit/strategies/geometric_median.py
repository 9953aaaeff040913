"""RFA: the smoothed geometric median of updates (Pillutla, Kakade, Harchaoui, 2019, arXiv:1912.13445)."""

from dataclasses import dataclass, replace

from fedit import robust
from fedit.errors import ConfigError
from fedit.screening import admit, combine, refuse_bad_screen
from fedit.strategies.base import Strategy
from fedit.types import LocalTraining, ServerState
from fedit.updates import Updates


@dataclass(frozen=True)
class GeometricMedian(Strategy):
    """Weigh clients by the inverse distance of their change of the weights from the cohort's geometric median.

    Their factors are then averaged with these weights, as FedIT does.

    iterations:        steps of Weiszfeld's method; the paper takes 3.
    smoothing:         smallest distance that is divided by, as a share of the median one; the paper's is 1e-6.
    max_norm:          updates of more than this many times the median norm are rejected; 0 rejects none.
    reject_duplicates: whether of updates that are equal bit by bit only one counts.
    weight_cap:        0: all weigh the same; else the announced weight, up to this many times the median.
    """

    iterations: int = 50
    smoothing: float = 1e-6
    max_norm: float = 10.0
    reject_duplicates: bool = True
    weight_cap: float = 0.0

    def aggregate(self, server: ServerState, updates: Updates) -> ServerState:
        members = admit(
            updates,
            max_norm=self.max_norm,
            reject_duplicates=self.reject_duplicates,
            weight_cap=self.weight_cap,
        )
        weights = robust.geometric_median(
            members.squares, members.weights, smoothing=self.smoothing, iterations=self.iterations
        )
        return replace(server, adapter=combine(server.adapter, members, weights, updates))

    def check(self, training: LocalTraining) -> None:
        if self.iterations < 1:
            raise ConfigError(
                f"option 'iterations' of strategy 'geometric_median' is {self.iterations}; expected at least 1."
            )
        if self.smoothing <= 0:
            raise ConfigError(
                f"option 'smoothing' of strategy 'geometric_median' is {self.smoothing}; expected more than 0."
            )
        refuse_bad_screen("geometric_median", self.max_norm, self.weight_cap)
