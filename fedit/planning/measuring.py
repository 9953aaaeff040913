"""A few seconds of the run itself: its loop, engine and processes, on its rows, in a folder that goes away."""

import tempfile
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from fedit import arms
from fedit.arms import Arm
from fedit.compute import Compute
from fedit.config import RunConfig
from fedit.errors import ConfigError
from fedit.estimate import rows_per_step, tokens_of_client
from fedit.events import Event, EventLog
from fedit.federation import train
from fedit.job import Job
from fedit.launch import compute_of, pool_of
from fedit.model.adapted import FAST_TOKENS, GENERAL_TOKENS
from fedit.model.hardware import choose_device
from fedit.objectives import num_tokens
from fedit.planning.memory import Peaks, Watch
from fedit.prepare import check_strategy, prepare
from fedit.study.expected import seconds_of_answers
from fedit.types import LocalTraining

SECONDS = 3.0
"""What the longest measured round is to take; with loading and evaluations a plan takes a few times this."""
FEWEST_CLIENTS = 8
"""Clients that are enough for every rule that outvotes somebody."""
MOST_WORKERS = 8
EVALUATED_TOKENS = 1024
"""Held-out tokens a worker that are measured, at least; a pass over the base on a CPU."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured.

    loading:      seconds until the model was loaded, with starting processes and preparing the data there.
    round:        seconds of a round beside its training; token: of training on one in one of all processes.
    evaluation:   seconds of measuring a held-out token, all workers together.
    answer:       of one answer of full length, all workers together; 0 where a run writes none.
    tokens:       of the round that was timed; clients: of it; passes: of one process in all rounds.
    stack:        clients that train in one pass; why_general: why the fast path is not used, where it was wanted.
    seconds:      that measuring took.
    """

    loading: float
    round: float
    token: float
    evaluation: float
    answer: float
    tokens: float
    clients: int
    passes: float
    workers: int
    stack: int
    why_general: str | None
    peaks: Peaks | None
    seconds: float


def measure(job: Job, *, answers: bool, say: Callable[[str], None]) -> Measured:
    """Run a few short rounds of ``job`` and time them.

    answers: whether the run writes answers, so that some are timed.
    say:     hears what is being done.

    Raises:
        FeditError: as the run would.
    """
    begun = time.perf_counter()
    small = _shortened(job)
    with tempfile.TemporaryDirectory(prefix="fedit-plan-", ignore_cleanup_errors=True) as scratch:
        folder = Path(scratch)
        with Watch() as watch, pool_of(small.config, folder, small.num_threads) as pool, closing(small):
            say("loading the model …")
            compute = compute_of(small, pool, folder)
            compute.initial()
            loading = time.perf_counter() - begun
            say("training for a few seconds …")
            rounds = _Rounds(small, compute, folder)
            each, token = rounds.time()
            written = 0.0
            if answers:
                say("writing a few answers …")
                written = seconds_of_answers(small, compute, [(1, job.config.max_new_tokens)])
            workers, why = compute.workers, compute.why_general()
    return Measured(
        loading,
        each,
        token,
        rounds.evaluation,
        written,
        rounds.tokens,
        rounds.clients,
        rounds.passes / workers,
        workers,
        small.stack_width,
        why,
        watch.peaks,
        time.perf_counter() - begun,
    )


class _Rounds:
    """Short rounds of a federation, one after the other in one folder."""

    def __init__(self, job: Job, compute: Compute, folder: Path) -> None:
        self._job = job
        self._compute = compute
        self._folder = folder
        self._log = EventLog(folder, arm=arms.FEDERATED)
        self._done = 0
        self._evaluated = num_tokens(job.learnt([*job.held_out, *job.validation]))
        self.evaluation = self.tokens = 0.0
        self.clients = 0
        self.passes = 0.0

    def time(self) -> tuple[float, float]:
        """Return seconds of a round beside its training, and of a token."""
        most = _own_steps(self._job)
        warm, _ = self._round(1)  # first calls pay for set-up
        short, few = self._round(1)
        steps = min(most, int(SECONDS / max(short, 1e-3)))
        if steps < 2 or warm > 2 * SECONDS:
            return 0.0, self._alone(short / max(few, 1))
        long, many = self._round(steps)
        token = max(long - short, 0.0) / max(many - few, 1)
        if token == 0 or token * many > long:
            return 0.0, self._alone(long / max(many, 1))
        return long - token * many, self._alone(token)

    def _alone(self, token: float) -> float:
        """Return what one process takes for a token, from what those that were at work took together."""
        stacks = -(-self.clients // self._job.stack_width)
        return token * min(self._compute.workers, stacks)

    def _round(self, steps: int) -> tuple[float, float]:
        """Train a round of so many steps a client; return its seconds, without evaluation, and its tokens."""
        self._done += 1
        whole = self._job.training()
        how = replace(whole, steps=steps, epochs=None, tokens=None)
        arm: Arm = replace(arms.federated(self._job), rounds=self._done, training=lambda round: how)
        before = len(self._log.read())
        started = time.perf_counter()
        train(self._job, self._compute, arm, self._folder, self._log)
        seconds = time.perf_counter() - started
        events = self._log.read()[before:]
        evaluations = [event for event in events if event["event"] == "evaluation"]
        (done,) = [event for event in events if event["event"] == "round"]
        spent = [_number(event, "seconds") for event in evaluations]
        if spent:
            self.evaluation = spent[-1] / max(self._evaluated, 1)
        asked = done["cohort"]
        self.clients = len(asked) if isinstance(asked, list) else 1
        self.passes += steps * -(-self.clients // self._job.stack_width)
        self.tokens = self._tokens(done, steps, how)
        return seconds - sum(spent), self.tokens

    def _tokens(self, done: Event, steps: int, how: LocalTraining) -> float:
        if self._job.example_level is None:
            return _number(done, "tokens")
        # Private training does not say how many it took.
        job, rows = self._job, self._job.sizes
        each = [
            steps * rows_per_step(how, rows[client]) * num_tokens(job.learnt(job.clients[client])) / rows[client]
            for client in job.seen
        ]
        return self.clients * sum(each) / len(each)


def _own_steps(job: Job) -> int:
    """Return about how many steps a client's round has."""
    training = job.training(example_noise=0.0)
    if training.tokens is None and training.steps:
        return training.steps
    sizes = [job.sizes[client] for client in job.seen]
    mean = sum(sizes) / len(sizes)
    if training.tokens is not None:
        tokens = sum(tokens_of_client(job, client) for client in job.seen) / len(job.seen)
        row = sum(num_tokens(job.learnt(job.clients[c])) for c in job.seen) / max(sum(sizes), 1)
        return max(1, round(tokens / (training.batch_size * max(row, 1))))
    return max(1, round((training.epochs or 1) * mean / training.batch_size))


def _shortened(job: Job) -> Job:
    """Return the job with what a few rounds need, the same rows, model, algorithm and processes.

    Who takes part, when, and how clients are kept secret costs nothing worth measuring, and would make a short
    round another one; so would hostile clients.
    """
    config = job.config
    changes: dict[str, object] = {
        "eval_every": 1_000_000,
        "eval_max_examples": _rows_to_evaluate(job),
        "early_stopping": 0,
        "report_to": [],
        "exact_match": False,
        "compare": [],
        "attack": [],
        "attack_strength": None,
        "defence_steps": 0,
        "canaries": 0,
        "canaries_options": {},
        "keep_uploads": 0,
        "stack_clients": job.stack_width if config.devices_per_client == 1 else config.stack_clients,
    }
    if config.privacy == "client":
        changes |= {"privacy": "none", "privacy_options": {}}
    if job.strategy.buffer is None:
        for name, value in (("selection", "uniform"), ("devices", "none"), ("stragglers", "wait_all"),
                            ("availability", "always")):  # fmt: skip
            changes |= {name: value, f"{name}_options": {}}
    if config.objective == "dpo":
        # A pair costs what its two answers do; what the reference says of every pair is added to a plan apart.
        changes |= {"objective": "sft"}
    changes["batch_size"] = _rows_of_a_pass(job) * (2 if config.objective == "dpo" else 1)
    workers = config.num_workers or min(job.places, MOST_WORKERS)
    for cohort in (workers * job.stack_width, FEWEST_CLIENTS):
        if job.cohort_size > cohort and job.strategy.buffer is None:
            smaller = _changed(job, {**changes, "clients_per_round": cohort})
            with suppress(ConfigError):  # some algorithms need more
                check_strategy(smaller, smaller.strategy)
                return smaller
    return _changed(job, changes)


def _rows_of_a_pass(job: Job) -> int:
    """Return the batch size, or how many rows fill a pass: more are cut into several, which take as long each."""
    config = job.config
    rows = sum(job.sizes[client] for client in job.seen)
    tokens = sum(num_tokens(job.learnt(job.clients[client])) for client in job.seen)
    fast = config.fast_path and config.tuning == "lora"
    budget = (FAST_TOKENS if fast else GENERAL_TOKENS)[choose_device(config.device).type]
    wanted = max(1, round(budget * rows / max(tokens, 1)), config.micro_batch_size or 1)
    return min(config.batch_size, wanted)


def _changed(job: Job, changes: dict[str, object]) -> Job:
    config = RunConfig.model_validate({**job.config.model_dump(), **changes})
    if config.objective != job.config.objective or job.poisoned:
        return prepare(config, num_threads=job.num_threads)
    return replace(job, config=config)


def _rows_to_evaluate(job: Job) -> int:
    """Return how many held-out rows, and as many of validation, take about a pass in every worker."""
    rows = job.learnt([*job.held_out, *job.validation])
    parts = 2 if job.validation else 1
    each = num_tokens(rows) / max(len(rows), 1)
    wanted = EVALUATED_TOKENS * min(job.places, 8) / max(each, 1) / parts
    return max(1, min(int(wanted), job.config.eval_max_examples))


def _number(event: Event, name: str) -> float:
    value = event[name]
    if not isinstance(value, int | float):
        raise TypeError(f"expected a number in an event, found {value!r}")
    return float(value)
