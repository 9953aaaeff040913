"""FedYogi: Yogi on the server (Reddi et al., 2021, arXiv:2003.00295).

"Adaptive Federated Optimization."

The second moment changes by as much as the new square says, so that it forgets large ones slowly.
The moments live in the coordinates of the factors.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from fedit.strategies import adaptive, options
from fedit.strategies.adaptive import Tau
from fedit.strategies.base import Strategy
from fedit.types import LocalTraining, ServerState
from fedit.updates import Updates


@dataclass(frozen=True)
class FedYogi(Strategy):
    """FedAdam whose second moment moves by at most (1 - beta2) of the new square, up or down.

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
            lambda v, squares: v - (1 - self.beta2) * squares * torch.sign(v - squares),
            server_lr=self.server_lr,
            beta1=self.beta1,
            tau=self.tau,
            corrected=self.beta2 if self.bias_correction else None,
        )

    def check(self, training: LocalTraining) -> None:
        options.decays("fedyogi", beta2=self.beta2)
        adaptive.check(
            "fedyogi",
            training,
            server_lr=self.server_lr,
            beta1=self.beta1,
            tau=self.tau,
            beta2=None if self.bias_correction else self.beta2,
        )
