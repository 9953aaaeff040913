"""Several clients in one pass over the base: small local batches together fill the products that one leaves empty.

Every client has its own adapter, optimizer, data and number of steps, and gets what it
would get alone: its rows meet only its own factors. Products over more rows may round
differently, so float32 results agree to about 1e-6 and not bit for bit.
"""

import itertools
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from fedit import seeds
from fedit.data.tokens import TokenRow
from fedit.gradients import num_supervised
from fedit.model.adapted import FAST_TOKENS, AdaptedModel
from fedit.model.hardware import is_out_of_memory, release_memory
from fedit.model.parameters import Parameters
from fedit.training import LocalJob, Optimisation, Progress, Trainer, TrainingFailed
from fedit.types import Tensors, with_ledger

log = logging.getLogger(__name__)

MOST_CLIENTS = {"cpu": 16, "cuda": 64, "mps": 16}
"""Device -> most clients of a stack."""

Trained = tuple[Progress, Tensors, Tensors]
"""What was done, the optimizer's state (empty unless it is kept), the trained adapter."""


def width(tokens_per_step: float, device: str = "cpu") -> int:
    """Return how many clients to stack whose steps have so many tokens: as many as fill a pass, 1 if one does.

    device: type of the device. Measured on a CPU: more clients than fill a pass gain nothing.
    """
    return max(1, min(MOST_CLIENTS[device], int(FAST_TOKENS[device] / max(tokens_per_step, 1))))


def stacks(count: int, width: int) -> list[range]:
    """Cut ``count`` clients into stacks of at most ``width`` whose sizes differ by at most one."""
    pieces = math.ceil(count / width) if count else 0
    bounds = [count * i // pieces for i in range(pieces + 1)] if pieces else [0]
    return [range(low, high) for low, high in itertools.pairwise(bounds)]


class StackedTrainer:
    """Trains the adapters of several clients at once over a model that has the fast path."""

    def __init__(self, model: AdaptedModel) -> None:
        self.model = model

    def train(
        self,
        jobs: Sequence[LocalJob],
        adapters: Sequence[Mapping[str, Tensor]],
        on_step: Callable[[int, Progress], None] = lambda index, progress: None,
        ledgers: Sequence[Mapping[str, Tensor]] | None = None,
    ) -> list[Trained | TrainingFailed]:
        """Train every job from its adapter; one that fails does not touch the others.

        ledgers: of every job, see `AdaptedModel.load`.
        on_step: hears the index of a job and its progress after each of its steps.
        """
        ledgers = ledgers or [{}] * len(jobs)
        try:
            return self._together(jobs, adapters, ledgers, on_step)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        release_memory(self.model.device)
        log.warning("out of memory with %d clients in a pass; training them one after the other", len(jobs))
        return [self._alone(i, job, adapters[i], ledgers[i], on_step) for i, job in enumerate(jobs)]

    def _together(
        self,
        jobs: Sequence[LocalJob],
        adapters: Sequence[Mapping[str, Tensor]],
        ledgers: Sequence[Mapping[str, Tensor]],
        on_step: Callable[[int, Progress], None],
    ) -> list[Trained | TrainingFailed]:
        frozen = [self.model.on_device(ledger) for ledger in ledgers]
        parameters = [self.model.parameters_of(adapter) for adapter in adapters]
        runs = [Optimisation(job, own) for job, own in zip(jobs, parameters, strict=True)]
        failed: dict[int, TrainingFailed] = {}
        while active := [i for i, run in enumerate(runs) if run.goes_on and i not in failed]:
            chosen: dict[int, list[TokenRow]] = {}
            for index in active:
                with _failure_of(index, failed):
                    chosen[index] = runs[index].next_rows()
            losses = self._gradients(runs, parameters, frozen, chosen)
            for index, rows in chosen.items():
                with _failure_of(index, failed):
                    runs[index].step(rows, losses[index])
                    on_step(index, runs[index].progress)
        return [
            failed[i] if i in failed else (run.progress, run.state(), own.read())
            for i, (run, own) in enumerate(zip(runs, parameters, strict=True))
        ]

    def _gradients(
        self,
        runs: Sequence[Optimisation],
        parameters: Sequence[Parameters],
        ledgers: Sequence[Tensors],
        chosen: Mapping[int, Sequence[TokenRow]],
    ) -> dict[int, float]:
        """Fill ``grad`` of every chosen client with the gradient of its own mean loss; return its summed loss."""
        losses = dict.fromkeys(chosen, 0.0)
        supervised = {index: num_supervised(rows) for index, rows in chosen.items()}
        for members in self._passes(runs, chosen):
            rows = [[chosen[index][i] for i in own] for index, _, own in members]
            noise = [seeds.derive(runs[index].noise_seed, number) for index, number, _ in members]
            running = [with_ledger(_factors(runs[i].job, parameters[i]), ledgers[i]) for i, _, _ in members]
            scales = [runs[index].job.scale for index, _, _ in members]
            scores = self.model.stacked_log_probabilities(rows, running, noise, scales)
            # Each client's loss is divided by its own targets: the sum's gradient is each one's own.
            shares = [part.sum() / supervised[index] for (index, _, _), part in zip(members, scores, strict=True)]
            (-torch.stack(shares).sum()).backward()
            for (index, _, _), part in zip(members, scores, strict=True):
                losses[index] -= float(part.detach().sum())
        return losses

    def _passes(
        self, runs: Sequence[Optimisation], chosen: Mapping[int, Sequence[TokenRow]]
    ) -> list[list[tuple[int, int, list[int]]]]:
        """Return passes of (client, number of its own pass, rows): those it would make alone, put together."""
        waiting: list[tuple[int, int, list[int]]] = []
        for index, rows in chosen.items():
            alone = self.model.passes(rows, runs[index].job.training.micro_batch_size)
            waiting += [(number, index, members) for number, members in enumerate(alone)]
        passes: list[list[tuple[int, int, list[int]]]] = []
        room = 0
        for number, index, members in sorted(waiting):
            rows = [chosen[index][i] for i in members]
            if num_supervised(rows) == 0:
                continue
            tokens = sum(len(row.ids) for row in rows)
            if not passes or tokens > room or any(index == other for other, _, _ in passes[-1]):
                passes.append([])
                room = self.model.tokens_per_pass
            passes[-1].append((index, number, members))
            room -= tokens
        return passes

    def _alone(
        self,
        index: int,
        job: LocalJob,
        adapter: Mapping[str, Tensor],
        ledger: Mapping[str, Tensor],
        on_step: Callable[[int, Progress], None],
    ) -> Trained | TrainingFailed:
        try:
            return Trainer(self.model).train(job, adapter, lambda progress: on_step(index, progress), ledger)
        except TrainingFailed as error:
            return error


def _factors(job: LocalJob, parameters: Parameters) -> Mapping[str, Tensor]:
    return parameters if job.factors is None else job.factors(parameters)


@contextmanager
def _failure_of(index: int, failed: dict[int, TrainingFailed]) -> Iterator[None]:
    """Keep one client's failure from ending the others' training."""
    try:
        yield
    except TrainingFailed as error:
        failed[index] = error
