"""What settings, rows and shapes alone come to: parameters, steps, bytes, disk, privacy. Nothing is measured."""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedit.estimate import evaluations_of, tokens_of_client
from fedit.facts import distinct_layers
from fedit.job import Job
from fedit.objectives import num_tokens
from fedit.planning.played import Layers, Played, Round, Task, layers_of, play_rounds
from fedit.privacy.accounting import Charge, epsilon_of
from fedit.privacy.setup import client_privacy, client_sampling, planned
from fedit.privacy.spending import charge_of, undominated
from fedit.privacy.steps import steps_of
from fedit.seeds import derive
from fedit.store import GENERATIONS
from fedit.transforms.base import Stage
from fedit.transforms.chain import Downlink, send
from fedit.types import Broadcast, ClientTask, Tensors

_EPSILON_SPREAD = 1.05
_PACKED_SPREAD = 1.3
"""How far transforms may be off whose result depends on what is learnt."""
_MASKED_SPREAD = 1.3
"""Secure aggregation sends keys, shares and masks beside 64-bit entries; how many depends on who drops out."""
_PICTURES = 2_000_000
"""Bytes of a run's report, pictures and summaries."""
_EVENTS = 600
"""Bytes that the log has of a client's round."""


@dataclass(frozen=True, slots=True)
class Range:
    """A number that is expected, and what it will be between."""

    expected: float
    low: float
    high: float

    @classmethod
    def exactly(cls, value: float) -> "Range":
        """Return a number that is known."""
        return cls(value, value, value)

    @classmethod
    def within(cls, value: float, factor: float) -> "Range":
        """Return a number that is right within a factor."""
        return cls(value, value / factor, value * factor)

    def __add__(self, other: "Range") -> "Range":
        return Range(self.expected + other.expected, self.low + other.low, self.high + other.high)

    def times(self, factor: float) -> "Range":
        """Return the number so many times."""
        return Range(self.expected * factor, self.low * factor, self.high * factor)

    @property
    def exact(self) -> bool:
        """Whether it is known."""
        return self.low == self.high

    def as_dict(self, *, whole: bool = True) -> dict[str, float]:
        """Return expected, low and high by name; whole: as whole numbers."""
        values = {"expected": self.expected, "low": self.low, "high": self.high}
        return {name: round(value) if whole else round(value, 4) for name, value in values.items()}


@dataclass(frozen=True, slots=True)
class Amounts:
    """What a job comes to.

    steps, tokens:          of all clients in all rounds.
    steps_per_client:       of one client's round: of the client with the fewest rows, and of that with the most.
    client_up, client_down: bytes of one client's round, the mean.
    bytes_up, bytes_down:   of all clients and rounds.
    disk:                   bytes of the run's folder.
    epsilon:                that the rounds spend; None: nothing is private, or nothing bounds it.
    evaluations, evaluated: how often, and on how many tokens each time.
    """

    layers: Layers
    played: Played
    steps: Range
    tokens: Range
    steps_per_client: tuple[int, int] | None
    client_up: float
    client_down: float
    bytes_up: Range
    bytes_down: Range
    disk: Range
    epsilon: Range | None
    evaluations: int
    evaluated: int

    @property
    def trainable(self) -> int:
        """Numbers that are trained."""
        return self.played.trainable


def amounts_of(job: Job) -> Amounts:
    """Return what a job comes to; loads no weights.

    Raises:
        UserError: settings that cannot work together.
        RoundError: nobody is available in a round.
    """
    layers = layers_of(job)
    played = play_rounds(job, layers)
    carried = _carried(job, layers, played)
    up, down = _traffic(job, played, carried)
    certain = played.foreseen and played.whole
    steps = played.total(lambda one: sum(task.steps for task in one.tasks))
    spread = 1.0 if certain and job.training(example_noise=0.0).tokens is None else 1.3
    tokens = played.total(lambda one: sum(task.tokens for task in one.tasks))
    if job.config.privacy == "client":
        expected = client_sampling(job.config, job.strategy, len(job.seen)).expected
        each = [task for one in played.rounds for task in one.tasks]
        steps = expected * job.config.num_rounds * sum(t.steps for t in each) / max(len(each), 1)
        tokens = expected * job.config.num_rounds * _mean_tokens(job)
    tasks = played.total(lambda one: len(one.tasks))
    return Amounts(
        layers,
        played,
        Range.within(steps, spread),
        Range.within(tokens, 1.1 if certain else 1.3),
        _steps_per_client(job),
        up.expected / max(tasks, 1),
        down.expected / max(tasks, 1),
        up,
        down,
        _disk(job, played, carried.remembered),
        epsilon_range(job, played),
        evaluations_of(job.config, job.config.num_rounds) + 1,
        num_tokens(job.learnt([*job.held_out, *job.validation])),
    )


def _mean_tokens(job: Job) -> float:
    return sum(tokens_of_client(job, client) for client in job.seen) / len(job.seen)


def _steps_per_client(job: Job) -> tuple[int, int] | None:
    """Return the steps of the clients with the fewest and with the most rows; None: tokens decide."""
    training = job.training(example_noise=0.0)
    if training.tokens is not None:
        return None
    steps = [steps_of(training, size) for client, size in job.sizes.items() if client in set(job.seen)]
    return min(steps), max(steps)


# --- traffic ---


@dataclass(frozen=True, slots=True)
class _Carried:
    """What transforms leave of a byte up and down, and the bytes that a client remembers for them."""

    up: float = 1.0
    down: float = 1.0
    remembered: int = 0


def _traffic(job: Job, played: Played, carried: _Carried) -> tuple[Range, Range]:
    """Return the bytes that all clients send and are sent, as a run counts them."""
    if job.config.privacy == "client":
        expected = client_sampling(job.config, job.strategy, len(job.seen)).expected

        def of_cohort(one: Round, bytes_of: Callable[[Task], int]) -> float:
            return round(expected * bytes_of(one.tasks[0]))

        ups = played.total(lambda one: of_cohort(one, lambda task: task.up - task.extra_up))
        downs = played.total(lambda one: of_cohort(one, lambda task: task.down))
        return Range.exactly(round(ups)), Range.exactly(round(downs))
    ups = played.total(lambda one: sum(task.up for task in one.tasks))
    downs = played.total(lambda one: sum(task.down for task in one.tasks) + one.in_vain) + played.under_way
    spread = 1.0 if _same_traffic(played) else 1.3
    up, down = Range.within(round(ups), spread), Range.within(round(downs), spread)
    # A ledger is kept at as low a rank as what was learnt allows.
    ledgers = played.total(lambda one: sum(task.ledger for task in one.tasks))
    down = Range(down.expected, down.low - ledgers / spread, down.high)
    if job.transforms:
        # Rounding to fewer bits leaves as much of any numbers; what else there is depends on them.
        loose = 1.0 if all(own.stage is Stage.BITS for own in job.transforms) else _PACKED_SPREAD
        up = _spread(_rounded(up.times(carried.up)), loose)
        down = _spread(_rounded(down.times(carried.down)), loose if carried.down != 1 else 1.0)
    if job.secure is not None:
        up = _spread(up.times(2), _MASKED_SPREAD)
        down = Range(down.expected, down.low, down.high * _MASKED_SPREAD)
    return up, down


def _rounded(amount: Range) -> Range:
    return Range(round(amount.expected), round(amount.low), round(amount.high))


def _spread(amount: Range, factor: float) -> Range:
    return Range(amount.expected, amount.low / factor, amount.high * factor)


def _same_traffic(played: Played) -> bool:
    """Return whether the traffic is certain: the cohorts are known, or every client's round is as large."""
    if played.foreseen and played.whole:
        return True
    sizes = {(len(one.tasks), one.in_vain, *{(t.up, t.down) for t in one.tasks}) for one in played.rounds}
    return len(sizes) == 1 and played.under_way == 0 and len({len(one.tasks) for one in played.rounds}) == 1


def _carried(job: Job, layers: Layers, played: Played) -> _Carried:
    """Try the job's transforms on noise of the real names and shapes, as large as what was played."""
    update = played.update
    if not job.transforms or update is None:
        return _Carried()
    generator = torch.Generator().manual_seed(derive(job.config.seed, "plan"))

    def full(held: Tensors) -> Tensors:
        found: Tensors = {}
        for name, tensor in held.items():
            for real, shape in _real_names(name, tensor, layers):
                deviation = float(tensor.double().std()) if tensor.numel() > 1 else float(tensor.abs().max())
                found[real] = (deviation * torch.randn(shape, generator=generator)).to(tensor.dtype)
        return found

    whole = replace(update, delta=full(update.delta), extra=full(update.extra))
    sent, kept = send(job.transforms, whole, {}, 0)
    up = _bytes(sent.delta, sent.extra) / max(_bytes(whole.delta, whole.extra), 1)
    adapter, ledger, extra = (full(held) for held in played.broadcast)
    shared = Downlink(job.transforms).sent(Broadcast(adapter, ledger, extra))
    down = _bytes(shared.adapter, shared.ledger, shared.extra) / max(_bytes(adapter, ledger, extra), 1)
    return _Carried(up, down, _bytes(kept))


def _real_names(name: str, tensor: Tensor, layers: Layers) -> list[tuple[str, tuple[int, ...]]]:
    """Return name and shape of every tensor that a played one stands for."""
    if name.rpartition(".")[0] in layers.modules:
        return [(name, tuple(tensor.shape))]
    for shape in set(layers.modules.values()):
        (key,) = distinct_layers([shape])[0]
        if f"{key}." in f"{name}.":
            real = [module for module, own in layers.modules.items() if own == shape]
            return [(name.replace(key, module), tuple(tensor.shape)) for module in real]
    return [(name, (layers.others,) if not layers.modules else tuple(tensor.shape))]


def _bytes(*sets: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for held in sets for tensor in held.values())


# --- disk and privacy ---


def _disk(job: Job, played: Played, remembered: int) -> Range:
    """Return the bytes of the run's folder: server states, what clients keep, adapters, the log, the report.

    remembered: bytes that a client keeps for the transforms of its updates.
    """
    config = job.config
    states = [one.state for one in played.rounds]
    kept = config.keep_rounds or played.of
    if kept < played.of:
        server = states[-1] * kept + (states[-1] if config.early_stopping else 0)
    else:
        server = played.first_state + round(played.total(lambda one: one.state))
    times = Counter(task.client for one in played.rounds for task in one.tasks)
    clients = sum((held + remembered) * min(times[client], GENERATIONS) for client, held in played.kept.items())
    each = _trained_bytes(played, job)
    tasks = played.total(lambda one: len(one.tasks))
    arms = 2 * config.compare_clients * ("local" in config.compare) + ("centralised" in config.compare)
    # A baseline keeps a state and an optimizer with two moments a round.
    baselines = arms * ((kept + 1) * each + GENERATIONS * 2 * each + each)
    total = server + clients + each + baselines + tasks * _EVENTS + _PICTURES
    return Range(total, (total - _PICTURES) * 0.95, total * 1.15 + _PICTURES)


def _trained_bytes(played: Played, job: Job) -> int:
    return played.trainable * (8 if job.config.dtype == "fp64" else 4)


def epsilon_range(job: Job, played: Played) -> Range | None:
    """Return the epsilon that the job's rounds spend; None where nothing is private or nothing bounds it."""
    if job.config.privacy == "client":
        privacy = client_privacy(job.config, job.strategy, len(job.seen), None)
        spent = epsilon_of((planned(privacy, job.config.num_rounds),), privacy.ledger.delta).value
        return Range.exactly(min(spent, privacy.level.limit)) if math.isfinite(spent) else None
    if job.example_level is not None:
        return _of_examples(job, played)
    return None


def _of_examples(job: Job, played: Played) -> Range | None:
    """Return the epsilon of the client whom the rounds cost most; uncertain where cohorts are not foreseen."""
    level = job.example_level
    assert level is not None
    training = job.training()
    delta = level.delta_for(max(job.sizes.values()))
    counts = Counter(task.client for one in played.rounds for task in one.tasks)
    charges: set[Charge] = set()
    for client, times in counts.items():
        task = ClientTask(2, client, Broadcast({}, scale=1.0), training, 0)
        charge = charge_of(job.strategy, task, job.sizes[client])
        charges.add(replace(charge, steps=min(times, level.most_rounds or times) * charge.steps))
    worst = max((epsilon_of((charge,), delta).value for charge in undominated(charges)), default=0.0)
    if not math.isfinite(worst):
        return None
    worst = min(worst, level.limit)
    if played.foreseen and played.whole:
        return Range.exactly(worst)
    return Range(worst, worst / _EPSILON_SPREAD, min(level.limit, worst * 2))
