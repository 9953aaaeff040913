"""How long a study takes: its trainings, and its answers, a few of which are written to time them."""

import time
from collections.abc import Mapping, Sequence

from fedit.compute import Compute
from fedit.config import StudyConfig
from fedit.estimate import estimate, tokens_of_client
from fedit.evaluation.generate import FEW_PROMPTS
from fedit.evaluation.questions import Question
from fedit.job import Job
from fedit.model.fast.decode import Prompt
from fedit.objectives import num_tokens

SOME_TOKENS = 8
"""New tokens an answer that are timed."""


def expected_tokens(job: Job, arms: Sequence[str]) -> float:
    """Return about how many tokens ``arms`` train on together."""
    whole = estimate(job, job.config.num_rounds, 1.0).tokens
    local = [client for kind, _, client in (arm.partition(":") for arm in arms) if kind == "local"]
    own = sum(job.config.num_rounds * tokens_of_client(job, client) for client in local)
    return whole * (len(arms) - len(local)) + own


def evaluation_work(job: Job) -> float:
    """Return what the evaluations of one arm cost, in tokens of training that take as long."""
    whole = estimate(job, job.config.num_rounds, 1.0)
    # A forward pass costs about a third of a training pass. At the end every row is measured once more.
    return whole.seconds - whole.tokens + num_tokens(job.learnt(job.held_out)) / 3


def expected_answers(
    job: Job, study: StudyConfig, questions: Mapping[str, Sequence[Question]], *, seeds: int, first: bool
) -> list[tuple[int, int]]:
    """Return (how many answers an arm gives, the most tokens of one), for held-out rows and for questions.

    seeds: still to be done; first: the first, at which questions are asked, is among them.
    """
    found = [(seeds * len(job.held_out), job.config.max_new_tokens)] if study.generate else []
    turns = sum(len(question.turns) for own in questions.values() for question in own)
    return found + [(turns, study.question_tokens)] * (first and turns > 0)


def seconds_of_answers(job: Job, compute: Compute, answers: Sequence[tuple[int, int]]) -> float:
    """Return about how long so many answers take all workers together, if each is as long as it may be.

    answers: (how many, tokens of each). A few held-out instructions are answered for it.
    """
    if not answers or not job.held_out:
        return 0.0
    sample = job.held_out[:: max(len(job.held_out) // (FEW_PROMPTS * compute.workers), 1)]
    prompts = [Prompt(ids) for ids in job.prompts(sample)]
    adapter = compute.initial()

    def timed(some: Sequence[Prompt], tokens: int) -> float:
        started = time.perf_counter()
        compute.answers([adapter], some, max_new_tokens=tokens)
        return time.perf_counter() - started

    timed(prompts[: compute.workers], 1)  # first calls pay for set-up
    read = timed(prompts, 1) / len(prompts)
    written = max(timed(prompts, 1 + SOME_TOKENS) / len(prompts) - read, 0.0) / SOME_TOKENS
    return sum(count * (read + (longest - 1) * written) for count, longest in answers)
