"""FedIT: federated averaging of LoRA factors (Zhang et al., 2023, arXiv:2305.05644, algorithm 1).

Each round the server averages the clients' A and their B apart, weighted by their share
of the data. The product of the means is not the mean of the products; the difference,
sum_k p_k (B_k - B)(A_k - A), is logged every round as the aggregation bias.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

from fedit import tensors
from fedit.errors import ConfigError
from fedit.strategies.base import Strategy
from fedit.types import LocalTraining, ServerState
from fedit.updates import Updates


@dataclass(frozen=True)
class FedIT(Strategy):
    """Move to the weighted mean of the clients' adapters.

    server_lr: step towards the mean; the paper's 1 goes all the way, larger overshoots.
    """

    takes_any_tensors: ClassVar[bool] = True

    server_lr: float = 1.0

    def aggregate(self, server: ServerState, updates: Updates) -> ServerState:
        return replace(server, adapter=tensors.add(server.adapter, updates.mean().delta, self.server_lr))

    def check(self, training: LocalTraining) -> None:
        if self.server_lr <= 0:
            raise ConfigError(f"option 'server_lr' of strategy 'fedit' is {self.server_lr}; expected more than 0.")
