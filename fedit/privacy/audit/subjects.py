"""What of a run is audited: the base, states of the server, the final adapter, single uploads."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

from fedit import arms, checkpoint
from fedit.compute import Compute, runnable
from fedit.engines.uploads import kept_uploads, read_upload
from fedit.events import EventLog
from fedit.federation import read_trained
from fedit.job import Job
from fedit.types import Tensors

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Model:
    """Adapters as the job's model runs them; before: what a client was sent, where one upload is looked at."""

    adapter: Tensors
    before: Tensors | None = None


@dataclass(frozen=True, slots=True)
class Subject:
    """One model that is audited, read when it is its turn.

    round:  after which it is; client: whose upload it is, "" for models of all.
    """

    kind: Literal["base", "round", "final", "upload"]
    round: int
    read: Callable[[], Model]
    client: str = ""


def subjects_of(job: Job, compute: Compute, folder: Path, most: int) -> list[Subject]:
    """Return what is audited: the base and the final adapter, and of at most ``most`` rounds states and uploads.

    Rounds are evenly spaced among those whose state or uploads are there; 0: all of them.
    """
    trained = read_trained(job, arms.federated(job), folder, EventLog(folder))
    # What is tuned after the rounds is no state of theirs, so their last one is then looked at too.
    last = trained.round if job.config.defence_steps == 0 else trained.round + 1
    states = [number for number in checkpoint.rounds(folder / "server") if 0 < number < last]
    found = [Subject("base", 0, lambda: Model(job.strategy.model(job.strategy.init(compute.initial()))))]
    found += [
        Subject("round", number, partial(_state, job, folder, number)) for number in spread(states, most - 1)
    ]
    uploads = kept_uploads(folder)
    for number in spread(sorted(uploads), most):
        for path in uploads[number]:
            found.append(Subject("upload", number, partial(_upload, job, path), read_upload(path).client))
    found.sort(key=lambda subject: subject.round)
    return [*found, Subject("final", trained.round, lambda: Model(trained.adapter))]


def spread(items: Sequence[T], most: int) -> list[T]:
    """Return at most so many items, evenly spaced, the last among them; all for ``most`` below 0 or too many.

    >>> spread([1, 2, 3, 4, 5, 6, 7], 3), spread([1, 2], 5), spread([1, 2], 0)
    ([3, 5, 7], [1, 2], [])
    """
    if most < 0 or len(items) <= most:
        return list(items)
    return [items[round((number + 1) * len(items) / most) - 1] for number in range(most)]


def _state(job: Job, folder: Path, number: int) -> Model:
    return Model(job.strategy.model(checkpoint.load(folder / "server", number)))


def _upload(job: Job, path: Path) -> Model:
    upload = read_upload(path)
    return Model(runnable(job, upload.after), runnable(job, upload.before))
