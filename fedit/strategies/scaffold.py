"""SCAFFOLD: control variates against client drift (Karimireddy et al., 2020, arXiv:1910.06378).

"SCAFFOLD: Stochastic Controlled Averaging for Federated Learning."

A client's step is y -= rate (g - c_k + c). Its control variate becomes, by the paper's option II,

    c_k' = c_k - c + (x - y) / (sum of the round's learning rates),

the mean gradient along its way, which the sum gives also where the rate changes within a round. The server moves
by the mean delta and keeps c = sum_k p_k c_k over all clients of the federation, to which a cohort adds its
share. Control variates live in the coordinates of the factors: 2 adapters travel each way, c_k stays with its
client and survives rounds that the client misses.

A client whose update is lost after it trained has moved its c_k without the server's c: c is off by that change
from then on.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from fedit import tensors
from fedit.errors import ConfigError
from fedit.strategies import options
from fedit.strategies.base import Strategy
from fedit.types import Broadcast, ClientInfo, ClientTask, LocalResult, LocalTraining, ServerState, Tensors
from fedit.updates import Updates


@dataclass(frozen=True)
class Scaffold(Strategy):
    """Correct every local step by what the client's gradients differ from everyone's; SGD without momentum only.

    server_lr: step along the mean update.
    """

    takes_any_tensors: ClassVar[bool] = True

    server_lr: float = 1.0

    def broadcast(self, server: ServerState, client: ClientInfo) -> Broadcast:
        return Broadcast(server.adapter, server.ledger, server.memory, server.scale)

    def aggregate(self, server: ServerState, updates: Updates) -> ServerState:
        # Deviation: means weigh clients as the job says, so that c vanishes where the weighted objective's
        # gradient does; the paper's are uniform (weighting: uniform).
        mean = updates.mean()
        share = updates.participation
        control = tensors.add(server.memory, mean.extra, share) if server.memory else _scaled(mean.extra, share)
        return replace(server, adapter=tensors.add(server.adapter, mean.delta, self.server_lr), memory=control)

    def correct_gradients(
        self, task: ClientTask, params: Mapping[str, Tensor], grads: Mapping[str, Tensor], memory: Tensors
    ) -> None:
        control = task.broadcast.extra
        for name, grad in grads.items():
            if name in control:
                grad.add_(control[name])
            if name in memory:
                grad.sub_(memory[name])

    def finish(self, task: ClientTask, result: LocalResult, memory: Tensors) -> tuple[Tensors, Tensors]:
        control = task.broadcast.extra
        change = _scaled(result.delta, -1 / sum(result.learning_rates))
        if control:
            change = tensors.sub(change, control)
        return change, tensors.add(memory, change) if memory else change

    def check(self, training: LocalTraining) -> None:
        options.positive("scaffold", server_lr=self.server_lr)
        if training.optimizer != "sgd" or training.momentum != 0:
            found = f"momentum is {training.momentum}" if training.optimizer == "sgd" else "it is not SGD"
            raise ConfigError(
                "strategy 'scaffold' reads a client's mean gradient off how far plain SGD moved it, and "
                f"{found} (optimizer: {training.optimizer}); set optimizer: sgd and momentum: 0."
            )


def _scaled(a: Mapping[str, Tensor], factor: float) -> Tensors:
    return tensors.flatten({name: factor * tensor for name, tensor in a.items()})
