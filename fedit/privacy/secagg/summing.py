"""A secure sum through an engine: four passes over its clients, each with questions and answers of one stage."""

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from fedit import tensors
from fedit.errors import ProtocolError
from fedit.privacy.secagg.crypto import Words
from fedit.privacy.secagg.encoding import MOST_BITS, FixedPoint
from fedit.privacy.secagg.messages import Message
from fedit.privacy.secagg.server import Session, Terms
from fedit.privacy.secagg.settings import SecureAggregation
from fedit.privacy.secagg.vectors import VECTOR, decoded, read_figures
from fedit.types import Broadcast, ClientFailure, ClientTask, ClientUpdate, Tensors

log = logging.getLogger(__name__)

NOISY_BITS = 30
"""Finest grid where clients add noise: far coarser than the floating-point numbers that the noise is drawn in,
whose last bits could tell what it was added to."""

Run = Callable[[Sequence[ClientTask]], Iterable[ClientUpdate | ClientFailure]]
"""An engine's `run`."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is added up.

    delta, extra: layouts of what a client sends, of the adapter and beside it.
    heaviest: largest weight that a client may have.
    least:    clients without whom there is no sum.
    clip:     Euclidean norm that clients clip to; None: they do not.
    noise:    standard deviation of the noise that clients add to the sum together; 0: none.
    figures:  names of the numbers that are added up, of `messages.FIGURES`; the weight is always among them.
    """

    delta: tensors.Layout
    extra: tensors.Layout
    heaviest: int
    least: int = 2
    clip: float | None = None
    noise: float = 0.0
    figures: tuple[str, ...] = ("weight",)


@dataclass(frozen=True, slots=True)
class Total:
    """A cohort's sum, and nothing of any one client.

    delta, extra: float64, each update times its weight; weight: of all together.
    clients:      who is in it, sorted.
    figures:      sums of other numbers of theirs, by name.
    """

    delta: tensors.Flat
    extra: tensors.Flat
    weight: float
    clients: Sequence[str]
    figures: Mapping[str, float]


@dataclass
class SecureSum:
    """One round's sum.

    failures: those who are not in it, and why.
    bytes_up, bytes_down: of the vectors and messages that were carried.
    """

    options: SecureAggregation
    wanted: Wanted
    failures: list[ClientFailure] = field(default_factory=list)
    bytes_up: int = 0
    bytes_down: int = 0

    def of(self, run: Run, tasks: Sequence[ClientTask]) -> Total:
        """Return the sum of what the clients of some tasks train.

        Raises:
            NoUpdates: too few clients are left; the sum stays masked.
        """
        own, wanted = {task.client_id: task for task in tasks}, self.wanted
        session = Session(
            list(own),
            threshold=self.options.threshold,
            neighbours=None if self.options.neighbours == "auto" else self.options.neighbours,
            least=self._least(len(own)),
        )
        self._pass(run, own, "keys", session.ask_keys(), lambda client, said, _: session.keys(client, said))
        self._pass(run, own, "shares", session.ask_shares(), lambda client, said, _: session.shares(client, said))
        grid = self._grid(len(own))
        self._pass(run, own, "masked", session.ask_masked(self._terms(grid, len(own))), session.masked)
        self._pass(run, own, "unmask", session.ask_unmask(), lambda client, said, _: session.unmask(client, said))
        total = session.total()
        delta, extra = decoded(total, (wanted.delta, wanted.extra), grid)
        figures = read_figures(total, wanted.figures, max(len(own), 2))
        return Total(delta, extra, figures["weight"], session.survivors, figures)

    def _least(self, cohort: int) -> int:
        """Return how many clients must be left; with distributed noise so many that theirs is the whole noise."""
        return max(self.wanted.least, _sure(cohort, self.options.survivors) if self.wanted.noise > 0 else 2)

    def _grid(self, cohort: int) -> FixedPoint:
        limit = self.options.largest if self.wanted.clip is None else self.wanted.clip
        finest = NOISY_BITS if self.wanted.noise > 0 else MOST_BITS
        grid = FixedPoint.for_cohort(limit, max(cohort, 2), self.wanted.heaviest, finest)
        return _with_room(grid, self.wanted.noise) if self.wanted.noise > 0 else grid

    def _terms(self, grid: FixedPoint, cohort: int) -> Terms:
        wanted = self.wanted
        return Terms(
            size=wanted.delta.size,
            extras=tuple(zip(wanted.extra.names, map(tuple, wanted.extra.shapes), strict=True)),
            limit=grid.limit,
            bits=grid.bits,
            heaviest=wanted.heaviest,
            clip=wanted.clip,
            noise=wanted.noise / _sure(cohort, self.options.survivors) ** 0.5,
            figures=wanted.figures,
        )

    def _pass(
        self,
        run: Run,
        own: dict[str, ClientTask],
        stage: str,
        questions: Mapping[str, Message],
        take: Callable[[str, object, Words], None],
    ) -> None:
        """Ask all clients of a stage, and take their answers; who does not answer well has dropped out."""
        asked = [_task(own[client], stage, questions[client]) for client in own if client in questions]
        self.bytes_down += sum(_size(task.message, *_sets(task.broadcast)) for task in asked)
        for task, result in zip(asked, run(asked), strict=True):
            problem: str
            if isinstance(result, ClientFailure):
                problem = result.reason
            else:
                self.bytes_up += _size(result.message, result.extra)
                try:
                    take(task.client_id, result.message, _vector(result))
                    continue
                except ProtocolError as error:
                    problem = str(error)
            log.debug("%s dropped out at '%s': %s", task.client_id, stage, problem)
            # Who is only missing at the end is in the sum all the same.
            if stage != "unmask":
                self.failures.append(ClientFailure(task.client_id, task.round, f"{problem} (stage '{stage}')"))


def _task(task: ClientTask, stage: str, question: Message) -> ClientTask:
    broadcast = task.broadcast if stage == "masked" else Broadcast({})
    return replace(task, broadcast=broadcast, stage=stage, message=question.as_json())


def _sets(broadcast: Broadcast) -> tuple[Tensors, ...]:
    return broadcast.adapter, broadcast.ledger, broadcast.extra


def _size(message: Mapping[str, object], *sets: Mapping[str, Tensor]) -> int:
    """Return the bytes of a message, as JSON, and of the tensors beside it."""
    return len(json.dumps(message)) + sum(map(tensors.num_bytes, sets))


def _vector(result: ClientUpdate) -> Words:
    """Return the vector in an answer; one that is none has no entries, which is never what is expected."""
    held = result.extra.get(VECTOR)
    if held is None or held.dtype != torch.int64 or held.dim() != 1:
        return np.empty(0, dtype=np.uint64)
    return held.numpy().view(np.uint64)


def _sure(cohort: int, share: float) -> int:
    """Return how many of a cohort are sure to stay."""
    return max(1, int(share * cohort))


def _with_room(grid: FixedPoint, noise: float) -> FixedPoint:
    """Return a grid that is coarse enough for entries with noise on them: ten standard deviations of the sum's."""
    wider = 1 + 10 * noise / grid.limit
    return replace(grid, bits=max(1, grid.bits - int(np.ceil(np.log2(wider)))))
