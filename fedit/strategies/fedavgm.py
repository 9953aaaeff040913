"""FedAvgM: federated averaging with server momentum (Hsu, Qi and Brown, 2019, arXiv:1909.06335).

"Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification."

v = beta v + mean delta;  adapter += server_lr v.

The momentum lives in the coordinates of the factors.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

from fedit import tensors
from fedit.strategies import options
from fedit.strategies.base import Strategy
from fedit.types import LocalTraining, ServerState
from fedit.updates import Updates


@dataclass(frozen=True)
class FedAvgM(Strategy):
    """Give the mean update momentum on the server.

    beta: share of the last round's momentum that is kept; 0 is FedAvg.
    server_lr: step along the momentum; updates that agree for long move by server_lr / (1 - beta) times the mean.
    """

    takes_any_tensors: ClassVar[bool] = True

    beta: float = 0.9
    server_lr: float = 1.0

    def aggregate(self, server: ServerState, updates: Updates) -> ServerState:
        delta = updates.mean().delta
        momentum = tensors.add(delta, server.memory, self.beta) if server.memory else delta
        return replace(server, adapter=tensors.add(server.adapter, momentum, self.server_lr), memory=momentum)

    def check(self, training: LocalTraining) -> None:
        options.positive("fedavgm", server_lr=self.server_lr)
        options.decays("fedavgm", beta=self.beta)
