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
from functools import partial

import torch
from torch import Tensor

from fedit import seeds
from fedit.gradients import learning
from fedit.model.adapted import FAST_TOKENS, AdaptedModel
from fedit.model.hardware import is_out_of_memory, release_memory
from fedit.model.parameters import Parameters
from fedit.objectives import Learnt, Objective, num_supervised, num_tokens, passes, rows_of
from fedit.privacy.steps import PrivateSteps
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
    """Trains the adapters of several clients at once over a model that has the fast path.

    Private training is not for those whose factors stand for something else: its noise goes on factors' gradients.
    """

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
            chosen: dict[int, list[Learnt]] = {}
            for index in active:
                with _failure_of(index, failed):
                    chosen[index] = runs[index].next_rows()
            sums = self._gradients(runs, parameters, frozen, chosen)
            for index, rows in chosen.items():
                with _failure_of(index, failed):
                    runs[index].step(rows, sums[index])
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
        chosen: Mapping[int, Sequence[Learnt]],
    ) -> dict[int, list[float]]:
        """Fill ``grad`` of every chosen client with the gradient of its own mean loss, or a private one of it.

        Returns the sums of each one's loss and of what its objective measures.
        """
        if any(runs[index].private for index in chosen):
            return self._private_gradients(runs, parameters, ledgers, chosen)
        totals = {index: [0.0] * (1 + len(runs[index].objective.measures)) for index in chosen}
        counts = {index: runs[index].objective.count(examples) for index, examples in chosen.items()}
        for members in self._passes(runs, chosen):
            examples = [[chosen[index][i] for i in own] for index, _, own in members]
            rows = [rows_of(own) for own in examples]
            noise = [seeds.derive(runs[index].noise_seed, number) for index, number, _ in members]
            running = [with_ledger(_factors(runs[i].job, parameters[i]), ledgers[i]) for i, _, _ in members]
            scales = [runs[index].job.scale for index, _, _ in members]
            scores = self.model.stacked_log_probabilities(rows, running, noise, scales)
            sums = [
                runs[index].objective.sums(part, own)
                for (index, _, _), part, own in zip(members, scores, examples, strict=True)
            ]
            # Each client's loss is divided by its own count: the sum's gradient is each one's own.
            shares = [part[0] / counts[index] for (index, _, _), part in zip(members, sums, strict=True)]
            torch.stack(shares).sum().backward()
            for (index, _, _), part in zip(members, sums, strict=True):
                totals[index] = [a + b for a, b in zip(totals[index], part.tolist(), strict=True)]
        return totals

    def _private_gradients(
        self,
        runs: Sequence[Optimisation],
        parameters: Sequence[Parameters],
        ledgers: Sequence[Tensors],
        chosen: Mapping[int, Sequence[Learnt]],
    ) -> dict[int, list[float]]:
        """Fill ``grad`` of every chosen client with what its own private step has; tell nothing of its losses."""
        learnt = {index: learning(examples) for index, examples in chosen.items()}
        for members in self._passes(runs, learnt, apart=True):
            examples = [[learnt[index][i] for i in own] for index, _, own in members]
            found = self.model.stacked_example_gradients(
                [[example.rows for example in own] for own in examples],
                [with_ledger(parameters[index], ledgers[index]) for index, _, _ in members],
                [seeds.derive(runs[index].noise_seed, number) for index, number, _ in members],
                [runs[index].job.scale for index, _, _ in members],
                partial(_summed_losses, [runs[index].objective for index, _, _ in members], examples),
            )
            for (index, _, _), own in zip(members, found, strict=True):
                own.add_clipped(parameters[index], _private(runs[index]).clip_norm)
        for index in chosen:
            _private(runs[index]).finish(parameters[index].trained_gradients())
        return {index: [0.0] for index in chosen}

    def _passes(
        self, runs: Sequence[Optimisation], chosen: Mapping[int, Sequence[Learnt]], *, apart: bool = False
    ) -> list[list[tuple[int, int, list[int]]]]:
        """Return passes of (client, number of its own pass, rows): those it would make alone, put together."""
        waiting: list[tuple[int, int, list[int]]] = []
        for index, rows in chosen.items():
            alone = passes(self.model, rows, runs[index].job.training.micro_batch_size, apart=apart)
            waiting += [(number, index, members) for number, members in enumerate(alone)]
        together: list[list[tuple[int, int, list[int]]]] = []
        room = 0
        for number, index, members in sorted(waiting):
            rows = [chosen[index][i] for i in members]
            if num_supervised(rows) == 0:
                continue
            tokens = num_tokens(rows)
            if not together or tokens > room or any(index == other for other, _, _ in together[-1]):
                together.append([])
                room = self.model.tokens_per_pass
            together[-1].append((index, number, members))
            room -= tokens
        return together

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


def _private(run: Optimisation) -> PrivateSteps:
    if run.private is None:
        raise ValueError("a stack is of clients that all train privately, or none does")
    return run.private


def _summed_losses(
    objectives: Sequence[Objective], examples: Sequence[Sequence[Learnt]], scores: Sequence[Tensor]
) -> Tensor:
    parts = zip(objectives, scores, examples, strict=True)
    return torch.stack([objective.losses(part, own).sum() for objective, part, own in parts]).sum()


@contextmanager
def _failure_of(index: int, failed: dict[int, TrainingFailed]) -> Iterator[None]:
    """Keep one client's failure from ending the others' training."""
    try:
        yield
    except TrainingFailed as error:
        failed[index] = error
