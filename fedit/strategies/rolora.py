"""RoLoRA: rounds that train B take turns with rounds that train A (Chen et al., 2024/2025, arXiv:2502.01755).

The factor that a round does not train is the same for everybody, so every round's mean is exact: the product
of the means is the mean of the products (arXiv:2409.02346 is the same idea). B goes first: while B is zero, A
has no gradient.
"""

from dataclasses import dataclass

from fedit.errors import ConfigError
from fedit.strategies.base import Strategy
from fedit.types import LocalTraining, ServerState


@dataclass(frozen=True)
class RoLoRA(Strategy):
    """Train and average B in odd phases, A in even ones.

    period: rounds of a phase.
    """

    period: int = 1

    def sends(self, name: str, server: ServerState) -> bool:
        # Both factors, since a client may have missed rounds; but A is what the seed gives until its first phase
        # has begun.
        return server.round > self.period or name.endswith(".B")

    def trains(self, name: str, round: int) -> bool:
        phase = (round - 1) // self.period
        return name.endswith(".A" if phase % 2 else ".B")

    def check(self, training: LocalTraining) -> None:
        if self.period < 1:
            raise ConfigError(f"option 'period' of strategy 'rolora' is {self.period}; expected 1 or more.")
