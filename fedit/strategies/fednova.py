"""FedNova: normalised averaging (Wang et al., 2020, arXiv:2007.07481).

"Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization."

    adapter += (sum_k p_k a_k) * sum_k p_k delta_k / a_k,

where a_k is the sum of the weights with which client k's gradients enter its delta: its number of steps under
SGD, more under momentum. Clients that take more steps then do not pull the server towards their own optimum.
One number travels beside each delta. The mean of a cohort does not tell what each delta is to be divided by:
cohorts that show their mean alone (secure aggregation, central differential privacy) cannot be served.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch

from fedit import tensors
from fedit.errors import ConfigError, NoUpdates
from fedit.strategies.base import Strategy
from fedit.types import ClientFailure, ClientTask, LocalResult, LocalTraining, ServerState, Tensors
from fedit.updates import Updates

NORMALISER = "normaliser"
"""Name of a_k in what a client sends, float64."""


@dataclass(frozen=True)
class FedNova(Strategy):
    """Average the clients' updates per step and go as far as they went on average."""

    takes_any_tensors: ClassVar[bool] = True

    def aggregate(self, server: ServerState, updates: Updates) -> ServerState:
        directions = tensors.RunningMean()  # of delta_k / a_k, since the weights are w_k / a_k
        weight = reach = 0.0
        for update in updates:
            normaliser = float(update.extra.get(NORMALISER, 1.0))
            if normaliser <= 0:
                problem = f"its number of steps, weighed by their rates, is {normaliser}"
                updates.failures.append(ClientFailure(update.client_id, update.round, problem))
                continue
            directions.add(update.delta, update.weight / normaliser)
            weight += update.weight
            reach += update.weight * normaliser
        if weight == 0:
            raise NoUpdates("no client of the cohort delivered a usable update")
        factor = (reach / weight) * (directions.weight / weight)
        return replace(server, adapter=tensors.add(server.adapter, directions.value(), factor))

    def finish(self, task: ClientTask, result: LocalResult, memory: Tensors) -> tuple[Tensors, Tensors]:
        # Deviation: learning rates may change within a round, so gradients are counted by the rates of the steps
        # they enter; at a constant rate all a_k are that rate times the paper's, which cancels.
        # Deviation: AdamW has no such sum; its steps are counted like those of SGD without momentum.
        training = task.training
        momentum = training.momentum if training.optimizer == "sgd" else 0.0
        entered = total = 0.0
        for rate in result.learning_rates:
            entered = momentum * entered + 1
            total += rate * entered
        return {NORMALISER: torch.tensor([total], dtype=torch.float64)}, memory

    def check(self, training: LocalTraining) -> None:
        if training.optimizer == "sgd" and training.momentum > 0 and training.keep_optimizer:
            raise ConfigError(
                "strategy 'fednova' counts the gradients of one round, and kept momentum carries older ones into "
                "it; set client_optimizer: reset or momentum: 0."
            )
