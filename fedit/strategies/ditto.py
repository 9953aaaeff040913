"""Ditto: a personal adapter beside the federated one, held near it (Li et al., 2021, arXiv:2012.04221).

Client k trains the global adapter θ as in FedIT and sends its change. Beside it, on the same rows, it trains an
adapter v_k of its own by v_k ← v_k - η (∇F_k(v_k) + lam (v_k - θ)), where θ is what it was sent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from fedit.errors import ConfigError
from fedit.strategies.base import Strategy
from fedit.types import (
    ClientInfo,
    ClientState,
    ClientTask,
    LocalTraining,
    Phase,
    Running,
    ServerState,
    Tensors,
    own_adapter,
)

PERSONAL = "personal"


@dataclass(frozen=True)
class Ditto(Strategy):
    """Train a personal adapter that is pulled towards the global one; the global one is FedIT's.

    lam:            strength of the pull: 0 trains everybody alone, a large one holds all at the global adapter.
    personal_share: steps of the personal adapter, as a share of the round's.
    """

    lam: float = 0.1
    personal_share: float = 1.0

    def phases(self, task: ClientTask, state: ClientState) -> Sequence[Phase]:
        theta = task.broadcast.adapter

        def pull(params: Mapping[str, Tensor], grads: Mapping[str, Tensor]) -> None:
            for name, grad in grads.items():
                grad.add_(params[name].detach() - theta[name].to(grad.device), alpha=self.lam)

        # The pull goes through the client's optimizer as any gradient does: under AdamW it sets a direction.
        return (Phase(), Phase(PERSONAL, own=True, share=self.personal_share, correct=pull))

    def personal(self, server: ServerState, client: ClientInfo, state: ClientState) -> Running:
        general = super().personal(server, client, state)
        own: Tensors = own_adapter(state.memory, PERSONAL)
        return Running(own, general.ledger, general.scale) if own else general

    def check(self, training: LocalTraining) -> None:
        if self.lam < 0:
            raise ConfigError(f"option 'lam' of strategy 'ditto' is {self.lam}; expected 0 or more.")
        if self.personal_share <= 0:
            raise ConfigError(
                f"option 'personal_share' of strategy 'ditto' is {self.personal_share}; expected more than 0."
            )
        if training.optimizer == "sgd" and training.learning_rate * self.lam >= 2:
            raise ConfigError(
                f"option 'lam' of strategy 'ditto' is {self.lam}: with SGD at learning_rate "
                f"{training.learning_rate} every step overshoots the global adapter by more than it was away; "
                f"expected less than {2 / training.learning_rate:g}."
            )
