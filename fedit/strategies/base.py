"""Strategy: federated averaging, and the places where an algorithm may differ from it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from fedit import tensors
from fedit.errors import ConfigError
from fedit.types import (
    Broadcast,
    ClientInfo,
    ClientTask,
    LocalResult,
    LocalTraining,
    ServerState,
    Tensors,
)
from fedit.updates import Updates


@dataclass(frozen=True)
class Strategy:
    """Federated averaging (McMahan et al., 2017, arXiv:1602.05629).

    A subclass is a frozen dataclass whose fields are its hyper-parameters. It overrides
    only what its paper changes. Subclass ``Strategy`` itself, never another algorithm.
    """

    takes_any_tensors: ClassVar[bool] = False
    """Whether it treats all tensors alike: it may then average whatever is tuned, not LoRA's two factors alone."""

    # --- server half ---

    def init(self, adapter: Tensors) -> ServerState:
        """Return the state before round 1."""
        return ServerState(round=0, adapter=adapter)

    def broadcast(self, server: ServerState, client: ClientInfo) -> Broadcast:
        """Return what ``client`` is sent; ranks are cut here.

        Tensors left out cost nothing: the client takes them from what it kept, else from `init` of the
        adapter that the run's seed gives.
        """
        return Broadcast(server.adapter, server.ledger, scale=server.scale)

    def aggregate(self, server: ServerState, updates: Updates) -> ServerState:
        """Return the next state; ``server`` itself must not change."""
        return replace(server, adapter=tensors.add(server.adapter, updates.mean().delta))

    # --- both halves ---

    def factors(self, adapter: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the factors "m.A" and "m.B" that the model runs, differentiable in what is trained.

        Where an algorithm trains something else than factors (a small matrix between frozen ones), ``adapter``
        holds that and this says what it stands for.
        """
        return adapter

    @property
    def composes(self) -> bool:
        """Whether what is trained is something else than the factors."""
        return type(self).factors is not Strategy.factors

    def uploads(self, name: str, round: int) -> bool:
        """Whether clients send this tensor's change after this round: those that were trained and are shared."""
        return self.trains(name, round) and self.shares(name)

    # --- client half ---

    def trains(self, name: str, round: int) -> bool:
        """Whether clients optimise this tensor in this round."""
        return True

    def shares(self, name: str) -> bool:
        """Whether this tensor leaves the client; otherwise it is kept there and restored."""
        return True

    def correct_gradients(
        self, task: ClientTask, params: Mapping[str, Tensor], grads: Mapping[str, Tensor], memory: Tensors
    ) -> None:
        """Change ``grads`` in place before an optimizer step."""

    def finish(self, task: ClientTask, result: LocalResult, memory: Tensors) -> tuple[Tensors, Tensors]:
        """Return ``(extra to send, memory to keep)``."""
        return {}, memory

    # --- before the run ---

    def check(self, training: LocalTraining) -> None:
        """Raise ``ConfigError`` if a setting would make the algorithm wrong."""


def refuse_factors_only(strategy: Strategy, tuning: str) -> None:
    """Make sure that ``strategy`` can average what ``tuning`` trains.

    Raises:
        ConfigError: it is made for the factors of plain LoRA.
    """
    if tuning != "lora" and not strategy.takes_any_tensors:
        raise ConfigError(
            f"strategy {type(strategy).__name__} works on LoRA's factors A and B, and tuning={tuning} trains "
            "other tensors as well; set tuning=lora, or take a strategy that averages any tensors, such as fedit."
        )
