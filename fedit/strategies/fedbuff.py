"""FedBuff: a server step for every buffer of arrivals (Nguyen et al., 2022, arXiv:2106.06639).

Clients train at their own speed from whatever state they were sent. The server adds s(tau_k) delta_k of every
arrival to a buffer, where tau_k counts the server steps since k's state, and moves by the buffer's mean when it
is full. The discount is applied to what a client sends, so the server needs to see the mean alone.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

from fedit import tensors
from fedit.errors import ConfigError
from fedit.strategies.base import Strategy
from fedit.types import LocalTraining, ServerState
from fedit.updates import Updates


@dataclass(frozen=True)
class FedBuff(Strategy):
    """Step by the mean of a buffer of arrivals, late ones counting less; clients never wait for each other.

    buffer_size: arrivals of a step; the paper's 10.
    exponent: of s(tau) = (1 + tau)^-exponent; the paper's 0.5, larger trusts late arrivals less, 0 alike.
    server_lr: step towards the buffer's mean.
    """

    takes_any_tensors: ClassVar[bool] = True

    # Deviation: arrivals are weighted by ``weighting``, as in synchronous rounds; the paper's weigh alike.
    # A buffer that can no longer fill makes a step of what is in it; who is under way after the last step is not
    # waited for.
    buffer_size: int = 10
    exponent: float = 0.5
    server_lr: float = 1.0

    @property
    def buffer(self) -> int:
        return self.buffer_size

    def discount(self, staleness: int) -> float:
        return float((1 + staleness) ** -self.exponent)

    def aggregate(self, server: ServerState, updates: Updates) -> ServerState:
        return replace(server, adapter=tensors.add(server.adapter, updates.mean().delta, self.server_lr))

    def check(self, training: LocalTraining) -> None:
        if self.buffer_size < 1:
            raise ConfigError(
                f"option 'buffer_size' of strategy 'fedbuff' is {self.buffer_size}; expected 1 or more."
            )
        if self.exponent < 0:
            raise ConfigError(f"option 'exponent' of strategy 'fedbuff' is {self.exponent}; expected 0 or more.")
        if self.server_lr <= 0:
            raise ConfigError(
                f"option 'server_lr' of strategy 'fedbuff' is {self.server_lr}; expected more than 0."
            )
