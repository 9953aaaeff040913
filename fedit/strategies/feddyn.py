"""FedDyn: dynamic regularisation (Acar et al., 2021, arXiv:2111.04263).

"Federated Learning Based on Dynamic Regularization."

A client minimises F_k(y) - <h_k, y> + alpha / 2 |y - x|^2, where x is what it was sent, and then keeps
h_k - alpha (y - x), its own gradient where it stopped. The server keeps h - alpha sum_k p_k (y_k - x) over the
clients that delivered, p_k their shares of all clients, and moves to the mean of their y minus h / alpha. Where
this rests the h_k add up to 0, so that the sum of the clients' gradients does. h and h_k live in the coordinates
of the factors; nothing but adapters travels.

A client whose update is lost after it trained has moved its h_k without the server's h: h is off by that change
from then on.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from fedit import tensors
from fedit.strategies import options
from fedit.strategies.base import Strategy
from fedit.types import ClientTask, LocalResult, LocalTraining, ServerState, Tensors
from fedit.updates import Updates


@dataclass(frozen=True)
class FedDyn(Strategy):
    """Tilt every client's objective so that its optimum comes to lie where everyone's is.

    alpha: strength of the regulariser.
    cap: largest norm of the server's and of each client's h, for cohorts so small that they diverge; 0: none.
    """

    takes_any_tensors: ClassVar[bool] = True

    alpha: float = 0.01
    cap: float = 0.0

    def aggregate(self, server: ServerState, updates: Updates) -> ServerState:
        # Deviation: means weigh clients as the job says; the paper's are uniform (weighting: uniform).
        delta = updates.mean().delta
        h = self._after(server.memory, delta, updates.participation)
        moved = tensors.add(server.adapter, delta)
        return replace(server, adapter=tensors.add(moved, h, -1 / self.alpha), memory=h)

    def correct_gradients(
        self, task: ClientTask, params: Mapping[str, Tensor], grads: Mapping[str, Tensor], memory: Tensors
    ) -> None:
        for name, grad in grads.items():
            grad.add_(params[name] - task.broadcast.adapter[name], alpha=self.alpha)
            if name in memory:
                grad.sub_(memory[name])

    def finish(self, task: ClientTask, result: LocalResult, memory: Tensors) -> tuple[Tensors, Tensors]:
        return {}, self._after(memory, result.delta, 1.0)

    def check(self, training: LocalTraining) -> None:
        options.positive("feddyn", alpha=self.alpha)
        options.not_negative("feddyn", cap=self.cap)

    def _after(self, h: Tensors, delta: Tensors, share: float) -> Tensors:
        """Return h - alpha * share * delta, no longer than the cap; an empty h is 0."""
        h = h or tensors.flatten({name: tensor.new_zeros(tensor.shape) for name, tensor in delta.items()})
        h = tensors.add(h, delta, -self.alpha * share)
        length = tensors.norm(h) if self.cap else 0.0
        if length > self.cap:
            h = tensors.flatten({name: tensor * (self.cap / length) for name, tensor in h.items()})
        return h
