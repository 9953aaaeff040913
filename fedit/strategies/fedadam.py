"""FedAdam: Adam on the server (Reddi et al., 2021, arXiv:2003.00295).

"Adaptive Federated Optimization."

The second moment is a moving average of the squares. The moments live in the coordinates of the
factors.
"""

from dataclasses import dataclass
from typing import ClassVar

from fedit.strategies import adaptive, options
from fedit.strategies.adaptive import Tau
from fedit.strategies.base import Strategy
from fedit.types import LocalTraining, ServerState
from fedit.updates import Updates


@dataclass(frozen=True)
class FedAdam(Strategy):
    """Step along the first moment of the mean updates, every entry divided by the root of its second.

    server_lr: most that an entry moves in a round, about.
    beta1: share of the last round's first moment that is kept.
    beta2: share of the last round's second moment that is kept.
    tau: adaptivity; updates much smaller are not rescaled; "auto": their size in the first round.
    bias_correction: whether moments start at 0 and are divided by 1 - beta^t; the paper does not.
    """

    takes_any_tensors: ClassVar[bool] = True

    server_lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.99
    tau: Tau = 1e-3
    bias_correction: bool = False

    def aggregate(self, server: ServerState, updates: Updates) -> ServerState:
        return adaptive.step(
            server,
            updates.mean().delta,
            lambda v, squares: self.beta2 * v + (1 - self.beta2) * squares,
            server_lr=self.server_lr,
            beta1=self.beta1,
            tau=self.tau,
            corrected=self.beta2 if self.bias_correction else None,
        )

    def check(self, training: LocalTraining) -> None:
        options.decays("fedadam", beta2=self.beta2)
        adaptive.check(
            "fedadam",
            training,
            server_lr=self.server_lr,
            beta1=self.beta1,
            tau=self.tau,
            beta2=None if self.bias_correction else self.beta2,
        )
