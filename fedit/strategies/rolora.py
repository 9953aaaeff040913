"""RoLoRA: rounds that train B take turns with rounds that train A (Chen et al., 2024/2025, arXiv:2502.01755).

The factor that a round does not train is the same for everybody, so every round's mean is exact: the product
of the means is the mean of the products (arXiv:2409.02346 is the same idea). B goes first: while B is zero, A
has no gradient.
"""

from dataclasses import dataclass

from fedit.errors import ConfigError
from fedit.strategies.base import Strategy
from fedit.types import Broadcast, ClientInfo, LocalTraining, ServerState


@dataclass(frozen=True)
class RoLoRA(Strategy):
    """Train and average B in odd phases, A in even ones.

    period: rounds of a phase.
    """

    period: int = 1

    def broadcast(self, server: ServerState, client: ClientInfo) -> Broadcast:
        # Both factors, since a client may have missed rounds; but A is what the seed gives until its first phase
        # has begun.
        trained_a = server.round > self.period
        sent = {name: tensor for name, tensor in server.adapter.items() if trained_a or name.endswith(".B")}
        return Broadcast(sent, server.ledger, scale=server.scale)

    def trains(self, name: str, round: int) -> bool:
        phase = (round - 1) // self.period
        return name.endswith(".A" if phase % 2 else ".B")

    def check(self, training: LocalTraining) -> None:
        if self.period < 1:
            raise ConfigError(f"option 'period' of strategy 'rolora' is {self.period}; expected 1 or more.")
