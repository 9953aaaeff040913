"""One arm of a run: a federation of some clients, from its last checkpoint to its end."""

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fedit import checkpoint, tensorfiles
from fedit.arms import FEDERATED, Arm
from fedit.compute import Compute
from fedit.defence import tune_afterwards
from fedit.engines.base import Engine
from fedit.engines.hostile import HostileClients
from fedit.errors import RunFolderError
from fedit.events import Event, EventLog
from fedit.files import write_bytes
from fedit.job import Job
from fedit.rounds import RoundRecord, left_under_way, run_rounds
from fedit.scoring import obedience, score
from fedit.types import ServerState, Tensors

DEFENDED = "defended.safetensors"
"""The adapter that the server tuned after the rounds, beside the states of the rounds."""


@dataclass(frozen=True, slots=True)
class Trained:
    """What an arm ends with: the model to keep (factors and ledger), its round, and the log's events."""

    adapter: Tensors
    round: int
    events: list[Event]


def train(job: Job, compute: Compute, arm: Arm, folder: Path, log: EventLog) -> Trained:
    """Run the arm's rounds, from the newest checkpoint in ``folder`` on if there is one.

    A round is committed by its checkpoint: what was written about later rounds is forgotten
    and they are done again, so an interrupted run ends with the same bits.

    Raises:
        RoundError: several rounds in a row had too few usable updates.
        RunFolderError: the folder cannot be written.
    """
    server = _start(job, compute, arm, folder, log)
    engine = compute.engine(
        arm, folder, lambda task, step: log.tell("step", task.round, client=task.client_id, **step)
    )
    hostile = frozenset(job.hostile) if _is_federation(arm) else frozenset()
    if hostile and job.config.update_attack:
        engine = HostileClients(
            engine,
            job.config.update_attack,
            hostile,
            strength=job.config.attack_strength,
            seed=job.config.seed,
            transforms=arm.transforms,
        )
    if not _should_stop(job, log.history()):
        for state, record in run_rounds(
            server,
            engine,
            arm.strategy,
            rounds=arm.rounds,
            cohort=arm.cohort,
            training=arm.training,
            seed=job.config.seed,
            min_clients=arm.min_clients,
            # Tokens are counted by training; until then every client weighs the same.
            weigh=lambda client: client.num_examples if job.config.weighting == "examples" else 1.0,
            transforms=arm.transforms,
        ):
            server = state
            with log.together():
                _log_round(log, record, hostile)
            if server.round % job.config.eval_every == 0 or server.round == arm.rounds:
                _evaluate(job, compute, arm, server, log)
            checkpoint.save(folder / "server", server)
            events = log.history()
            checkpoint.prune(folder / "server", job.config.keep_rounds, best_round(job, events))
            if _should_stop(job, events):
                log.write("stopped_early", server.round, patience=job.config.early_stopping)
                break
    _log_under_way(server, engine, arm, log)
    if _is_federation(arm):
        _after_the_rounds(job, compute, arm, server, folder, log)
    return _result(job, arm, server, folder, log)


def read_trained(job: Job, arm: Arm, folder: Path, log: EventLog) -> Trained:
    """Return what an arm that was trained to its end left in ``folder``."""
    server = checkpoint.newest(folder / "server")
    if server is None:
        raise RunFolderError(f"no intact state of the arm is left in {folder / 'server'}; delete it and resume.")
    return _result(job, arm, server, folder, log)


def _result(job: Job, arm: Arm, server: ServerState, folder: Path, log: EventLog) -> Trained:
    events = log.history()
    best = best_round(job, events)
    if best is not None and best != server.round:
        server = checkpoint.load(folder / "server", best)
    return Trained(_defended(folder) or arm.strategy.model(server), server.round, events)


def best_round(job: Job, events: Sequence[Event]) -> int | None:
    """Return the round with the lowest validation loss where early stopping is on."""
    if job.config.early_stopping == 0:
        return None
    scores = _validation_losses(events)
    return min(scores, key=lambda item: (item[1], item[0]))[0] if scores else None


def totals(events: Sequence[Event]) -> dict[str, float]:
    """Return rounds, tokens, bytes and seconds of an arm, added up over its events.

    What was sent to clients that were still under way at the end counts too.

    Simulated seconds are those of the virtual clock; left out where there is none.
    """
    rounds = [event for event in events if event["event"] == "round"]
    sent = [*rounds, *(event for event in events if event["event"] == "under_way")]
    timed = [event for event in events if "seconds" in event]
    simulated = [event["simulated_seconds"] for event in rounds if "simulated_seconds" in event]
    return {
        "rounds": len(rounds),
        "tokens": sum(_number(event["tokens"]) for event in rounds),
        "bytes_up": sum(_number(event["bytes_up"]) for event in rounds),
        "bytes_down": sum(_number(event["bytes_down"]) for event in sent),
        "raw_bytes_up": sum(_number(event["raw_bytes_up"]) for event in rounds),
        "raw_bytes_down": sum(_number(event["raw_bytes_down"]) for event in sent),
        "seconds": round(sum(_number(event["seconds"]) for event in timed), 3),
        **({"simulated_seconds": sum(map(_number, simulated))} if simulated else {}),
    }


def _start(job: Job, compute: Compute, arm: Arm, folder: Path, log: EventLog) -> ServerState:
    saved = checkpoint.newest(folder / "server")
    if saved is not None:
        log.rewind(saved.round)
        if 0 < saved.round < arm.rounds:
            log.write("resumed", saved.round)
        return saved
    log.rewind(-1)
    server = replace(arm.strategy.init(compute.initial()), scale=job.config.scale)
    log.write(
        "arm_started",
        0,
        clients=len(arm.clients),
        rounds=arm.rounds,
        strategy=_algorithm(job, arm),
        trainable_parameters=sum(
            tensor.numel()
            for name, tensor in server.adapter.items()
            if any(arm.strategy.trains(name, round) for round in range(1, arm.rounds + 1))
        ),
        **_attack(job, arm),
    )
    _evaluate(job, compute, arm, server, log)
    checkpoint.save(folder / "server", server)
    return server


def _evaluate(job: Job, compute: Compute, arm: Arm, server: ServerState, log: EventLog) -> None:
    log.tell("evaluating", server.round)
    started = time.perf_counter()
    fields = score(job, compute, arm.strategy.model(server))
    log.write("evaluation", server.round, seconds=round(time.perf_counter() - started, 3), **fields)


def _log_round(log: EventLog, record: RoundRecord, hostile: Collection[str]) -> None:
    for client in record.clients:
        log.write("client", record.round, **client, **_marked(client["client"], hostile))
    for failure in record.failures:
        marked = _marked(failure.client_id, hostile)
        log.write("client_failed", record.round, client=failure.client_id, reason=failure.reason, **marked)
    for one in record.dropped:
        marked = _marked(one.client_id, hostile)
        log.write("client_dropped", record.round, client=one.client_id, reason=one.reason, **marked)
    log.write(
        "round",
        record.round,
        cohort=record.cohort,
        delivered=len(record.clients),
        failed=len(record.failures),
        aggregated=record.aggregated,
        train_loss=record.loss,
        tokens=record.tokens,
        bytes_up=record.bytes_up,
        bytes_down=record.bytes_down,
        raw_bytes_up=record.raw_bytes_up,
        raw_bytes_down=record.raw_bytes_down,
        seconds=round(record.seconds, 3),
        **({"reason": record.reason} if record.reason else {}),
        **({"dropped": len(record.dropped)} if record.dropped else {}),
        **({"flushed": True} if record.flushed else {}),
        **({} if record.simulated_seconds is None else {"simulated_seconds": record.simulated_seconds}),
        **record.diagnostics,
    )


def _log_under_way(server: ServerState, engine: Engine, arm: Arm, log: EventLog) -> None:
    """Write once who had started and is not waited for, since the rounds are over."""
    if any(event["event"] == "under_way" for event in log.history()):
        return
    left = left_under_way(server, engine, arm.strategy, arm.cohort, arm.transforms)
    if left.clients:
        fields = {"bytes_down": left.bytes_down, "raw_bytes_down": left.raw_bytes_down}
        log.write("under_way", server.round, clients=left.clients, **fields)


def _attack(job: Job, arm: Arm) -> dict[str, object]:
    """Return what the first event says of an attack; nothing where there is none."""
    if not job.config.attack or not _is_federation(arm):
        return {}
    return {"attack": list(job.config.attack), "hostile": list(job.hostile)}


def _marked(client: object, hostile: Collection[str]) -> dict[str, bool]:
    """Return what the events of a hostile client of a simulation say of it."""
    return {"hostile": True} if client in hostile else {}


def _algorithm(job: Job, arm: Arm) -> str:
    """Return the algorithm's name: a study's federations carry theirs in their own."""
    return (_is_federation(arm) and arm.name.partition(":")[2]) or job.config.strategy


def _is_federation(arm: Arm) -> bool:
    """Return whether clients may attack: baselines train in one place."""
    return arm.name.partition(":")[0] == FEDERATED


def _after_the_rounds(
    job: Job, compute: Compute, arm: Arm, server: ServerState, folder: Path, log: EventLog
) -> None:
    """Measure whether a poison took, tune the adapter on what the server trusts, and measure again."""
    done = {str(event["event"]) for event in log.history()}
    best = best_round(job, log.history())
    server = server if best in (None, server.round) else checkpoint.load(folder / "server", best)
    measured = job.config.poison not in (None, "swap")  # the held-out losses tell of the latter
    if measured and "poison_measured" not in done:
        log.write("poison_measured", server.round, **obedience(job, compute, arm.strategy.model(server)).as_dict())
    if job.config.defence_steps == 0 or "defended" in done:
        return
    log.tell("defending", server.round, steps=job.config.defence_steps)
    adapter, progress = tune_afterwards(
        job.model,
        arm.strategy.model(server),
        job.tokens([*job.policy, *job.validation]),
        job.training(),
        steps=job.config.defence_steps,
        seed=job.config.seed,
        crew=job.crew,
    )
    write_bytes(folder / DEFENDED, tensorfiles.encode({"adapter": adapter}, {}))
    found = obedience(job, compute, adapter).as_dict() if measured else {}
    log.write("defended", server.round, steps=progress.steps, tokens=progress.tokens, loss=progress.loss, **found)


def _defended(folder: Path) -> Tensors | None:
    """Return the adapter that the server tuned after the rounds, where it did."""
    path = folder / DEFENDED
    return tensorfiles.decode(path.read_bytes(), ("adapter",))[0]["adapter"] if path.is_file() else None


def _should_stop(job: Job, events: Sequence[Event]) -> bool:
    patience = job.config.early_stopping
    scores = _validation_losses(events)
    if patience == 0 or not scores:
        return False
    best = min(range(len(scores)), key=lambda i: (scores[i][1], i))
    return len(scores) - 1 - best >= patience


def _validation_losses(events: Sequence[Event]) -> list[tuple[int, float]]:
    return [
        (int(_number(event["round"])), _number(event["validation_loss"]))
        for event in events
        if event["event"] == "evaluation" and event.get("validation_loss") is not None
    ]


def _number(value: object) -> float:
    if not isinstance(value, int | float):
        raise TypeError(f"expected a number in an event, found {value!r}")
    return value
