"""The arms of a comparison: the federation, clients on their own, everything in one place."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from fedit import cohort
from fedit.events import Event
from fedit.objectives import Learnt
from fedit.prepare import Job
from fedit.strategies import build_strategy
from fedit.strategies.base import Strategy, refuse_factors_only
from fedit.types import ClientInfo, LocalTraining

FEDERATED = "federated"

CohortRule = Callable[[Sequence[ClientInfo], int], list[str]]


@dataclass(frozen=True, slots=True)
class Arm:
    """Who trains, how, and which of them a round takes.

    clients: client id -> ids of the partition's clients whose rows it holds.
    """

    name: str
    rounds: int
    clients: Mapping[str, Sequence[str]]
    strategy: Strategy
    cohort: CohortRule
    training: Callable[[int], LocalTraining]
    min_clients: int


class ArmRows(Mapping[str, Sequence[Learnt]]):
    """The rows of an arm's clients, gathered when they are asked for: there may be many clients."""

    def __init__(self, job: Job, arm: Arm) -> None:
        self._job = job
        self._members = arm.clients

    def __getitem__(self, client: str) -> list[Learnt]:
        rows = [row for member in self._members[client] for row in self._job.learnt(self._job.clients[member])]
        # A row without a target, all of whose answer was cut away, teaches nothing.
        return [example for example in rows if all(row.supervised.any() for row in example.rows)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)


def federated(job: Job, strategy: str | None = None) -> Arm:
    """Return the federation that the job describes; strategy: another algorithm, at its default options."""

    def choose(clients: Sequence[ClientInfo], round: int) -> list[str]:
        return cohort.uniform(clients, job.config.clients_per_round, seed=job.config.seed, round=round)

    members = {client: [client] for client in job.clients}
    chosen = build_strategy(strategy, {}) if strategy else job.strategy
    refuse_factors_only(chosen, job.config.tuning)
    return Arm(
        f"{FEDERATED}:{strategy}" if strategy else FEDERATED,
        job.config.num_rounds,
        members,
        chosen,
        choose,
        lambda round: job.training(),
        job.config.min_clients,
    )


def tokens_by_round(federated_events: Sequence[Event]) -> dict[int, int]:
    """Return the tokens that the whole cohort took in every round of a federation, from its events."""
    return {
        int(str(event["round"])): int(str(event["tokens"]))
        for event in federated_events
        if event["event"] == "round"
    }


def baseline_names(job: Job) -> list[str]:
    """Return the names of the baselines that ``compare`` asks for."""
    names: list[str] = []
    if "local" in job.config.compare:
        for client in list(job.clients)[: job.config.compare_clients]:
            names += [f"local:{client}", f"local_total:{client}"]
    return names + ["centralised"] * ("centralised" in job.config.compare)


def named(job: Job, name: str, tokens: Mapping[int, int], *, learning_rate: float | None = None) -> Arm:
    """Return the arm of a name; baselines get budgets from the federation's ``tokens`` of every round.

    Every baseline is one client that trains without interruption: its optimizer is kept.
    - local:<client> takes the steps that the client would have taken had it been in every cohort.
    - local_total:<client> and centralised take, round by round, the tokens that the whole cohort took.
    - federated and federated:<strategy> are the job's federation.

    learning_rate: where it is not the job's.
    """
    kind, _, rest = name.partition(":")
    if kind == FEDERATED:
        arm = federated(job, rest or None)
    else:
        own = replace(job.training(), keep_optimizer=True)
        rounds = max(tokens, default=job.config.num_rounds)
        members = list(job.clients) if kind == "centralised" else [rest]
        budgeted = (lambda round: own) if kind == "local" else budget(own, tokens)
        arm = _single(name, rest or "everyone", members, rounds, budgeted)
    if learning_rate is None:
        return arm
    training = arm.training
    return replace(arm, training=lambda round: replace(training(round), learning_rate=learning_rate))


def budget(training: LocalTraining, tokens: Mapping[int, int]) -> Callable[[int], LocalTraining]:
    """Return local training whose round ends when it has seen the tokens given for that round."""
    return lambda round: replace(training, steps=None, epochs=None, tokens=max(tokens[round], 1))


def _single(
    name: str, client: str, members: list[str], rounds: int, training: Callable[[int], LocalTraining]
) -> Arm:
    return Arm(
        name, rounds, {client: members}, Strategy(), lambda clients, round: [client], training, min_clients=1
    )
