"""What every client runs for itself at the end of a run: measured in all categories, fine-tuned, and summed up."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from fedit import arms, checkpoint, seeds, tensors
from fedit.comparison import arm_folder
from fedit.compute import Compute, Part, runnable
from fedit.data.statistics import summary
from fedit.engines.base import Engine
from fedit.errors import RunFolderError
from fedit.evaluation.loss import RowLosses
from fedit.events import EventLog
from fedit.files import read_json, write_json
from fedit.job import Job
from fedit.report.record import PERSONAL
from fedit.report.summary import ArmResult
from fedit.scoring import per_client
from fedit.store import ClientStore
from fedit.strategies.base import Strategy
from fedit.types import (
    Broadcast,
    ClientFailure,
    ClientTask,
    Running,
    ServerState,
    with_ledger,
)

TOGETHER = 16
"""Clients whose adapters are held and measured at once."""
MOST_ACROSS = 50
"""Clients up to which every client's model is also measured under every other's mix."""


@dataclass(frozen=True, slots=True)
class _Measured:
    """Losses of one model: overall, by category, and of each client."""

    loss: float
    per_category: Mapping[str, float]
    per_client: Mapping[str, float]

    def of(self, client: str) -> float:
        """Return what a client may expect of it; the overall loss where rows tell nothing of whose they are."""
        return self.per_client.get(client, self.loss)

    def fields(self, client: str, across: bool) -> dict[str, object]:
        """Return the row of the matrix of a client's model."""
        row: dict[str, object] = {
            "own": self.of(client),
            "loss": self.loss,
            "per_category": dict(self.per_category),
        }
        return {**row, "per_client": dict(self.per_client)} if across else row


def measure_personal(
    job: Job, compute: Compute, folder: Path, results: Sequence[ArmResult], log: EventLog
) -> dict[str, object] | None:
    """Measure what every client runs after the last round, and write it to ``personal.json``.

    Returns the file's content; None where the job does not ask for it. A file that is there already is only read.

    Raises:
        RunFolderError: no intact state is left, or the folder cannot be written.
    """
    if not job.config.personal_evaluation:
        return None
    path = folder / PERSONAL
    if path.is_file():
        return read_json(path)
    server = checkpoint.newest(folder / "server")
    if server is None:
        raise RunFolderError(f"no intact state of the federation is left in {folder / 'server'}; start a new run.")
    started = time.perf_counter()
    content = _matrix(job, compute, folder, server, _alone(results), log)
    fields = {"models": content["models"], "seconds": round(time.perf_counter() - started, 3)}
    if not any(event["event"] == "personal" for event in log.history()):
        log.write("personal", server.round, **fields)
    write_json(path, content)
    return read_json(path)


def losses_of_clients(
    job: Job, compute: Compute, members: Sequence[tuple[str, Running]], part: Part
) -> list[RowLosses]:
    """Return the losses of what each client runs, on every row of ``part``."""
    plain = [running for _, running in members if running.likened is None]
    whole = iter(compute.losses([runnable(job, one) for one in plain], part) if plain else [])
    return [
        next(whole) if running.likened is None else compute.likened_losses(client, running, part)
        for client, running in members
    ]


def _matrix(
    job: Job,
    compute: Compute,
    folder: Path,
    server: ServerState,
    alone: Mapping[str, float],
    log: EventLog,
) -> dict[str, object]:
    """Return the content of ``personal.json``."""
    measure = _Measure(job, compute)
    strategy = job.strategy.settled(server.adapter)
    general = Running(dict(strategy.factors(server.adapter)), server.ledger, server.scale)
    (everyone,) = measure([("", general)])
    across = len(job.clients) <= MOST_ACROSS
    clients: dict[str, dict[str, object]] = {}
    own: dict[str, dict[str, float]] = {"global": {}, "personal": {}, "tuned": {}, "local": dict(alone)}
    failures: dict[str, str] = {}
    initial = compute.initial() if job.config.personal_steps else {}
    everybody = personal_models(job, compute, strategy, folder, server)
    while members := list(islice(everybody, TOGETHER)):
        log.tell("evaluating", server.round)
        found = {"personal": dict(zip([c for c, _ in members], measure(members), strict=True))}
        if job.config.personal_steps:
            starts = [(client, strategy.tuning(running, initial)) for client, running in members]
            changed, failed = _tune(job, compute, folder, starts)
            failures |= failed
            found["tuned"] = dict(zip(changed, measure(list(changed.items())), strict=True))
        for client, _ in members:
            own["global"][client] = everyone.of(client)
            clients[client] = {"seen": client not in job.unseen, "global": everyone.of(client)}
            clients[client] |= {"local": alone[client]} if client in alone else {}
            for kind, models in found.items():
                if client in models:
                    own[kind][client] = models[client].of(client)
                    clients[client][kind] = models[client].fields(client, across)
    return {
        "round": server.round,
        "personal_steps": job.config.personal_steps,
        "unseen": sorted(job.unseen),
        "global": {"loss": everyone.loss, "per_category": dict(everyone.per_category)},
        "models": {
            "seen": _summary(own, [client for client in job.clients if client not in job.unseen]),
            "unseen": _summary(own, sorted(job.unseen)),
        },
        "clients": clients,
        "failures": failures,
    }


def personal_models(
    job: Job, compute: Compute, strategy: Strategy, folder: Path, server: ServerState
) -> Iterator[tuple[str, Running]]:
    """Yield every client with what it runs; who never took part has kept nothing.

    strategy: settled; folder: of the arm that was trained, with what its clients kept; server: its last state.
    """
    store = ClientStore(folder / "clients")
    for client in _engine(job, compute, folder).clients():
        state = store.read(client.client_id, server.round + 1)
        yield client.client_id, strategy.personal(server, client, state)


def _engine(job: Job, compute: Compute, folder: Path) -> Engine:
    """Return where every client of the job can be trained on its own."""
    return compute.engine(arms.tuned(job), arm_folder(folder, arms.TUNED), lambda task, step: None)


def _tune(
    job: Job, compute: Compute, folder: Path, members: Sequence[tuple[str, Running]]
) -> tuple[dict[str, Running], dict[str, str]]:
    """Return what each client runs after its own steps, and why some could not take them."""
    how = arms.tuned(job).training(1)
    before = dict(members)
    tasks = [
        ClientTask(
            1,
            client,
            Broadcast(running.adapter, running.ledger, scale=running.scale),
            how,
            seeds.derive(job.config.seed, "tune", client),
        )
        for client, running in members
    ]
    after: dict[str, Running] = {}
    failures: dict[str, str] = {}
    for result in _engine(job, compute, folder).run(tasks):
        if isinstance(result, ClientFailure):
            failures[result.client_id] = result.reason
            continue
        start = before[result.client_id]
        after[result.client_id] = replace(start, adapter=tensors.add(start.adapter, result.delta))
    return after, failures


class _Measure:
    """Measures models on the held-out rows; one that several clients run is measured once."""

    def __init__(self, job: Job, compute: Compute) -> None:
        self._job, self._compute = job, compute
        self._categories = [example.category for example in job.held_out]
        self._known: dict[tuple[object, ...], tuple[Running, _Measured]] = {}

    def __call__(self, members: Sequence[tuple[str, Running]]) -> list[_Measured]:
        keys = [_identity(client, running) for client, running in members]
        new = {key: one for key, one in zip(keys, members, strict=True) if key not in self._known}
        losses = losses_of_clients(self._job, self._compute, list(new.values()), "held_out")
        fresh = {key: self._report(own) for key, own in zip(new, losses, strict=True)}
        found = [fresh[key] if key in fresh else self._known[key][1] for key in keys]
        if not self._known:
            # The first one is everybody's. Its tensors are kept with it, so that no others get their identities.
            self._known = {key: (new[key][1], one) for key, one in fresh.items()}
        return found

    def _report(self, losses: RowLosses) -> _Measured:
        report = losses.report(self._categories)
        return _Measured(
            report.loss, report.per_category, per_client(self._job, losses, report, self._job.held_out)
        )


def _identity(client: str, running: Running) -> tuple[object, ...]:
    """Return what is equal for models that are; one that asks who runs it is that client's alone."""
    held = with_ledger(running.adapter, running.ledger)
    return (
        client if running.likened else None,
        running.scale,
        *((name, id(tensor)) for name, tensor in sorted(held.items())),
    )


def _alone(results: Sequence[ArmResult]) -> dict[str, float]:
    """Return the losses of clients that were trained alone, of each on what it may expect to be asked."""
    found: dict[str, float] = {}
    for result in results:
        kind, _, client = result.name.partition(":")
        losses = result.evaluation.get("per_client")
        if kind == "local" and isinstance(losses, dict) and client in losses:
            found[client] = float(losses[client])
    return found


def _summary(own: Mapping[str, Mapping[str, float]], clients: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return of every kind of model the losses over clients, and how far they are from the global and from alone.

    A gap is the mean over the clients that have both; below zero the model is better.
    """
    found: dict[str, dict[str, float]] = {}
    for kind, losses in own.items():
        mine = {client: losses[client] for client in clients if client in losses}
        if not mine:
            continue
        numbers = summary(mine)
        spread = math.sqrt(sum((loss - numbers["mean"]) ** 2 for loss in mine.values()) / len(mine))
        found[kind] = {"clients": len(mine), **numbers, "std": spread}
        for other in ("global", "local"):
            gaps = [loss - own[other][client] for client, loss in mine.items() if client in own[other]]
            if other != kind and gaps:
                found[kind][f"gap_to_{other}"] = sum(gaps) / len(gaps)
    return found
