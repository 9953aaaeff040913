"""FedSVD: Adaptive Orthogonalization for Private Federated Learning with LoRA.

Seanie Lee and others, 2025, arXiv:2505.12805.

Clients train B under an A that all of them share, so that the mean of B gives the mean of the products exactly.
Between rounds the server writes their product anew with orthonormal rows of A along its principal directions.
"""

from dataclasses import dataclass, replace

from fedit import lora, lowrank, tensors
from fedit.errors import ConfigError
from fedit.strategies import options
from fedit.strategies.base import Strategy
from fedit.types import LocalTraining, ServerState
from fedit.updates import Updates


@dataclass(frozen=True)
class FedSVD(Strategy):
    """Average B alone and renew A as the principal directions of the product.

    period: rounds from one renewal of A to the next.
    """

    period: int = 1

    @property
    def keeps_basis(self) -> bool:
        return False

    def aggregate(self, server: ServerState, updates: Updates) -> ServerState:
        adapter = tensors.add(server.adapter, updates.mean().delta)
        if (server.round + 1) % self.period:
            return replace(server, adapter=adapter)
        # A product of zero has no directions: A stays as it is.
        moved = {
            f"{module}.{factor}": adapter[f"{module}.{factor}"]
            for module in lora.modules(adapter)
            if bool(adapter[f"{module}.B"].any())
            for factor in "AB"
        }
        renewed = dict(adapter)
        for module, spectrum in lowrank.decompose(moved).items():
            rank = len(adapter[f"{module}.A"])
            renewed[f"{module}.A"], renewed[f"{module}.B"] = lowrank.orthonormal(spectrum, rank)
        return replace(server, adapter=tensors.flatten(renewed))

    def trains(self, name: str, round: int) -> bool:
        return name.endswith(".B")

    def check(self, training: LocalTraining) -> None:
        options.fresh_moments("fedsvd", training)
        if self.period < 1:
            raise ConfigError(f"option 'period' of strategy 'fedsvd' is {self.period}; expected 1 or more.")
