"""Strategy: federated averaging, and the places where an algorithm may differ from it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from torch import Tensor

from fedit import lora, tensors
from fedit.errors import ConfigError
from fedit.types import (
    Broadcast,
    ClientInfo,
    ClientState,
    ClientTask,
    LocalResult,
    LocalTraining,
    Phase,
    Running,
    ServerState,
    Tensors,
    with_ledger,
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
        """Return what ``client`` is sent: all that `sends` names; ranks are cut here."""
        adapter = server.adapter
        if not all(self.sends(name, server) for name in adapter):
            adapter = {name: tensor for name, tensor in adapter.items() if self.sends(name, server)}
        return Broadcast(adapter, server.ledger, scale=server.scale)

    def sends(self, name: str, server: ServerState) -> bool:
        """Whether clients are sent this tensor.

        What is left out costs nothing: the client takes it from what it kept, else from `init` of the adapter
        that the run's seed gives.
        """
        return self.shares(name)

    def aggregate(self, server: ServerState, updates: Updates) -> ServerState:
        """Return the next state; ``server`` itself must not change."""
        return replace(server, adapter=tensors.add(server.adapter, updates.mean().delta))

    def model(self, server: ServerState) -> Tensors:
        """Return what the server's model runs: factors "m.A" and "m.B", and the ledger's under "ledger/m.A"."""
        return dict(with_ledger(self.factors(server.adapter), server.ledger))

    def metrics(self, server: ServerState) -> dict[str, float]:
        """Return what the record of a round says of the state after it, beside what every round's says."""
        return {}

    def always(self) -> frozenset[str]:
        """Return the ids of clients that take part in every round, whoever else is drawn."""
        return frozenset()

    @property
    def keeps_basis(self) -> bool:
        """Whether an entry of the adapter means in the next round what it meant in this one.

        Not so where the adapter is made anew from products: what a client held back cannot be added later.
        """
        return True

    # --- asynchronous rounds ---

    @property
    def buffer(self) -> int | None:
        """How many arrivals make a server step; None: rounds wait for their cohort."""
        return None

    def discount(self, staleness: int) -> float:
        """Return what a change is multiplied by that comes ``staleness`` server steps late.

        It is applied before aggregation, as a client could do itself, so that it works where only means are seen.
        """
        return 1.0

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

    def personal(self, server: ServerState, client: ClientInfo, state: ClientState) -> Running:
        """Return what ``client`` would run for itself, from what the server has and what the client kept.

        Unless an algorithm knows better that is what it would start its next round from: the global adapter, with
        its own tensors where it keeps some. A client that never took part has a fresh ``state``.
        """
        sent = self.broadcast(server, client)
        adapter = lora.completed({**sent.adapter, **state.private}, server.adapter)
        scale = server.scale if sent.scale is None else sent.scale
        return Running(dict(self.factors(adapter)), sent.ledger, scale)

    @property
    def tunes_after(self) -> bool:
        """Whether what is a client's own is only made by the fine-tuning after the last round."""
        return False

    def tuning(self, running: Running, initial: Mapping[str, Tensor]) -> Running:
        """Return what a client's fine-tuning after the last round starts from; its adapter is what is trained.

        running: what the client runs until then; initial: the adapter that the run began with.
        """
        return running

    def settled(self, names: Iterable[str]) -> Self:
        """Return the strategy with whatever it leaves open until the names of the adapter's tensors are known.

        Raises:
            ConfigError: an option does not fit an adapter of these tensors.
        """
        return self

    # --- client half ---

    def phases(self, task: ClientTask, state: ClientState) -> Sequence[Phase]:
        """Return what the client trains in this round, one after the other.

        task: its broadcast is complete here: the adapter is what the round starts from, and the scale is set.
        """
        return (Phase(),)

    def trains(self, name: str, round: int) -> bool:
        """Whether clients optimise this tensor in this round."""
        return True

    def shares(self, name: str) -> bool:
        """Whether this tensor leaves the client; otherwise it is kept there and restored."""
        return True

    def correct_gradients(
        self, task: ClientTask, params: Mapping[str, Tensor], grads: Mapping[str, Tensor], memory: Tensors
    ) -> None:
        """Change ``grads`` in place before they are clipped and an optimizer step is taken.

        Everything is on one device: what ``task`` was sent, ``params``, ``grads`` and the client's ``memory``.
        """

    def correct_parameters(
        self, task: ClientTask, params: Mapping[str, Tensor], learning_rate: float, memory: Tensors
    ) -> None:
        """Change ``params`` in place after an optimizer step, without a graph; devices as in `correct_gradients`.

        learning_rate: of the step that was taken.
        """

    @property
    def corrects(self) -> bool:
        """Whether gradients or parameters are changed around an optimizer step."""
        return (
            type(self).correct_gradients is not Strategy.correct_gradients
            or type(self).correct_parameters is not Strategy.correct_parameters
        )

    def align(self, start: Mapping[str, Tensor], trained: Tensors, round: int) -> Tensors:
        """Return what the client trained in the form in which it counts from here on, all tensors of it.

        Where several adapters are one model, an algorithm chooses among them here, before the change from
        ``start``, what the client started from, is taken.
        """
        return trained

    def finish(self, task: ClientTask, result: LocalResult, memory: Tensors) -> tuple[Tensors, Tensors]:
        """Return ``(extra to send, memory to keep)``."""
        return {}, memory

    # --- before the run ---

    def check(self, training: LocalTraining) -> None:
        """Raise ``ConfigError`` if a setting would make the algorithm wrong."""

    def check_cohort(self, size: int, clients: Sequence[str]) -> None:
        """Raise ``ConfigError`` if rounds of ``size`` of these clients cannot work."""


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
