"""FedDPA: a global and a local adapter whose outputs are mixed (Yang et al., 2024, arXiv:2403.19211).

Client k runs W + (1 - w) s B_g A_g + w s B_k A_k: the outputs of the received global adapter and of one of its own
are mixed, never their factors. FedDPA-T: in every round it first trains its own with the global one frozen, then
the global one alone, whose change it sends. As in the authors' code there is nothing to mix with in round 1, which
trains the global adapter alone. FedDPA-F: rounds are FedIT's, and the local adapter is trained once after the
last of them, from a fresh one, beside the frozen global one. In both, answers may weigh the adapters anew for
every question x: w = weight * mean_s cos(h(x), h(x_s)), where x_s are a few of the client's questions and h is the
last hidden state at the last token under the local adapter.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from fedit.errors import ConfigError
from fedit.lora import with_product
from fedit.strategies.base import Strategy
from fedit.types import (
    ClientInfo,
    ClientState,
    ClientTask,
    Likened,
    LocalTraining,
    Phase,
    Running,
    ServerState,
    Tensors,
    own_adapter,
)

LOCAL = "local"


@dataclass(frozen=True)
class FedDPA(Strategy):
    """Average a global adapter as FedIT does; train beside it a local one that is mixed in with a weight.

    weight:         of the local adapter's output, in training and afterwards; 0 runs the global adapter alone.
    personal_share: steps of the local adapter, as a share of the round's.
    afterwards:     whether the local adapter is trained after the last round alone, for personal_steps (FedDPA-F).
    likened:        rows of the client that every question is compared with, whose likeness times ``weight`` is
                    what the local adapter's output weighs there; the paper's 5. 0: the weight is the same for all.
    """

    # Deviation: the rows are drawn once a client and not anew for every question.

    weight: float = 0.5
    personal_share: float = 1.0
    afterwards: bool = False
    likened: int = 0

    def phases(self, task: ClientTask, state: ClientState) -> Sequence[Phase]:
        if task.round == 1 or self.afterwards:
            return (Phase(),)
        sent = task.broadcast
        scale = 1.0 if sent.scale is None else sent.scale
        ledger = with_product(sent.ledger, sent.adapter, (1 - self.weight) * scale)
        local = Phase(LOCAL, own=True, ledger=ledger, scale=self.weight * scale, share=self.personal_share)
        return (local, Phase())

    def personal(self, server: ServerState, client: ClientInfo, state: ClientState) -> Running:
        general = super().personal(server, client, state)
        local = own_adapter(state.memory, LOCAL)
        return self._mixed(general, local) if local else general

    @property
    def tunes_after(self) -> bool:
        return self.afterwards

    def tuning(self, running: Running, initial: Mapping[str, Tensor]) -> Running:
        return self._mixed(running, dict(initial)) if self.afterwards else running

    def _mixed(self, general: Running, local: Tensors) -> Running:
        ledger = with_product(general.ledger, general.adapter, (1 - self.weight) * general.scale)
        likened = Likened(general, self.weight, self.likened) if self.likened else None
        return Running(local, ledger, self.weight * general.scale, likened)

    def check(self, training: LocalTraining) -> None:
        if not 0 <= self.weight <= 1:
            raise ConfigError(f"option 'weight' of strategy 'feddpa' is {self.weight}; expected 0 to 1.")
        if self.likened < 0:
            raise ConfigError(f"option 'likened' of strategy 'feddpa' is {self.likened}; expected 0 or more.")
        if self.personal_share <= 0:
            raise ConfigError(
                f"option 'personal_share' of strategy 'feddpa' is {self.personal_share}; expected more than 0."
            )
