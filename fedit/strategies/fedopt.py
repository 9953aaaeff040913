"""FedAdagrad, FedAdam and FedYogi: adaptive optimizers on the server (Reddi et al., 2021, arXiv:2003.00295).

"Adaptive Federated Optimization", algorithm 2:

    m = beta1 m + (1 - beta1) d;  v = second(v, d^2);  adapter += server_lr m / (sqrt(v) + tau)

d is the mean of the clients' deltas, whose own square enters v, not that of m. The paper starts with m = 0 and
v = tau^2 and corrects no bias. In FedAdagrad v is the sum of all rounds' squares, so that steps only ever get
shorter; in FedAdam their moving average; in FedYogi it changes by as much as the new square says, and forgets
large ones slowly. The moments live in the coordinates of the factors.
"""

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fedit import tensors
from fedit.strategies import options
from fedit.strategies.base import Strategy
from fedit.types import LocalTraining, ServerState, Tensors
from fedit.updates import Updates

log = logging.getLogger(__name__)

Tau = float | Literal["auto"]
"""The adaptivity, or "auto": the root mean square of the first mean delta, all entries together."""

SecondMoment = Callable[[Tensor, Tensor], Tensor]
"""(v, squares of the mean delta) -> the next v."""

_ROUNDS, _TAU, _FIRST, _SECOND = "rounds", "tau", "m/", "v/"


@dataclass(frozen=True)
class FedAdagrad(Strategy):
    """Step along the mean update, every entry divided by the root of its summed squares.

    server_lr: most that an entry moves in a round, about.
    beta1: share of the last round's first moment that is kept.
    tau: adaptivity; updates much smaller are not rescaled; "auto": their size in the first round.
    """

    takes_any_tensors: ClassVar[bool] = True

    server_lr: float = 1e-3
    beta1: float = 0.0
    tau: Tau = 1e-3

    def aggregate(self, server: ServerState, updates: Updates) -> ServerState:
        return _step(
            server,
            updates.mean().delta,
            lambda v, squares: v + squares,
            server_lr=self.server_lr,
            beta1=self.beta1,
            tau=self.tau,
        )

    def check(self, training: LocalTraining) -> None:
        _check("fedadagrad", training, server_lr=self.server_lr, beta1=self.beta1, tau=self.tau)


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
        return _step(
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
        _check(
            "fedadam",
            training,
            server_lr=self.server_lr,
            beta1=self.beta1,
            tau=self.tau,
            beta2=None if self.bias_correction else self.beta2,
        )


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
        return _step(
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
        _check(
            "fedyogi",
            training,
            server_lr=self.server_lr,
            beta1=self.beta1,
            tau=self.tau,
            beta2=None if self.bias_correction else self.beta2,
        )


def _step(
    server: ServerState,
    delta: Mapping[str, Tensor],
    second: SecondMoment,
    *,
    server_lr: float,
    beta1: float,
    tau: Tau,
    corrected: float | None = None,
) -> ServerState:
    """Return the state after one adaptive step along ``delta``.

    The server's memory holds "m/<name>", "v/<name>", the number of "rounds" and "tau".

    corrected: beta2, where the moments are to be divided by 1 - beta^t; v then starts at 0 and not at tau^2,
               as bias correction supposes. None: the paper.
    """
    # Deviation: the paper's mean over clients is uniform; the one given here is weighted as the job says.
    memory = server.memory or _start(delta, tau, from_zero=corrected is not None)
    if not memory:
        return server
    rounds, chosen = float(memory[_ROUNDS]) + 1, float(memory[_TAU])
    first_share = second_share = 1.0
    if corrected is not None:
        first_share, second_share = 1 - beta1**rounds, 1 - corrected**rounds
    adapter, after = dict(server.adapter), {_ROUNDS: memory[_ROUNDS] + 1, _TAU: memory[_TAU]}
    for name, moved in delta.items():
        m = beta1 * memory[_FIRST + name] + (1 - beta1) * moved
        v = second(memory[_SECOND + name], moved.square())
        adapter[name] = server.adapter[name] + server_lr * (m / first_share) / ((v / second_share).sqrt() + chosen)
        after |= {_FIRST + name: m, _SECOND + name: v}
    return replace(server, adapter=_flat(adapter), memory=_flat(after))


def _check(
    strategy: str, training: LocalTraining, *, server_lr: float, beta1: float, tau: Tau, beta2: float | None = None
) -> None:
    """Raise ``ConfigError`` if a hyper-parameter cannot work.

    beta2: where v decays from tau^2: runs too short for that are warned of.
    """
    options.positive(strategy, server_lr=server_lr)
    if tau != "auto":
        options.positive(strategy, tau=tau)
    options.decays(strategy, beta1=beta1)
    if beta2 is not None and training.num_rounds < (needed := 5 / (1 - beta2)):
        log.warning(
            "%s: with beta2=%g the second moment needs about %.0f rounds to forget that it began at tau^2 and the "
            "run has %d; tau=%s decides the step, not the updates' sizes; see bias_correction",
            strategy,
            beta2,
            needed,
            training.num_rounds,
            tau,
        )


def _start(delta: Mapping[str, Tensor], tau: Tau, *, from_zero: bool) -> Tensors:
    """Return the moments before the first step; none while "auto" has seen no movement to take its size from."""
    chosen = _root_mean_square(delta) if tau == "auto" else tau
    if chosen == 0:
        return {}
    like = next(iter(delta.values()))
    memory = {_ROUNDS: like.new_zeros(()), _TAU: like.new_tensor(chosen)}
    for name, tensor in delta.items():
        memory[_FIRST + name] = torch.zeros_like(tensor)
        memory[_SECOND + name] = torch.full_like(tensor, 0.0 if from_zero else chosen**2)
    return memory


def _root_mean_square(delta: Mapping[str, Tensor]) -> float:
    return tensors.norm(delta) / math.sqrt(sum(tensor.numel() for tensor in delta.values()))


def _flat(held: Tensors) -> Tensors:
    return tensors.flatten(held) if tensors.can_flatten(held) else held
