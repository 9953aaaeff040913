"""What the server's half of a run printed: as it comes, and kept once a start of the run has ended."""

import queue
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from fedit.errors import ConfigError
from fedit.files import write_text
from fedit.flower.connection import LinkError, connected, link_error
from fedit.flower.jobs import Jobs, Submitted
from fedit.flower.layout import Deployment

JOBS = "jobs"
_FIRST = 3.0
"""Seconds without a line after which a log counts as read."""
_LOOK = 2.0
"""Seconds between two looks whether a followed run has ended, or was started again."""


def printed(deployment: Deployment, run_id: int) -> str:
    """Return what one start of a run has printed so far.

    Raises:
        LinkError: the SuperLink does not answer, or does not know the run.
    """
    with connected(deployment) as client:
        lines = _Lines(deployment, client, run_id)
        return "".join(iter(lambda: lines.next(_FIRST) or "", ""))


def follow(deployment: Deployment, name: str) -> Iterator[str]:
    """Yield what a run prints until it has ended, over all starts that are still to come.

    A start's stream is not relied on to end: Flower's has no time limit, and a run is told to have ended by the
    deployment's supervisor.

    Raises:
        ConfigError: there is no such run.
        LinkError: the SuperLink does not answer, or does not know the run.
    """
    jobs = Jobs(deployment.state / JOBS)
    followed = None
    while (job := _job(jobs, name)).state == "active":
        if job.run_id == followed:
            time.sleep(_LOOK)  # this start has ended; the supervisor is about to notice
            continue
        if followed is not None:
            yield f"--- start {job.starts}\n"
        followed = job.run_id
        yield from _follow_start(deployment, jobs, job)


def _follow_start(deployment: Deployment, jobs: Jobs, job: Submitted) -> Iterator[str]:
    with connected(deployment) as client:
        lines = _Lines(deployment, client, job.run_id)
        while not lines.ended:
            try:
                text = lines.next(_LOOK)
            except LinkError:
                if _is_current(jobs, job):
                    raise
                return
            if text is not None:
                yield text
            elif not _is_current(jobs, job):
                return


def keep(deployment: Deployment, job: Submitted) -> None:
    """Keep what a start of a run printed, which a SuperLink forgets when it ends."""
    try:
        text = printed(deployment, job.run_id)
    except LinkError:
        return
    path = kept(deployment, job.name)
    if text:
        before = path.read_text(encoding="utf-8") if path.is_file() else ""
        write_text(path, f"{before}--- start {job.starts}\n{text}")


def kept(deployment: Deployment, name: str) -> Path:
    """Return the file that keeps what the ended starts of a run printed."""
    return deployment.state / JOBS / f"{name}.log"


class _Lines:
    """The stream of one start's log, read beside the caller, who can wait for a while instead of for ever."""

    def __init__(self, deployment: Deployment, client: object, run_id: int) -> None:
        self._deployment, self._client, self._run_id = deployment, client, run_id
        self._read: queue.Queue[str | Exception | None] = queue.Queue()
        self.ended = False
        threading.Thread(target=self._run, daemon=True).start()

    def next(self, seconds: float) -> str | None:
        """Return what comes next; None: nothing came for so long, or the stream has ended."""
        if self.ended:
            return None
        try:
            part = self._read.get(timeout=seconds)
        except queue.Empty:
            return None
        if part is None:
            self.ended = True
        if isinstance(part, Exception):
            self.ended = True
            raise link_error(self._deployment, part) from part
        return part

    def _run(self) -> None:
        from flwr.proto.control_pb2 import StreamLogsRequest

        request = StreamLogsRequest(run_id=self._run_id, after_timestamp=0.0)
        try:
            for part in self._client.StreamLogs(request):  # type: ignore[attr-defined]
                self._read.put(part.log_output)
            self._read.put(None)
        except Exception as error:
            self._read.put(error)


def _job(jobs: Jobs, name: str) -> Submitted:
    job = jobs.get(name)
    if job is None:
        raise ConfigError(f"there is no run '{name}' any more.")
    return job


def _is_current(jobs: Jobs, job: Submitted) -> bool:
    """Return whether the run still goes on with this start."""
    now = _job(jobs, job.name)
    return now.state == "active" and now.run_id == job.run_id
