"""FedAdagrad: Adagrad on the server (Reddi et al., 2021, arXiv:2003.00295).

"Adaptive Federated Optimization."

The second moment is the sum of all rounds' squares, so that steps only ever get shorter. The moments live in
the coordinates of the factors.
"""

from dataclasses import dataclass
from typing import ClassVar

from fedit.strategies import adaptive
from fedit.strategies.adaptive import Tau
from fedit.strategies.base import Strategy
from fedit.types import LocalTraining, ServerState
from fedit.updates import Updates


@dataclass(frozen=True)
class FedAdagrad(Strategy):
    """Step along the mean update, every entry divided by the root of its summed squares.

    server_lr: most that an entry moves in a round, about.
    beta1: share of the last round's first moment that is kept.
    tau: adaptivity; updates much smaller are not rescaled; "auto": their size in the first round.
    """

    takes_any_tensors: ClassVar[bool] = True

    server_lr: float = 1e-3
    beta1: float = 0.0
    tau: Tau = 1e-3

    def aggregate(self, server: ServerState, updates: Updates) -> ServerState:
        return adaptive.step(
            server,
            updates.mean().delta,
            lambda v, squares: v + squares,
            server_lr=self.server_lr,
            beta1=self.beta1,
            tau=self.tau,
        )

    def check(self, training: LocalTraining) -> None:
        adaptive.check("fedadagrad", training, server_lr=self.server_lr, beta1=self.beta1, tau=self.tau)
