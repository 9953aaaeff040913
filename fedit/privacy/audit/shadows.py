"""Shadow models for LiRA: adapters trained here on random halves of the audited rows (arXiv:2112.03570)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedit import seeds
from fedit.data.examples import Example
from fedit.errors import ConfigError
from fedit.evaluation.loss import row_losses
from fedit.job import Job
from fedit.objectives import num_tokens
from fedit.stacked import MOST_CLIENTS, StackedTrainer
from fedit.training import LocalJob, Trainer, TrainingFailed
from fedit.types import Tensors


@dataclass(frozen=True, slots=True)
class Plan:
    """So many shadows, each trained for ``steps`` on half of the rows; tokens: of all of it."""

    shadows: int
    steps: int
    tokens: int


def plan(job: Job, rows: Sequence[Example], shadows: int, passes: float) -> Plan:
    """Return what shadows take that see their rows as often as the run's members were seen, ``passes`` times.

    Raises:
        ConfigError: shadows are not even in number, or cannot learn what the job's clients learn.
    """
    if shadows < 2 or shadows % 2:
        raise ConfigError(f"--shadows is {shadows}; expected an even number, so that each row is in half of them.")
    if job.config.objective != "sft":
        raise ConfigError(
            f"--shadows are trained on answers alone, and the run's objective is {job.config.objective}."
        )
    steps = max(1, round(passes * (len(rows) // 2) / job.config.batch_size))
    mean = num_tokens(job.tokens(rows)) / max(len(rows), 1)
    return Plan(shadows, steps, round(shadows * steps * min(job.config.batch_size, len(rows) // 2) * mean))


def shadow_confidence(
    job: Job, rows: Sequence[Example], planned: Plan, say: Callable[[str], None]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return minus the mean loss of every row under every shadow, and which shadow saw which row: (models, rows).

    Raises:
        TrainingFailed: a shadow's loss is not finite, or memory does not suffice.
    """
    inside = halves(planned.shadows, len(rows), seeds.derive(job.config.seed, "audit", "shadows"))
    tokens = job.tokens(rows)
    start = job.model.initial(job.config.seed)
    width = MOST_CLIENTS[job.model.device.type] if job.model.fast is not None else 1
    found = np.empty(inside.shape)
    for first in range(0, planned.shadows, width):
        say(f"training shadow {first + 1} of {planned.shadows}")
        mine = range(first, min(first + width, planned.shadows))
        jobs = [_job(job, [tokens[i] for i in np.flatnonzero(inside[n])], planned.steps, n, start) for n in mine]
        adapters = _trained(job, jobs, start)
        for number, losses in zip(mine, row_losses(job.model, adapters, [tokens] * len(adapters)), strict=True):
            found[number] = -(losses.sums / losses.counts).numpy()
    return found, inside


def halves(shadows: int, rows: int, seed: int) -> NDArray[np.bool_]:
    """Return which shadow sees which row, (shadows, rows): every second one what the one before it does not."""
    rng = np.random.default_rng(seed)
    inside = np.zeros((shadows, rows), dtype=np.bool_)
    for first in range(0, shadows, 2):
        inside[first, rng.permutation(rows)[: rows // 2]] = True
        inside[first + 1] = ~inside[first]
    return inside


def _job(job: Job, rows: Sequence[object], steps: int, number: int, start: Tensors) -> LocalJob:
    how = job.training(
        num_rounds=1,
        steps=steps,
        epochs=None,
        tokens=None,
        schedule="constant",
        warmup_ratio=0.0,
        keep_optimizer=False,
    )
    seed = seeds.derive(job.config.seed, "audit", "shadow", number)
    return LocalJob(
        rows,  # type: ignore[arg-type]  # token rows
        how,
        round=1,
        batches_seen=0,
        data_seed=seed,
        noise_seed=seed,
        trainable=list(start),
        optimizer_state={},
        correct=lambda params, grads: None,
    )


def _trained(job: Job, jobs: Sequence[LocalJob], start: Tensors) -> list[Tensors]:
    if len(jobs) == 1:
        return [Trainer(job.model, job.crew).train(jobs[0], start)[2]]
    results = StackedTrainer(job.model).train(jobs, [start] * len(jobs))
    for result in results:
        if isinstance(result, TrainingFailed):
            raise result
    return [result[2] for result in results if not isinstance(result, TrainingFailed)]
