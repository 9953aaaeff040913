"""Federations whose clients run models of their own: what counts is what each of them runs, not the server's."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from fedit import checkpoint
from fedit.arms import Arm
from fedit.compute import Compute, Part
from fedit.errors import RunFolderError
from fedit.evaluation.loss import RowLosses
from fedit.files import read_json, write_json
from fedit.job import Job
from fedit.personal import TOGETHER, losses_of_clients, personal_models
from fedit.report.record import PERSONAL, number, numbers
from fedit.scoring import per_client
from fedit.strategies.base import Strategy


@dataclass(frozen=True, slots=True)
class Personal:
    """What the clients of one training run for themselves.

    partial:    the server's model lacks what clients keep; nobody runs it.
    validation: mean over clients of the loss that each may expect on validation rows; None without any.
    losses:     client -> its held-out loss, on its own rows or as expected under its mix of categories.
    """

    partial: bool
    validation: float | None
    losses: Mapping[str, float]


def read_personal(folder: Path) -> Personal | None:
    """Return what `measure_personal` found of the training in ``folder``; None where clients run the server's.

    Raises:
        RunFolderError: the file is broken.
    """
    path = folder / PERSONAL
    if not path.is_file():
        return None
    content = read_json(path)
    losses = {client: loss for client, loss in numbers(content.get("losses")).items() if loss is not None}
    return Personal(content.get("partial") is True, number(content.get("validation")), losses)


def is_partial(strategy: Strategy) -> bool:
    """Return whether clients keep some of what they train, so that the server's model is not whole."""
    return type(strategy).shares is not Strategy.shares


def measure_personal(job: Job, compute: Compute, arm: Arm, folder: Path) -> None:
    """Measure what the clients of a trained arm run, if that is not the server's model, and write it down.

    What is written already stays.

    Raises:
        RunFolderError: no intact state is left, or the folder cannot be written.
    """
    own = type(arm.strategy).personal is not Strategy.personal
    if not (own or is_partial(arm.strategy)) or (folder / PERSONAL).is_file():
        return
    server = checkpoint.newest(folder / "server")
    if server is None:
        raise RunFolderError(f"no intact state of the arm is left in {folder / 'server'}; delete it and resume.")
    found: dict[Part, dict[str, float]] = {"held_out": {}, "validation": {}}
    everybody = personal_models(job, compute, arm.strategy.settled(server.adapter), folder, server)
    while members := list(islice(everybody, TOGETHER)):
        for part, losses in found.items():
            if getattr(job, part):
                for (client, _), rows in zip(members, losses_of_clients(job, compute, members, part), strict=True):
                    losses[client] = _expected(job, client, rows, part)
    validation = _all_finite(found["validation"])
    write_json(
        folder / PERSONAL,
        {
            "partial": is_partial(arm.strategy),
            "validation": sum(validation.values()) / len(validation) if validation else None,
            "losses": _all_finite(found["held_out"]),
        },
    )


def _all_finite(losses: Mapping[str, float]) -> Mapping[str, float]:
    """Return ``losses``; none where a client diverged, since a mean over the others would flatter."""
    return losses if all(map(math.isfinite, losses.values())) else {}


def _expected(job: Job, client: str, losses: RowLosses, part: Part) -> float:
    """Return what a client may expect of a model; the overall loss where rows tell nothing of whose they are."""
    rows = getattr(job, part)
    report = losses.report([example.category for example in rows])
    return per_client(job, losses, report, rows).get(client, report.loss)
