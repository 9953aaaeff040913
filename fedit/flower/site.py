"""``python -m fedit.flower.site FOLDER --data PATH``: a site's worker, which keeps base model and rows in memory.

One for all runs and messages. What it does is bounded by the site's policy, what it sends is written down.
"""

import argparse
import logging
import os
import socket
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from torch import Tensor

from fedit import tensorfiles
from fedit.arms import ArmRows
from fedit.config import RunConfig
from fedit.engines.inprocess import InProcess
from fedit.engines.messages import BROADCAST_PARTS, error_header, join, read_task, result_frame, split
from fedit.errors import ConfigError, FeditError
from fedit.files import safe_name
from fedit.flower import wire
from fedit.flower.audit import Audit
from fedit.flower.cache import CacheError, ResultCache
from fedit.flower.engine import TENSORS, read_piece
from fedit.flower.layout import Site
from fedit.flower.policy import Policy
from fedit.flower.wire import Envelope, Header
from fedit.job import Job
from fedit.model.hardware import is_out_of_memory
from fedit.objectives import Learnt, num_tokens
from fedit.prepare import assemble
from fedit.store import ClientStore
from fedit.types import ClientFailure, ClientTask, ClientUpdate, Tensors
from fedit.worker import Worker

log = logging.getLogger(__name__)

LONGEST_SOCKET = 100
"""Characters of a socket's path that every system takes."""


@dataclass(frozen=True, slots=True)
class SiteSettings:
    """What the operator decides. clients: None: the site is one client; a field: one client a value of it."""

    name: str
    data: Path
    folder: Path
    client_by: str | None = None


class SiteWorker:
    """Answers envelopes; training, which needs the model, one at a time."""

    def __init__(self, settings: SiteSettings, policy: Policy) -> None:
        self._settings = settings
        self._policy = policy
        state = settings.folder / "state"
        self._cache = ResultCache(state / "results")
        self._audit = Audit(state / "audit.jsonl")
        self._runs: dict[tuple[str, str], _Run] = {}
        self._busy: str | None = None
        self._model = threading.Lock()

    def answer(self, header: Header, pieces: Mapping[str, bytes]) -> Envelope:
        """Do what an envelope asks; errors are answers too."""
        try:
            if header.get("do") == "ping":
                return {"ready": True, "busy": self._busy}, {}
            with self._model:
                if header.get("do") == "clients":
                    return self._clients(header), {}
                if header.get("do") == "train":
                    return self._train(header, pieces)
            return {"error": f"this site does not know how to do '{header.get('do')}'"}, {}
        except _Refused as refused:
            log.warning("refused: %s", refused)
            return {"refused": str(refused)}, {}
        except Exception as error:
            reason = _in_a_line(error)
            log.exception("could not do what was asked: %s", reason)
            return {"error": reason}, {}

    def _clients(self, header: Header) -> Header:
        run = self._run(header)
        shown = self._policy.reports("num_examples")
        sizes = {info.client_id: info.num_examples if shown else 1 for info in run.worker.clients()}
        self._audit.announced(run.name, sizes)
        return {"clients": [{"client_id": client, "num_examples": size} for client, size in sizes.items()]}

    def _train(self, header: Header, pieces: Mapping[str, bytes]) -> Envelope:
        self._refuse_oversized(pieces)
        task_id = str(header["task_id"])
        if (known := self._cache.get(task_id)) is not None:
            log.info("answered from the cache: task %s", task_id[:12])
            return self._sized(_envelope(*known))
        run = self._run(header)
        self._busy = task_id
        try:
            tasks = _tasks(cast("Sequence[Header]", header["tasks"]), pieces)
            for task in tasks:
                self._refuse(run, task)
            frames = [result_frame(self._leaving(run, result)) for result in run.engine.run(tasks)]
        finally:
            self._busy = None
        answer: Header = {"results": [own for own, _ in frames]}
        held = join({str(index): parts for index, (_, parts) in enumerate(frames)})
        try:
            self._cache.put(task_id, answer, held)
        except CacheError as error:
            log.warning("%s", error)
        return self._sized(_envelope(answer, held))

    def _sized(self, envelope: Envelope) -> Envelope:
        self._refuse_oversized(envelope[1])
        return envelope

    def _refuse_oversized(self, pieces: Mapping[str, bytes]) -> None:
        if reason := self._policy.oversized(sum(map(len, pieces.values()))):
            raise _Refused(reason)

    def _refuse(self, run: "_Run", task: ClientTask) -> None:
        if task.client_id not in run.rows:
            raise _Refused(f"there is no client '{task.client_id}' here")
        if not 1 <= task.round <= run.job.config.num_rounds:
            raise _Refused(
                f"the job has {run.job.config.num_rounds} rounds; the server asks for round {task.round}."
            )
        most, sent = self._policy.max_rank, _rank(task.broadcast.adapter)
        if sent > most:
            raise _Refused(
                f"max_rank: the server sent an adapter of rank {sent}; this site allows at most {most}."
            )
        rows = run.rows[task.client_id]
        if reason := self._policy.refusal(run.job.config, task.training, len(rows), num_tokens(rows)):
            raise _Refused(reason)

    def _leaving(self, run: "_Run", result: ClientUpdate | ClientFailure) -> ClientUpdate | ClientFailure:
        """Return what leaves the site, and write it down."""
        if isinstance(result, ClientFailure):
            log.warning("client %s has no update of round %d: %s", result.client_id, result.round, result.reason)
            self._audit.failed(run.name, result.round, result.client_id, result.reason)
            return result
        kept = self._policy.metrics(result.metrics)
        shown = result.num_examples if self._policy.reports("num_examples") else 1
        result = replace(result, num_examples=shown, metrics=kept)
        tensors = {**result.delta, **{f"extra/{name}": tensor for name, tensor in result.extra.items()}}
        metrics = {"num_examples": float(result.num_examples), "weight": result.weight, **kept}
        self._audit.sent(run.name, result.round, result.client_id, tensors, metrics)
        return result

    def _run(self, header: Header) -> "_Run":
        """Return the run that an envelope is about, prepared when it is first heard of."""
        name = str(header["run"])
        config = RunConfig.model_validate(header["config"])
        key = (name, config.model_dump_json())
        if key not in self._runs:
            if reason := self._policy.refusal(config, None):
                raise _Refused(reason)
            self._runs.clear()  # one base model at a time
            self._runs[key] = _Run.of(name, config, self._settings)
        return self._runs[key]


class _Refused(FeditError):
    """The site's policy does not allow it."""


@dataclass(frozen=True, slots=True)
class _Run:
    """A run's job at this site."""

    name: str
    job: Job
    rows: Mapping[str, Sequence[Learnt]]
    worker: Worker
    engine: InProcess

    @classmethod
    def of(cls, name: str, config: RunConfig, settings: SiteSettings) -> "_Run":
        job = assemble(site_config(config, settings))
        names = list(job.clients)
        members = {c: [c] for c in names} if settings.client_by else {settings.name: names}
        rows = ArmRows(job, members)
        worker = Worker(
            job.model,
            rows,
            job.strategy,
            seed=config.seed,
            weighting=config.weighting,
            transforms=job.transforms,
            store=ClientStore(settings.folder / "state" / "clients" / safe_name(name)),
            crew=job.crew,
            describe=job.client_info,
        )
        return cls(name, job, rows, worker, InProcess(worker, width=job.stack_width))


def site_config(config: RunConfig, settings: SiteSettings) -> RunConfig:
    """Return a job's settings as a site follows them: its own rows, all of them to learn from."""
    changes: dict[str, object] = {
        "dataset": str(settings.data),
        "held_out": 0,
        "validation": 0,
        "partitioner": "natural" if settings.client_by else "iid",
        "partition_by": settings.client_by,
        "partition_file": None,
        "num_clients": None if settings.client_by else 1,
        "alpha": None,
        "labels_per_client": None,
        "shards_per_client": None,
        "min_examples": None,
        "num_clusters": None,
        "clients_per_round": 1.0,
        "min_clients": 1,
        "unseen_clients": 0,
    }
    return config.model_copy(update=changes)


def _in_a_line(error: Exception) -> str:
    """Return what went wrong, for people at both ends."""
    if is_out_of_memory(error):
        return "out of memory; a smaller micro_batch_size or max_length needs less"
    return " ".join(str(error_header(error)["message"]).split())


def _rank(adapter: Mapping[str, Tensor]) -> int:
    """Return the largest rank of any factor, whatever the job says."""
    ranks = [t.shape[0 if n.endswith(".A") else 1] for n, t in adapter.items() if n.endswith((".A", ".B"))]
    return max(ranks, default=0)


def _envelope(header: Header, held: Tensors) -> Envelope:
    """Return an answer whose tensors travel as one piece a result, by the result's index."""
    return header, {index: tensorfiles.encode({TENSORS: own}, {}) for index, own in split(held).items()}


def _tasks(headers: Sequence[Header], pieces: Mapping[str, bytes]) -> list[ClientTask]:
    sets = {name: read_piece(piece) for name, piece in pieces.items()}
    return [
        read_task(own, {part: sets[str(own["broadcast"])].get(part, {}) for part in BROADCAST_PARTS})
        for own in headers
    ]


def listen(path: Path) -> socket.socket:
    """Return a socket that only this user can reach, in place of one that a dead worker left.

    Raises:
        ConfigError: the path is too long for a socket.
    """
    if len(str(path)) > LONGEST_SOCKET:
        raise ConfigError(f"{path} is too long for a socket; move the site's folder to a shorter path.")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    own = socket.socket(socket.AF_UNIX)
    before = os.umask(0o177)
    try:
        own.bind(str(path))
    finally:
        os.umask(before)
    own.listen()
    return own


def serve(worker: SiteWorker, listening: socket.socket) -> None:
    """Answer one envelope a connection, each in a thread, for ever."""
    while True:
        connection, _ = listening.accept()
        threading.Thread(target=_converse, args=(worker, connection), daemon=True).start()


def _converse(worker: SiteWorker, connection: socket.socket) -> None:
    with connection, suppress(OSError):
        try:
            header, pieces = wire.receive(connection)
        except wire.WireError as error:
            wire.send(connection, {"error": str(error)}, {})
            return
        wire.send(connection, *worker.answer(header, pieces))


def main() -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser(prog="python -m fedit.flower.site")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--client-by")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    site = Site.load(given.folder)
    settings = SiteSettings(site.name, given.data, given.folder, given.client_by)
    worker = SiteWorker(settings, Policy.load(site.policy))
    serve(worker, listen(given.folder / "state" / "worker.sock"))


if __name__ == "__main__":
    main()
