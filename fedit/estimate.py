"""How long will it take? A few seconds of measurement on the actual machine, model and rows."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch

from fedit.data.tokens import TokenRow
from fedit.objectives import negative_log_likelihood
from fedit.prepare import Job

MEASURED_TOKENS = 256


@dataclass(frozen=True, slots=True)
class Estimate:
    """Expected cost of a run's rounds; baselines and generated answers come on top.

    tokens:            processed in training, prompts counted.
    tokens_per_second: measured, training.
    """

    tokens: int
    tokens_per_second: float
    evaluations: int
    seconds: float

    def as_dict(self) -> dict[str, float]:
        """Return the numbers by name."""
        return asdict(self)


def estimate(job: Job, rounds: int) -> Estimate:
    """Time one small training pass and scale it to ``rounds`` rounds and their evaluations."""
    config = job.config
    rows = [row for examples in job.clients.values() for row in job.tokens(examples[:4])]
    sample = _fill(sorted(rows, key=lambda row: len(row.ids))[len(rows) // 4 :])
    _time_training(job, sample[:1])  # first calls pay for set-up
    per_token = _time_training(job, sample) / sum(len(row.ids) for row in sample)
    tokens = round(_tokens_per_round(job) * rounds)
    evaluated = sum(len(row.ids) for row in job.tokens([*job.held_out, *job.validation]))
    evaluations = -(-rounds // config.eval_every) + (rounds == config.num_rounds)
    # A forward pass costs about a third of a training pass.
    seconds = per_token * (tokens + evaluations * evaluated / 3)
    return Estimate(tokens, 1 / per_token, evaluations, seconds)


def _tokens_per_round(job: Job) -> float:
    """Return the tokens that a round takes on average over cohorts."""
    training = job.training()
    if training.tokens:
        return float(job.cohort_size * training.tokens)
    expected = 0.0
    for examples in job.clients.values():
        lengths = [len(row.ids) for row in job.tokens(examples)]
        rows = training.steps * training.batch_size if training.steps else (training.epochs or 1) * len(lengths)
        expected += rows * sum(lengths) / len(lengths)
    return job.cohort_size * expected / len(job.clients)


def _fill(rows: Sequence[TokenRow]) -> list[TokenRow]:
    chosen: list[TokenRow] = []
    for row in rows:
        chosen.append(row)
        if sum(len(r.ids) for r in chosen) >= MEASURED_TOKENS:
            break
    return chosen


def _time_training(job: Job, rows: Sequence[TokenRow]) -> float:
    model = job.model
    started = time.perf_counter()
    batch = model.collate(rows)
    negative_log_likelihood(model, batch).backward()
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    for parameter in model.parameters.values():
        parameter.grad = None
    return time.perf_counter() - started
