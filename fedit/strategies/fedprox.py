"""FedProx: a proximal term on every client (Li et al., 2020, arXiv:1812.06127).

"Federated Optimization in Heterogeneous Networks."

A client minimises F_k(y) + mu / 2 |y - x|^2, where x is what it was sent. The term's gradient, mu (y - x), is
added before gradients are clipped. Under Adam it is then rescaled with the rest; ``decoupled`` leaves it out of
the gradient and pulls y towards x after each step, as AdamW does with weight decay:

    y = x + (y - x) / (1 + learning rate * mu),

which is the proximal map of the term and stable for every mu.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fedit.errors import ConfigError
from fedit.strategies import options
from fedit.strategies.base import Strategy
from fedit.types import ClientTask, LocalTraining, Tensors


@dataclass(frozen=True)
class FedProx(Strategy):
    """Hold clients near what they were sent by a quadratic penalty; the server averages.

    mu: strength of the penalty; 0 is FedAvg.
    decoupled: whether the penalty acts after each step and not through the gradient; for AdamW.
    """

    takes_any_tensors: ClassVar[bool] = True

    mu: float = 0.01
    decoupled: bool = False

    def correct_gradients(
        self, task: ClientTask, params: Mapping[str, Tensor], grads: Mapping[str, Tensor], memory: Tensors
    ) -> None:
        if self.decoupled or self.mu == 0:
            return
        for name, grad in grads.items():
            grad.add_(params[name] - task.broadcast.adapter[name], alpha=self.mu)

    def correct_parameters(
        self, task: ClientTask, params: Mapping[str, Tensor], learning_rate: float, memory: Tensors
    ) -> None:
        if not self.decoupled or self.mu == 0:
            return
        pull = learning_rate * self.mu / (1 + learning_rate * self.mu)
        for name, param in params.items():
            param.sub_(param - task.broadcast.adapter[name], alpha=pull)

    def check(self, training: LocalTraining) -> None:
        options.not_negative("fedprox", mu=self.mu)
        if training.optimizer == "sgd" and not self.decoupled and training.learning_rate * self.mu >= 2:
            raise ConfigError(
                f"option 'mu' of strategy 'fedprox' is {self.mu} and learning_rate {training.learning_rate}: SGD "
                "diverges where their product is 2 or more; lower one of them, or set decoupled: true."
            )
