"""A job's rounds played without its model: who takes part, for how many steps, what travels and what is kept.

The loop, the algorithm, the selection and the seeds are the run's own; only training is replaced by noise. Layers
of one shape are played once, so that a round of a large model takes milliseconds.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from fedit import arms, lora, tensors
from fedit.estimate import rows_per_step
from fedit.facts import bytes_of, distinct_layers, entries_of, tensors_of
from fedit.job import Job
from fedit.model.kinds import KINDS, Options
from fedit.model.shapes import adapted_layers, empty_model
from fedit.model.targets import choose_targets
from fedit.pace.asynchronous import Asynchronous
from fedit.pace.synchronous import Synchronous
from fedit.privacy.setup import client_sampling
from fedit.privacy.steps import steps_of
from fedit.rehearsal import Player, fresh, play
from fedit.rounds import left_under_way, run_rounds
from fedit.strategies.base import Strategy
from fedit.types import (
    ClientFailure,
    ClientInfo,
    ClientTask,
    ClientUpdate,
    LocalTraining,
    ServerState,
    Tensors,
)
from fedit.worker import share_of

MOST_ENTRIES = 1e8
"""Numbers that are moved in all; rounds beyond are as those before."""
MOST_TASKS = 1000
"""Clients' rounds that are played; likewise."""
FEWEST_ROUNDS = 3
_HEADER = 100
"""Bytes that a file of tensors has for the name and shape of each."""
TUNED = "tuned"
"""Module that stands for all tensors where what is trained is no LoRA: such algorithms treat all of them alike."""


@dataclass(frozen=True, slots=True)
class Layers:
    """What is trained, as far as sizes go.

    modules: name -> (in, out) of every layer with LoRA factors; empty where something else is trained.
    others:  numbers that are trained where that is not LoRA.
    base:    parameters of the base.
    """

    modules: Mapping[str, tuple[int, int]]
    others: int
    base: int

    @property
    def names(self) -> list[str]:
        """What the layers with factors are called, without their places."""
        return sorted({name.rpartition(".")[2] for name in self.modules})


@dataclass(frozen=True, slots=True)
class Task:
    """A client in a round.

    steps: of the adapter that leaves; tokens: of all that it trains, expected.
    up, down: bytes that it sends and is sent; of those extra_up is what the algorithm has beside the adapter, and
            ledger what it is sent as a correction of the base.
    """

    client: str
    steps: int
    tokens: float
    up: int
    down: int
    extra_up: int
    ledger: int = 0


@dataclass(frozen=True, slots=True)
class Round:
    """A round: its clients, the bytes sent in vain to those who were not waited for, and the server's state."""

    tasks: tuple[Task, ...]
    in_vain: int
    state: int


@dataclass(frozen=True, slots=True)
class Played:
    """The rounds of a job.

    rounds:     those that were played: all, or the first.
    of:         rounds of the job.
    foreseen:   whether the run's cohorts are these: they follow from the seed alone.
    trainable:  numbers that are trained, as a run says it.
    first_state: bytes of the server's state before round 1.
    kept:       client -> bytes that it keeps, of those that took part; what transforms remember comes on top.
    under_way:  bytes sent to clients that the end leaves under way.
    update, broadcast: what one client sent and was sent in the last round: of distinct layers only.
    counts:     module -> layers that it stands for.
    """

    rounds: tuple[Round, ...]
    of: int
    foreseen: bool
    trainable: int
    first_state: int
    kept: Mapping[str, int]
    under_way: int
    update: ClientUpdate | None
    broadcast: tuple[Tensors, Tensors, Tensors]
    counts: Mapping[str, int]

    @property
    def whole(self) -> bool:
        """Whether every round was played."""
        return len(self.rounds) == self.of

    def total(self, of_round: Callable[[Round], float]) -> float:
        """Return the sum over all rounds; those that were not played are as those that were, on average."""
        return sum(map(of_round, self.rounds)) * self.of / max(len(self.rounds), 1)


def layers_of(job: Job) -> Layers:
    """Return what the job trains, from the model's configuration; no weights are loaded.

    Raises:
        ModelError: the model has no layers that could be tuned like this.
    """
    config = job.config
    model = empty_model(job.source)
    base = sum(parameter.numel() for parameter in model.parameters())
    if config.tuning == "lora":
        return Layers(adapted_layers(model, choose_targets(model, config.lora_target_modules)), 0, base)
    options = Options(
        config.rank, config.lora_alpha, 0.0, config.lora_target_modules, config.use_rslora,
        config.virtual_tokens, config.seed,
    )  # fmt: skip
    wrapped, _ = KINDS[config.tuning].wrap(model, options)
    trained = sum(parameter.numel() for parameter in wrapped.parameters() if parameter.requires_grad)
    return Layers({}, trained, base)


def play_rounds(job: Job, layers: Layers) -> Played:
    """Play the job's federation.

    Raises:
        RoundError: as the run would: nobody is available.
        UserError: settings that cannot work together.
    """
    arm = arms.federated(job)
    initial, counts = _initial(job, layers)
    server = replace(arm.strategy.init(initial), scale=job.config.scale)
    cohort = arm.cohort
    if job.config.privacy == "client":
        # Who takes part is secret; only what a cohort of the expected size sends matters.
        size = min(max(round(client_sampling(job.config, arm.strategy, len(job.seen)).expected), 1), len(job.seen))
        cohort = _first(size)
    engine = _Clients(job, arm.describe, arm.strategy, server.adapter, counts)
    trainable = entries_of(
        {
            name: tensor
            for name, tensor in server.adapter.items()
            if any(arm.strategy.trains(name, round) for round in range(1, arm.rounds + 1))
        },
        counts,
    )
    rounds: list[Round] = []
    state = server
    for state, record in run_rounds(
        server,
        engine,
        arm.strategy,
        rounds=_rounds_to_play(job, server.adapter),
        cohort=cohort,
        training=lambda round: job.training(example_noise=0.0),
        seed=job.config.seed,
        min_clients=arm.min_clients,
        weigh=lambda client: client.num_examples if job.config.weighting == "examples" else 1.0,
    ):
        tasks = engine.take()
        each = sum(task.down for task in tasks) / max(len(tasks), 1)
        rounds.append(Round(tasks, round(each * len(record.dropped)), _state_bytes(state, counts)))
    left = left_under_way(state, engine, arm.strategy, cohort)
    down = [task.down for one in rounds for task in one.tasks]
    return Played(
        tuple(rounds),
        arm.rounds,
        job.config.privacy != "client" and _foreseen(cohort),
        trainable,
        _state_bytes(server, counts),
        engine.kept(),
        round(len(left.clients) * sum(down) / max(len(down), 1)),
        engine.last,
        engine.last_sent,
        counts,
    )


class _Clients:
    """An engine whose clients learn nothing: their tensors move by seeded noise."""

    def __init__(
        self,
        job: Job,
        describe: Callable[[str, int], ClientInfo],
        strategy: Strategy,
        start: Tensors,
        counts: Mapping[str, int],
    ) -> None:
        self._job = job
        self._strategy = strategy.settled(start)
        self._start = start
        self._counts = counts
        rows = {client: self._rows(client) for client in job.seen}
        self._tokens = {client: own[1] for client, own in rows.items()}
        self._players = {client: Player(describe(client, own[0])) for client, own in rows.items()}
        self._own: dict[str, int] = {}
        self._tasks: list[Task] = []
        self.last: ClientUpdate | None = None
        self.last_sent: tuple[Tensors, Tensors, Tensors] = ({}, {}, {})

    def _rows(self, client: str) -> tuple[int, float]:
        """Return how many rows a client trains on, and how many tokens one has on average."""
        own = arms.ArmRows(self._job, {client: [client]})[client]
        return len(own), sum(len(row.ids) for example in own for row in example.rows) / max(len(own), 1)

    def clients(self) -> Sequence[ClientInfo]:
        """Return all clients, sorted by id."""
        return [self._players[client].info for client in sorted(self._players)]

    def run(self, tasks: Sequence[ClientTask]) -> Iterator[ClientUpdate | ClientFailure]:
        """Yield what every client sends."""
        for task in tasks:
            yield self._play(task)

    def take(self) -> tuple[Task, ...]:
        """Return the tasks since the last call."""
        tasks, self._tasks = tuple(self._tasks), []
        return tasks

    def kept(self) -> dict[str, int]:
        """Return the bytes that every client keeps that took part."""
        job, found = self._job, {}
        trained = sum(t.numel() for n, t in self._start.items() if self._strategy.trains(n, 1))
        moments = 2 if job.config.optimizer == "adamw" else int(job.config.momentum > 0)
        for client, own in self._own.items():
            state = self._players[client].state
            held = own + _file_bytes((state.private, state.memory), self._counts)
            if job.config.client_optimizer == "keep":
                held += moments * 4 * round(trained * self._scale())
            if job.config.objective == "dpo":
                held += 8 * self._players[client].info.num_examples
            found[client] = held
        return found

    def _scale(self) -> float:
        """Return how many times the numbers of distinct layers all layers have."""
        return entries_of(self._start, self._counts) / max(sum(t.numel() for t in self._start.values()), 1)

    def _play(self, task: ClientTask) -> ClientUpdate:
        player = self._players[task.client_id]
        sent = task.broadcast
        start = lora.completed({**sent.adapter, **player.state.private}, self._start)
        whole = replace(
            task, broadcast=replace(sent, adapter=start, scale=1.0 if sent.scale is None else sent.scale)
        )
        phases = self._strategy.phases(whole, player.state)
        rows = player.info.num_examples
        steps, tokens = 0, 0.0
        for phase in phases:
            own = share_of(task.training, phase.share, rows)
            count = self._steps(task.client_id, own, rows)
            steps += 0 if phase.own else count
            tokens += count * rows_per_step(own, rows) * self._tokens[task.client_id]
        self._own[task.client_id] = sum(phase.own for phase in phases) * bytes_of(start, self._counts)
        _, update = play(self._strategy, player, sent, start, task.round, task.training, task.seed)
        self.last, self.last_sent = update, (sent.adapter, sent.ledger, sent.extra)
        extra = bytes_of(update.extra, self._counts)
        self._tasks.append(
            Task(
                task.client_id,
                steps,
                tokens,
                bytes_of(update.delta, self._counts) + extra,
                sum(bytes_of(held, self._counts) for held in self.last_sent),
                extra,
                bytes_of(sent.ledger, self._counts),
            )
        )
        return update

    def _steps(self, client: str, training: LocalTraining, rows: int) -> int:
        if training.tokens is None:
            return steps_of(training, rows)
        each = rows_per_step(training, rows) * self._tokens[client]
        return max(1, math.ceil(training.tokens / max(each, 1)))


def _initial(job: Job, layers: Layers) -> tuple[Tensors, dict[str, int]]:
    """Return the adapter of distinct layers, and how many layers each stands for."""
    dtype = torch.float64 if job.config.dtype == "fp64" else torch.float32
    if not layers.modules:
        return {f"{TUNED}.value": torch.zeros(1, dtype=dtype)}, {TUNED: layers.others}
    distinct, counts = distinct_layers(list(layers.modules.values()))
    if type(job.strategy).settled is not Strategy.settled:  # it treats layers by their names
        distinct, counts = dict(layers.modules), dict.fromkeys(layers.modules, 1)
    adapter = fresh(distinct, job.config.rank, job.config.seed)
    return tensors.flatten({name: tensor.to(dtype) for name, tensor in adapter.items()}), counts


def _rounds_to_play(job: Job, adapter: Tensors) -> int:
    entries = sum(tensor.numel() for tensor in adapter.values())
    most = min(MOST_ENTRIES / max(entries, 1), MOST_TASKS) / job.cohort_size
    return min(job.config.num_rounds, max(int(most), FEWEST_ROUNDS))


def _first(size: int) -> Callable[[Sequence[ClientInfo], int], list[str]]:
    return lambda clients, round: [client.client_id for client in clients[:size]]


def _foreseen(pace: object) -> bool:
    """Return whether the run's cohorts follow from its seed: nothing is heard of losses, nothing is timed."""
    if isinstance(pace, Synchronous):
        return not pace.selection.remembers and pace.clock is None
    return not isinstance(pace, Asynchronous)


def _state_bytes(state: ServerState, counts: Mapping[str, int]) -> int:
    return _file_bytes((state.adapter, state.ledger, state.memory, state.schedule, state.privacy), counts)


def _file_bytes(parts: Sequence[Tensors], counts: Mapping[str, int]) -> int:
    """Return the bytes of a file of tensors."""
    named = {module: count for module, count in counts.items() if module != TUNED}
    return sum(bytes_of(held, counts) + _HEADER * tensors_of(held, named) for held in parts)
