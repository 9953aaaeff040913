"""One arm of a run: a federation of some clients, from its last checkpoint to its end."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fedit import checkpoint
from fedit.arms import Arm
from fedit.compute import Compute
from fedit.errors import RunFolderError
from fedit.events import Event, EventLog
from fedit.prepare import Job
from fedit.rounds import RoundRecord, run_rounds
from fedit.scoring import score
from fedit.types import ServerState, Tensors


@dataclass(frozen=True, slots=True)
class Trained:
    """What an arm ends with: the adapter to keep, the round it is from, and the log's events."""

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
        ):
            server = state
            with log.together():
                _log_round(log, record)
            if server.round % job.config.eval_every == 0 or server.round == arm.rounds:
                _evaluate(job, compute, server, log)
            checkpoint.save(folder / "server", server)
            events = log.history()
            checkpoint.prune(folder / "server", job.config.keep_rounds, best_round(job, events))
            if _should_stop(job, events):
                log.write("stopped_early", server.round, patience=job.config.early_stopping)
                break
    return _result(job, server, folder, log)


def read_trained(job: Job, folder: Path, log: EventLog) -> Trained:
    """Return what an arm that was trained to its end left in ``folder``."""
    server = checkpoint.newest(folder / "server")
    if server is None:
        raise RunFolderError(f"no intact state of the arm is left in {folder / 'server'}; delete it and resume.")
    return _result(job, server, folder, log)


def _result(job: Job, server: ServerState, folder: Path, log: EventLog) -> Trained:
    events = log.history()
    best = best_round(job, events)
    if best is not None and best != server.round:
        server = checkpoint.load(folder / "server", best)
    return Trained(server.adapter, server.round, events)


def best_round(job: Job, events: Sequence[Event]) -> int | None:
    """Return the round with the lowest validation loss where early stopping is on."""
    if job.config.early_stopping == 0:
        return None
    scores = _validation_losses(events)
    return min(scores, key=lambda item: (item[1], item[0]))[0] if scores else None


def totals(events: Sequence[Event]) -> dict[str, float]:
    """Return rounds, tokens, bytes and seconds of an arm, added up over its events.

    Simulated seconds are those of the virtual clock; left out where there is none.
    """
    rounds = [event for event in events if event["event"] == "round"]
    timed = [event for event in events if "seconds" in event]
    simulated = [event["simulated_seconds"] for event in rounds if "simulated_seconds" in event]
    return {
        "rounds": len(rounds),
        "tokens": sum(_number(event["tokens"]) for event in rounds),
        "bytes_up": sum(_number(event["bytes_up"]) for event in rounds),
        "bytes_down": sum(_number(event["bytes_down"]) for event in rounds),
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
        strategy=job.config.strategy,
        trainable_parameters=sum(tensor.numel() for tensor in server.adapter.values()),
    )
    _evaluate(job, compute, server, log)
    checkpoint.save(folder / "server", server)
    return server


def _evaluate(job: Job, compute: Compute, server: ServerState, log: EventLog) -> None:
    log.tell("evaluating", server.round)
    started = time.perf_counter()
    fields = score(job, compute, server.adapter)
    log.write("evaluation", server.round, seconds=round(time.perf_counter() - started, 3), **fields)


def _log_round(log: EventLog, record: RoundRecord) -> None:
    for client in record.clients:
        log.write("client", record.round, **client)
    for failure in record.failures:
        log.write("client_failed", record.round, client=failure.client_id, reason=failure.reason)
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
        seconds=round(record.seconds, 3),
        **({} if record.simulated_seconds is None else {"simulated_seconds": record.simulated_seconds}),
        **record.diagnostics,
    )


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
