"""How long will it take? A few seconds of measurement on the actual machine, model and rows."""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch

from fedit.config import RunConfig
from fedit.data.tokens import TokenRow
from fedit.job import Job
from fedit.objectives import negative_log_likelihood, num_tokens, rows_of
from fedit.types import LocalTraining

MEASURED_TOKENS = 256
MEASURED_CLIENTS = 64


@dataclass(frozen=True, slots=True)
class Estimate:
    """Expected cost of a run's rounds; baselines and generated answers come on top.

    tokens:            processed in training, prompts counted.
    tokens_per_second: measured, training, by all workers together.
    """

    tokens: int
    tokens_per_second: float
    evaluations: int
    seconds: float

    def as_dict(self) -> dict[str, float]:
        """Return the numbers by name."""
        return asdict(self)


def estimate(job: Job, rounds: int, per_token: float, workers: int = 1) -> Estimate:
    """Scale the training time of one token to ``rounds`` rounds and their evaluations over ``workers`` workers.

    per_token: seconds that one worker takes, from `seconds_per_token`.
    """
    config = job.config
    tokens = round(tokens_per_round(job) * rounds)
    evaluated = num_tokens(job.learnt([*job.held_out, *job.validation]))
    evaluations = evaluations_of(config, rounds) + (rounds == config.num_rounds)
    together = min(workers, job.cohort_size)
    # A forward pass costs about a third of a training pass.
    seconds = per_token * (tokens / together + evaluations * evaluated / 3 / workers)
    return Estimate(tokens, together / per_token, evaluations, seconds)


def evaluations_of(config: RunConfig, rounds: int) -> int:
    """Return how often held-out rows are measured in so many rounds, the last of which always is."""
    return -(-rounds // config.eval_every)


def seconds_per_token(job: Job) -> float:
    """Time one small training pass on rows of common lengths."""
    firsts = [examples[:4] for examples in list(job.clients.values())[:MEASURED_CLIENTS]]
    rows = [row for examples in firsts for row in rows_of(job.learnt(examples))]
    sample = _fill(sorted(rows, key=lambda row: len(row.ids))[len(rows) // 4 :])
    _time_training(job, sample[:1])  # first calls pay for set-up
    return _time_training(job, sample) / sum(len(row.ids) for row in sample)


def tokens_per_round(job: Job) -> float:
    """Return the tokens that a round takes on average over cohorts."""
    if job.training(example_noise=0.0).tokens:
        return float(job.cohort_size * (job.training(example_noise=0.0).tokens or 0))
    return job.cohort_size * sum(tokens_of_client(job, client) for client in job.clients) / len(job.clients)


def tokens_of_client(job: Job, client: str) -> float:
    """Return about how many tokens a client takes in a round."""
    training = job.training(example_noise=0.0)
    if training.tokens:
        return float(training.tokens)
    examples = job.learnt(job.clients[client])
    rows: float = (training.epochs or 1) * len(examples)
    if training.steps:
        rows = training.steps * rows_per_step(training, len(examples))
    return rows * num_tokens(examples) / len(examples)


def rows_per_step(training: LocalTraining, num_rows: int) -> float:
    """Return the rows of a step on average: the last batch of an epoch may be smaller.

    num_rows: of the client.
    """
    if training.example_clip is not None:  # a private batch is drawn by coins
        return float(min(training.batch_size, num_rows))
    return num_rows / math.ceil(num_rows / training.batch_size) if num_rows else 0.0


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
