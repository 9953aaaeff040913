"""The arms of a comparison: the federation, clients on their own, everything in one place."""

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

from fedit.events import Event
from fedit.job import Job
from fedit.objectives import Learnt, num_tokens
from fedit.pace.base import CohortRule, Pace
from fedit.pacing import pace_of
from fedit.prepare import check_strategy
from fedit.privacy.client import ClientPrivacy
from fedit.privacy.secagg.sealing import Securely
from fedit.privacy.setup import client_privacy
from fedit.strategies import build_variant
from fedit.strategies.base import Strategy
from fedit.transforms.base import Transform
from fedit.types import ClientInfo, LocalTraining

FEDERATED = "federated"
TUNED = "tuned"
"""Every client on its own, for a few steps from what it ran at the end of the federation."""


@dataclass(frozen=True, slots=True)
class Arm:
    """Who trains, how, and which of them a round takes.

    clients: client id -> ids of the partition's clients whose rows it holds.
    describe: (client, number of rows) -> what the server knows of it.
    secure:   how updates are added up so that nobody sees one; None: they are sent as they are.
    privacy: file of the ledger -> the client-level privacy of its rounds; None: there is none.
    """

    name: str
    rounds: int
    clients: Mapping[str, Sequence[str]]
    strategy: Strategy
    cohort: CohortRule | Pace
    training: Callable[[int], LocalTraining]
    min_clients: int
    transforms: Sequence[Transform] = ()
    describe: Callable[[str, int], ClientInfo] = ClientInfo
    secure: Securely | None = None
    privacy: Callable[[Path | None], ClientPrivacy] | None = None


class ArmRows(Mapping[str, Sequence[Learnt]]):
    """The rows of an arm's clients, gathered when they are asked for: there may be many clients.

    members: see `Arm.clients`.
    """

    def __init__(self, job: Job, members: Mapping[str, Sequence[str]]) -> None:
        self._job = job
        self._members = members

    def __getitem__(self, client: str) -> list[Learnt]:
        rows = [row for member in self._members[client] for row in self._job.learnt(self._job.clients[member])]
        # A row without a target, all of whose answer was cut away, teaches nothing.
        return [example for example in rows if all(row.supervised.any() for row in example.rows)]

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)


def federated(job: Job, strategy: str | None = None) -> Arm:
    """Return the federation that the job describes; strategy: another algorithm, as `build_variant` reads it.

    Raises:
        ConfigError: that algorithm cannot work with the job's settings or clients.
    """
    chosen = job.strategy
    if strategy:
        chosen = build_variant(strategy)
        check_strategy(job, chosen)
    members = {client: [client] for client in job.seen}
    rows = ArmRows(job, members)
    private = job.config.privacy == "client"

    @cache
    def tokens(client: str) -> int:
        return num_tokens(rows[client])

    return Arm(
        f"{FEDERATED}:{strategy}" if strategy else FEDERATED,
        job.config.num_rounds,
        members,
        chosen,
        # Draws that hide clients must not be known to them: the seed is no secret.
        pace_of(job.config, chosen, list(members), tokens, secrets.randbits(256) if private else None),
        lambda round: job.training(),
        job.config.min_clients,
        job.transforms,
        job.client_info,
        job.secure,
        partial(client_privacy, job.config, chosen, len(members)) if private else None,
    )


def tuned(job: Job) -> Arm:
    """Return the round after the federation in which everybody fine-tunes, who was never chosen too."""
    how = job.training(steps=job.config.personal_steps, epochs=None, tokens=None, num_rounds=1)
    return Arm(
        TUNED,
        1,
        {client: [client] for client in job.clients},
        Strategy(),
        lambda clients, round: [client.client_id for client in clients],
        lambda round: how,
        min_clients=1,
        describe=job.client_info,
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
        for client in job.seen[: job.config.compare_clients]:
            names += [f"local:{client}", f"local_total:{client}"]
    return names + ["centralised"] * ("centralised" in job.config.compare)


def named(job: Job, name: str, tokens: Mapping[int, int], *, learning_rate: float | None = None) -> Arm:
    """Return the arm of a name; baselines get budgets from the federation's ``tokens`` of every round.

    Every baseline is one client that trains without interruption: its optimizer is kept. It trains at the server's
    rank, whatever its client has.
    - local:<client> takes the steps that the client would have taken had it been in every cohort.
    - local_total:<client> and centralised take, round by round, the tokens that the whole cohort took.
    - federated and federated:<strategy> are the job's federation; tuned is the fine-tuning after it.

    learning_rate: where it is not the job's.
    """
    kind, _, rest = name.partition(":")
    if kind == FEDERATED:
        arm = federated(job, rest or None)
    elif kind == TUNED:
        arm = tuned(job)
    else:
        own = replace(job.training(), keep_optimizer=True)
        rounds = max(tokens, default=job.config.num_rounds)
        members = job.seen if kind == "centralised" else [rest]
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
