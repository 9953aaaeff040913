"""FedEx-LoRA: Exact Aggregation for Federated and Efficient Fine-Tuning of Foundation Models.

Raghav Singhal, Kaustubh Ponkshe and Praneeth Vepakomma, 2024, arXiv:2410.09432. The server averages A and B as
federated averaging does; what that loses, sum_k p_k (B_k - B)(A_k - A), is added to the frozen part of the model,
so that the model of the next round is the mean of the clients' models.
"""

from dataclasses import dataclass, replace

from fedit import lowrank, tensors
from fedit.errors import ConfigError
from fedit.strategies.base import Strategy
from fedit.types import LocalTraining, ServerState
from fedit.updates import Updates


@dataclass(frozen=True)
class FedExLoRA(Strategy):
    """Move to the mean of the clients' factors and put what that loses of their products into the base.

    residual_rank: rank that a round's residual is cut to, its largest singular values kept (the paper's
                   inexact variant); 0 keeps all of it.
    tolerance:     relative error up to which the ledger is kept at a lower rank.
    """

    residual_rank: int = 0
    tolerance: float = 1e-6

    @property
    def keeps_basis(self) -> bool:
        return False

    def aggregate(self, server: ServerState, updates: Updates) -> ServerState:
        # Deviation: weighted by the clients' shares of the data, where the paper's code takes every client alike.
        mean, drifts = tensors.RunningMean(), lowrank.Stack(server.scale)
        for update in updates:
            trained = lowrank.rescale(updates.trained(update), update.scale, server.scale)
            if tensors.layout_of(trained) is not tensors.layout_of(server.adapter):
                raise ConfigError(
                    f"client '{update.client_id}' has an adapter of another rank than the server, and factors of "
                    "several ranks have no mean; use strategy flexlora, flora or fedmomentum."
                )
            mean.add(trained, update.weight)
            # Around the server's factors instead of the mean, which is not known yet: the covariance is the same.
            drifts.add(tensors.sub(trained, server.adapter), update.weight, server.scale)
        drifts.subtract(tensors.sub(mean.value(), server.adapter))
        residual, sizes = drifts.mean(), drifts.sizes()
        if self.residual_rank:
            residual = lowrank.compress(residual, self.tolerance, self.residual_rank, sizes)
        # Deviation: the base keeps its precision; residuals stand beside it in float32, compressed together.
        ledger = lowrank.plus(server.ledger, residual, server.scale, self.tolerance, sizes)
        return replace(server, adapter=mean.value(), ledger=ledger)

    def check(self, training: LocalTraining) -> None:
        if self.residual_rank < 0:
            raise ConfigError(
                f"option 'residual_rank' of strategy 'fedex_lora' is {self.residual_rank}; expected 0 or more."
            )
        lowrank.check_tolerance("fedex_lora", self.tolerance)
