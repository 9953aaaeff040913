"""One client's optimisation: its stream of batches, its optimizer, one step that survives a lack of memory."""

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from fedit import seeds
from fedit.crew import Crew
from fedit.errors import FeditError
from fedit.gradients import accumulate, accumulate_clipped
from fedit.model.adapted import AdaptedModel
from fedit.model.hardware import is_out_of_memory, release_memory
from fedit.model.parameters import Parameters
from fedit.objectives import Learnt, Objective, num_supervised, num_tokens, objective_of, rows_of
from fedit.optimizer import LocalOptimizer
from fedit.privacy.keystream import Keystream
from fedit.privacy.steps import PrivateSteps, steps_of
from fedit.schedule import learning_rate
from fedit.types import LocalTraining, Tensors

log = logging.getLogger(__name__)


Factors = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
"""What is trained -> the factors "m.A" and "m.B" that it stands for, differentiable."""


class TrainingFailed(FeditError):
    """A client's training cannot go on: its loss is not finite, or one example does not fit into memory."""


@dataclass(slots=True)
class Progress:
    """What one client has done in one round. Private training counts its steps and nothing of its batches.

    summed:  the summed loss, in nats; counted: what it is a mean over, supervised tokens or pairs.
    sums:    of the objective's measures, by name.
    """

    steps: int = 0
    examples: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    summed: float = 0.0
    counted: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    learning_rates: list[float] = field(default_factory=list)
    rows: set[int] = field(default_factory=set)

    @property
    def loss(self) -> float:
        """Mean training loss of the round."""
        return self.summed / max(self.counted, 1)

    @property
    def measures(self) -> dict[str, float]:
        """Means of what the objective measures."""
        return {name: value / max(self.counted, 1) for name, value in self.sums.items()}

    def as_event(self) -> dict[str, object]:
        """Return what is shown of it while it goes on; nothing of batches that were not counted."""
        shown = {"step": self.steps, "tokens": self.tokens, "loss": self.loss}
        return dict(shown) if self.counted else {"step": self.steps}

    def add(self, more: "Progress") -> None:
        """Count what was done after this."""
        self.steps += more.steps
        self.examples += more.examples
        self.tokens += more.tokens
        self.supervised_tokens += more.supervised_tokens
        self.summed += more.summed
        self.counted += more.counted
        for name, value in more.sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.learning_rates += more.learning_rates
        self.rows |= more.rows


def batches(num_rows: int, batch_size: int, seed: int, start: int) -> Iterator[list[int]]:
    """Yield an endless stream of batches from the ``start``-th on.

    Every epoch is a fresh seeded permutation cut into batches, the last of which may be
    smaller; a client that continues where it stopped sees every row once an epoch.
    """
    per_epoch = math.ceil(num_rows / batch_size)
    position = start
    while True:
        epoch, first = divmod(position, per_epoch)
        order = np.random.default_rng(seeds.derive(seed, "order", epoch)).permutation(num_rows)
        for index in range(first, per_epoch):
            yield [int(i) for i in order[index * batch_size : (index + 1) * batch_size]]
            position += 1


@dataclass(frozen=True, slots=True)
class LocalJob:
    """What one client trains in one round.

    batches_seen:    batches of its stream that earlier rounds took.
    data_seed:       fixes the client's order of rows for the whole run; noise_seed: the dropout of this round.
    trainable:       names of the factors that are trained.
    optimizer_state: as an earlier round returned it; empty: a fresh optimizer.
    correct:         (parameters, gradients) -> None, changes gradients before they are clipped.
    factors:         parameters -> the factors that the model runs, differentiable; None: they are the same.
    scale:           that the model multiplies B A by; None: its own at that rank.
    correct_after:   (parameters, learning rate) -> None, changes parameters after a step.
    keystream:         where private training takes batches and noise from; None: fresh.
    """

    rows: Sequence[Learnt]
    training: LocalTraining
    round: int
    batches_seen: int
    data_seed: int
    noise_seed: int
    trainable: Sequence[str]
    optimizer_state: Tensors
    correct: Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], None]
    factors: Factors | None = None
    scale: float | None = None
    correct_after: Callable[[Mapping[str, Tensor], float], None] | None = None
    keystream: Keystream | None = None


class Optimisation:
    """One client's way through its round: which rows come next, and what is done with their gradient."""

    def __init__(self, job: LocalJob, parameters: Parameters) -> None:
        training = job.training
        self.job = job
        self.objective = objective_of(training)
        self.progress = Progress()
        parameters.train(job.trainable)
        self.parameters_all = parameters
        self.parameters = {name: parameters[name] for name in job.trainable}
        self._optimizer = LocalOptimizer(parameters, sorted(job.trainable), training, job.optimizer_state)
        self._total = training.tokens or steps_of(training, len(job.rows))
        self._stream = batches(len(job.rows), training.batch_size, job.data_seed, job.batches_seen)
        self._chosen: list[int] = []
        self.private: PrivateSteps | None = None
        if training.example_clip is not None:
            self.private = PrivateSteps(training, len(job.rows), job.keystream or Keystream())

    @property
    def _done(self) -> int:
        return self.progress.tokens if self.job.training.tokens else self.progress.steps

    @property
    def goes_on(self) -> bool:
        """Whether steps are left."""
        return self._done < self._total

    @property
    def noise_seed(self) -> int:
        """Seed of the present step's dropout."""
        # What the job's seed gives could be known to whoever looks at the result.
        root = self.private.dropout_seed if self.private else self.job.noise_seed
        return seeds.derive(root, self.progress.steps)

    def next_rows(self) -> list[Learnt]:
        """Return the rows of the next step, none perhaps in private training; forget the last one's gradient.

        Raises:
            TrainingFailed: none of them has a supervised token.
        """
        self._chosen = self.private.batch() if self.private else next(self._stream)
        self.forget_gradients()
        rows = [self.job.rows[i] for i in self._chosen]
        if self.private is None and self.objective.count(rows) == 0:
            raise TrainingFailed("a batch has no supervised token")
        return rows

    def forget_gradients(self) -> None:
        """Set all gradients to zero."""
        self.parameters_all.zero_gradients()

    def step(self, rows: Sequence[Learnt], sums: Sequence[float]) -> None:
        """Take one optimizer step with the gradients that have been added up.

        sums: of the loss of ``rows`` and of what the objective measures.

        Raises:
            TrainingFailed: the loss or a gradient is not finite.
        """
        training = self.job.training
        if not math.isfinite(sums[0]):
            raise TrainingFailed(f"the training loss became {sums[0]}")
        unit = num_tokens(rows) if training.tokens else 1
        rate = learning_rate(training, self.job.round, self._done, self._total, unit)
        grads = {name: p.grad for name, p in self.parameters.items() if p.grad is not None}
        with torch.no_grad():
            self.job.correct(self.parameters, grads)
        if training.max_grad_norm > 0:
            _clip(self._optimizer.gradients(), training.max_grad_norm, self.progress.steps)
        self._optimizer.step(rate)
        if self.job.correct_after is not None:
            with torch.no_grad():
                self.job.correct_after(self.parameters, rate)
        self.progress.steps += 1
        self.progress.learning_rates.append(rate)
        if self.private is None:
            _count(self.progress, self.objective, rows, self._chosen, sums)

    def state(self) -> Tensors:
        """Return the optimizer's state; empty unless it is to be kept."""
        return self._optimizer.state() if self.job.training.keep_optimizer else {}


class Trainer:
    """Trains the adapter that is loaded in a model, alone or as the leader of a crew."""

    def __init__(self, model: AdaptedModel, crew: Crew | None = None) -> None:
        self.model = model
        self._crew = crew
        self._most_rows: int | None = None

    def train(
        self,
        job: LocalJob,
        adapter: Mapping[str, Tensor],
        on_step: Callable[[Progress], None] = lambda progress: None,
        ledger: Mapping[str, Tensor] | None = None,
    ) -> tuple[Progress, Tensors, Tensors]:
        """Train ``adapter`` until the round's steps, epochs or tokens are spent.

        Returns what was done, the optimizer's state (empty unless it is kept) and the trained adapter.

        Raises:
            TrainingFailed: the loss or a gradient is not finite, or memory does not suffice for one example.
        """
        # Found anew by every client: how a batch is cut must not depend on who trained before.
        self._most_rows = None
        if job.factors is None:
            self.model.load(adapter, ledger, scale=job.scale)
            parameters = self.model.parameters
        else:
            parameters = self.model.parameters_of(adapter)
            self.model.load(_values(job.factors(parameters)), ledger, scale=job.scale)
        own = Optimisation(job, parameters)
        self.model.train_mode(True)
        try:
            while own.goes_on:
                rows = own.next_rows()
                own.step(rows, self._gradients(own, rows))
                on_step(own.progress)
        finally:
            self.model.train_mode(False)
            self.model.parameters.forget()
        return own.progress, own.state(), parameters.read()

    def _gradients(self, own: Optimisation, rows: Sequence[Learnt]) -> list[float]:
        """Fill ``grad`` with the gradient of the step's mean loss; return the sums of loss and measures."""
        while True:
            given = own.job.training.micro_batch_size
            most = max(1, min(x for x in (given, self._most_rows, len(rows)) if x is not None))
            own.forget_gradients()
            try:
                if own.job.factors is None:
                    return self._accumulate(own, rows, most)
                return self._through_factors(own, own.job.factors, rows, most)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if most == 1:
                    longest = (
                        "" if own.private else f" of up to {max(len(row.ids) for row in rows_of(rows))} tokens"
                    )
                    raise TrainingFailed(f"out of memory on a single example{longest}") from error
            # Outside the handler, where the failed pass is no longer referenced.
            release_memory(self.model.device)
            self._most_rows = max(1, most // 2)
            log.warning(
                "out of memory with %d examples a pass; doing the step again with %d (see micro_batch_size)",
                most,
                self._most_rows,
            )

    def _accumulate(self, own: Optimisation, rows: Sequence[Learnt], most: int) -> list[float]:
        """Add the gradient of the factors that the model runs to their ``grad``; return the sums."""
        if own.private is not None:
            accumulate_clipped(self.model, rows, most, own.noise_seed, own.private.clip_norm, own.objective)
            own.private.finish(self.model.parameters.trained_gradients())
            return [0.0]
        if self._crew is not None:
            return _numbers(self._crew.gradients(rows_of(rows), most, own.noise_seed))
        return _numbers(accumulate(self.model, rows, most, own.noise_seed, objective=own.objective))

    def _through_factors(
        self, own: Optimisation, factors: Factors, rows: Sequence[Learnt], most: int
    ) -> list[float]:
        """Fill the gradient of what is trained from that of the factors it stands for."""
        made = factors(own.parameters_all)
        running = self.model.parameters
        running.load(_values(made))
        moving = [name for name, tensor in made.items() if tensor.requires_grad]
        running.train(moving)
        sums = self._accumulate(own, rows, most)
        torch.autograd.backward([made[name] for name in moving], [running[name].grad for name in moving])
        return sums


def _numbers(sums: Tensor) -> list[float]:
    return [float(value) for value in sums.tolist()]


def _values(factors: Mapping[str, Tensor]) -> Tensors:
    return {name: tensor.detach() for name, tensor in factors.items()}


def _clip(grads: Sequence[Tensor], norm: float, step: int) -> None:
    total = torch.nn.utils.get_total_norm(grads)
    if not torch.isfinite(total):
        raise TrainingFailed(f"the gradient became {float(total)} at step {step + 1}")
    scale = torch.clamp(norm / (total + 1e-6), max=1.0)
    torch._foreach_mul_(list(grads), scale)


def _count(
    progress: Progress,
    objective: Objective,
    batch: Sequence[Learnt],
    chosen: list[int],
    sums: Sequence[float],
) -> None:
    progress.examples += len(batch)
    progress.tokens += num_tokens(batch)
    progress.supervised_tokens += num_supervised(batch)
    progress.summed += sums[0]
    progress.counted += objective.count(batch)
    for name, value in zip(objective.measures, sums[1:], strict=True):
        progress.sums[name] = progress.sums.get(name, 0.0) + value
    progress.rows.update(chosen)
