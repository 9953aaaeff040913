"""Sealed cohorts by secure aggregation: a round's mean, of updates that nobody has seen."""

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from fedit import tensors
from fedit.errors import NoUpdates
from fedit.privacy.client import ClientSeal
from fedit.privacy.secagg.settings import SecureAggregation
from fedit.privacy.secagg.summing import Run, SecureSum, Total, Wanted
from fedit.types import ClientFailure, ClientInfo, ClientTask, ClientUpdate

log = logging.getLogger(__name__)

MOST_TOKENS = 1 << 24
"""Supervised tokens of a client's round where they are its weight: nobody can announce them before."""
FIGURES = ("weight", "loss", "tokens", "supervised_tokens")
PRIVATE_FIGURES = ("weight", "unclipped")
"""What noise covers, or says no more than who takes part."""


@dataclass(frozen=True, slots=True)
class Securely:
    """How the rounds of a job are added up. weighting: what a client weighs, as the job says."""

    options: SecureAggregation
    weighting: str = "examples"

    def seal(
        self,
        run: Run,
        tasks: Sequence[ClientTask],
        asked: Sequence[ClientInfo],
        delta: Mapping[str, Tensor],
        extra: Mapping[str, Tensor],
        weights: Mapping[str, float],
        least: int,
        private: ClientSeal | None = None,
    ) -> "SecureSeal":
        """Return what adds up the updates of a round.

        run:     an engine's; tasks: of the round; asked: whose they are.
        delta, extra: names and shapes of what a client sends, of the adapter and beside it.
        weights: of every client of the federation, by id; least: clients without whom there is no mean.
        private: what makes the sum private, whose clients clip to its norm; None: nothing does.
        """
        heaviest = {
            "examples": max((client.num_examples for client in asked), default=1),
            "tokens": MOST_TOKENS,
            "uniform": 1,
        }[self.weighting]
        wanted = Wanted(
            tensors.layout_of(delta), tensors.layout_of(extra), max(heaviest, 1), least, figures=FIGURES
        )
        if private is not None:
            wanted = replace(
                wanted,
                clip=None if private.clip_norm == math.inf else private.clip_norm,
                noise=private.noise if self.options.noise == "distributed" else 0.0,
                figures=PRIVATE_FIGURES,
            )
        return SecureSeal(SecureSum(self.options, wanted), run, tasks, weights, private)


class SecureSeal:
    """One round's sum; it shows nothing else, and the round's results never come into one place.

    total: once it was asked for, and if there was one.
    """

    def __init__(
        self,
        addition: SecureSum,
        run: Run,
        tasks: Sequence[ClientTask],
        weights: Mapping[str, float],
        private: ClientSeal | None = None,
    ) -> None:
        self.total: Total | None = None
        self.mean_delta: Mapping[str, Tensor] = {}
        self._addition = addition
        self._run = run
        self._tasks = tasks
        self._weights = weights
        self._private = private

    @property
    def participation(self) -> float:
        """Share of the federation, by weight, that the mean stands for."""
        if self._private is not None:
            return self._private.participation
        clients = () if self.total is None else self.total.clients
        return sum(self._weights[client] for client in clients) / sum(self._weights.values())

    @property
    def failures(self) -> list[ClientFailure]:
        """Those who are not in the sum, and why."""
        return self._addition.failures

    @property
    def clients(self) -> Sequence[str]:
        """Whose updates are in the sum."""
        return () if self.total is None else self.total.clients

    @property
    def loss(self) -> float | None:
        """The clients' mean training loss, by weight."""
        if self.total is None or "loss" not in self.total.figures:
            return None
        return self.total.figures["loss"] / self.total.weight

    @property
    def tokens(self) -> int:
        """Tokens that the clients trained on together."""
        return 0 if self.total is None else round(self.total.figures.get("tokens", 0))

    @property
    def bytes(self) -> tuple[int, int]:
        """Bytes of vectors and messages that were carried: from clients, and to them."""
        return self._addition.bytes_up, self._addition.bytes_down

    @property
    def raw_bytes(self) -> int:
        """Bytes of the updates that the vectors stand for."""
        wanted = self._addition.wanted
        return 4 * len(self.clients) * (wanted.delta.size + wanted.extra.size)

    def fits(self, update: ClientUpdate) -> bool:
        """Whether an update may go into the sum in the open: none may."""
        return False

    def mean(self, updates: Iterable[ClientUpdate]) -> ClientUpdate:
        """Return the weighted mean of the updates that the round's tasks give; there are no others.

        A private round in which too few are left is noise, as one of nobody is.

        Raises:
            NoUpdates: too few clients are left, or all that are weigh nothing.
            RunFolderError: the charge of a private round cannot be written down.
        """
        if self._private is not None:
            return self._private_mean(self._private)
        total = self._addition.of(self._run, self._tasks)
        if total.weight <= 0:
            raise NoUpdates("secure aggregation: all clients in the sum weigh nothing")
        self.total = total
        delta, extra = (
            tensors.Flat(own.layout, (own.buffer / total.weight).float()) for own in (total.delta, total.extra)
        )
        self.mean_delta = delta
        return ClientUpdate("mean", self._tasks[0].round, 0, total.weight, delta, extra)

    def _private_mean(self, private: ClientSeal) -> ClientUpdate:
        try:
            total = self._addition.of(self._run, self._tasks)
        except NoUpdates as nobody:
            log.warning("%s; the round is noise alone", nobody)
        else:
            self.total = total
            private.take(
                total.delta,
                total.extra,
                total.figures["unclipped"],
                len(total.clients),
                noised=self._addition.wanted.noise > 0,
            )
        return private.mean(())
