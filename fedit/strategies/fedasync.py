"""FedAsync: mix every arrival into the adapter at once (Xie et al., 2019, arXiv:1903.03934, algorithm 1).

The server's theta becomes (1 - alpha s(tau)) theta + alpha s(tau) theta_k, where theta_k is what client k ended
with, having started tau server steps ago: a late client pulls back towards where it came from, by less.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

from fedit import tensors
from fedit.errors import ConfigError, NoUpdates, UnknownName
from fedit.strategies.base import Strategy
from fedit.types import LocalTraining, ServerState
from fedit.updates import Updates

DECAYS = ("constant", "polynomial", "hinge")


@dataclass(frozen=True)
class FedAsync(Strategy):
    """Move towards each client's adapter as it arrives, less for those that started long ago.

    mixing: alpha, the share of an arrival that is not late.
    decay: s(tau): constant 1; polynomial (1 + tau)^-a; hinge 1 up to b steps, then 1 / (a (tau - b) + 1).
    a: how fast it falls; the paper's 0.5 for polynomial, 10 for hinge.
    b: steps that hinge forgives; the paper's 4.
    """

    takes_any_tensors: ClassVar[bool] = True

    # Deviation: clients minimise their own loss, without the paper's optional proximal term.
    # Deviation: tau counts the server steps in between: 0 where nobody overtook the client; the paper has 1 then.
    mixing: float = 0.6
    decay: str = "polynomial"
    a: float = 0.5
    b: int = 4

    @property
    def buffer(self) -> int:
        return 1

    def trust(self, staleness: int) -> float:
        """Return s(tau), 1 for a client that is not late."""
        if self.decay == "hinge":
            return 1.0 if staleness <= self.b else 1.0 / (self.a * (staleness - self.b) + 1.0)
        return float((1 + staleness) ** -self.a) if self.decay == "polynomial" else 1.0

    def aggregate(self, server: ServerState, updates: Updates) -> ServerState:
        mean = tensors.RunningMean()
        for update in updates:
            # What is not late started from the server's adapter: its delta is the way there, to the last bit.
            late = update.staleness > 0
            way = tensors.sub(updates.trained(update), server.adapter) if late else update.delta
            mean.add(tensors.scaled(way, self.trust(update.staleness)), update.weight)
        if mean.weight == 0:
            raise NoUpdates("no client delivered a usable update")
        return replace(server, adapter=tensors.add(server.adapter, mean.value(), self.mixing))

    def check(self, training: LocalTraining) -> None:
        if not 0 < self.mixing <= 1:
            raise ConfigError(
                f"option 'mixing' of strategy 'fedasync' is {self.mixing}; expected more than 0, up to 1."
            )
        if self.decay not in DECAYS:
            raise UnknownName("decay of strategy 'fedasync'", self.decay, DECAYS)
        if self.a < 0 or self.b < 0:
            raise ConfigError(
                f"options 'a' and 'b' of strategy 'fedasync' are {self.a}, {self.b}; expected 0 or more."
            )
