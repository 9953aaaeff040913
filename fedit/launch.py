"""A run, from settings to a folder that tells all: prepare, federate, compare, report."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from fedit import arms, checkpoint
from fedit.comparison import arm_folder, compare, score_arm, score_base
from fedit.compute import Compute, Here, Workers
from fedit.config import RunConfig
from fedit.data.manifest import Partition
from fedit.engines.pool import Pool
from fedit.engines.sizing import environments, fitting, num_workers
from fedit.engines.workers import WorkerProcess
from fedit.errors import RunFolderError
from fedit.estimate import estimate
from fedit.events import SCHEMA, EventLog, Listener
from fedit.federation import train
from fedit.files import remove_leftovers, write_json, write_text
from fedit.job import Job
from fedit.personal import measure_personal
from fedit.prepare import default_threads, prepare
from fedit.report.run_report import run_report
from fedit.report.summary import summarise, write_summary
from fedit.report.write import write_report
from fedit.runfolder import (
    check_writable,
    environment,
    identity_of,
    only_worker,
    read_config,
    read_identity,
    read_summary,
    refuse_taken,
    settings_hash,
    to_yaml,
)
from fedit.tracking.listening import tracked
from fedit.tracking.trackers import check_trackers

CANARIES = "canaries.json"
"""Secrets that were planted, and with whom."""

CHANGES = {
    "data": "the data",
    "model": "the base model",
    "template": "the prompt template",
    "strategy": "the strategy's own file",
    "transforms": "a transform's own file",
    "pace": "a file of devices, availability or selection",
}
"""Part of a run's identity -> its name in the message that it changed."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a finished run leaves: its folder and the content of ``summary.json``."""

    folder: Path
    summary: Mapping[str, object]

    @property
    def adapter(self) -> Path:
        """The PEFT folder of the federated adapter."""
        return self.folder / "adapter"


def run(config: RunConfig, out: str | Path, *, listener: Listener | None = None) -> Result:
    """Run a job into a new folder.

    Raises:
        RunFolderError: the folder already holds a run or cannot be written.
        UserError: settings, data or model cannot work.
        RoundError: too many clients failed.
    """
    folder = Path(out)
    refuse_taken(folder)
    check_trackers(config.report_to)
    check_writable(folder)
    with only_worker(folder), pool_of(config, folder, config.num_threads) as pool:
        job = prepare(config, _teller(listener))
        write_text(folder / "resolved.yaml", to_yaml(job.config))
        write_json(folder / "environment.json", environment())
        job.partition.save(folder / "partition.json")
        if job.canaries:
            write_json(folder / CANARIES, [canary.as_dict() for canary in job.canaries])
        write_json(folder / "run.json", identity_of(job))
        with closing(job):
            return go(job, compute_of(job, pool, folder), folder, listener)


def resume(folder: str | Path, *, listener: Listener | None = None) -> Result:
    """Go on with an interrupted run; a finished one is returned as it is.

    Raises:
        RunFolderError: the folder holds no run, or its settings, data or model changed.
    """
    folder = Path(folder)
    identity = read_identity(folder)
    if (finished := read_summary(folder)) is not None:
        return Result(folder, finished)
    config = same_settings(folder, identity)
    threads = identity.get("num_threads")
    num_threads = threads if isinstance(threads, int) else None
    with only_worker(folder), pool_of(config, folder, num_threads) as pool:
        for place in (folder, *folder.glob("arms/*")):
            remove_leftovers(place)
        job = prepare(config, _teller(listener), num_threads)
        check_same(job, folder, identity)
        if isinstance(width := identity.get("stack_width"), int):
            job.stack_width = width
        with closing(job):
            return go(job, compute_of(job, pool, folder), folder, listener)


def same_settings(folder: Path, identity: Mapping[str, object]) -> RunConfig:
    """Return the settings of an interrupted run, after making sure that they did not change."""
    config = read_config(folder)
    if settings_hash(config) != identity.get("settings"):
        raise RunFolderError(
            f"the settings in {folder / 'resolved.yaml'} changed since the run began; start a new run."
        )
    return config


def check_same(job: Job, folder: Path, identity: Mapping[str, object]) -> None:
    """Make sure that a job that is prepared again is still the one that the run began with."""
    now = identity_of(job)
    for part, words in CHANGES.items():
        if now[part] != identity.get(part):
            raise RunFolderError(f"{words} changed since the run in {folder} began; start a new run.")
    if Partition.load(folder / "partition.json").hash != job.partition.hash:
        raise RunFolderError(f"the partition in {folder / 'partition.json'} is not the one these settings give.")


@contextmanager
def pool_of(config: RunConfig, folder: Path, num_threads: int | None) -> Iterator[Pool]:
    """Start the workers of a run, which load their libraries while this process prepares; none where one suffices.

    num_threads: threads of a worker; None: the default.
    """
    workers = num_workers(config, num_threads)
    places = environments(config, workers, num_threads or default_threads(config)) if workers > 1 else []
    logs = folder / "workers"
    try:
        with Pool([WorkerProcess(place, logs / f"{n}.log") for n, place in enumerate(places, 1)]) as pool:
            yield pool
    finally:
        # A worker that had nothing to say leaves nothing.
        for path in logs.glob("*.log"):
            if path.stat().st_size == 0:
                path.unlink()
        with suppress(OSError):
            logs.rmdir()


def compute_of(job: Job, pool: Pool, folder: Path) -> Compute:
    """Return where the job's work is done: in the pool if it has several workers that fit into memory."""
    header = {
        "config": job.config.model_dump(mode="json"),
        "folder": str(folder.absolute()),
        "num_threads": job.num_threads,
        "partition": job.partition.hash,
    }
    workers = fitting(len(pool), job.config, job.source.path)
    if workers <= 1:
        pool.close()
        return Here(job)
    pool.begin(header, workers)
    return Workers(job, pool)


def go(job: Job, compute: Compute, folder: Path, listener: Listener | None, *, expect: bool = True) -> Result:
    """Train and score every arm that is not done yet, then write what the folder shows.

    expect: whether the time it takes is estimated first.
    """
    with tracked(job.config, folder, lambda arm: _log_folder(folder, arm), listener) as heard:
        return _go(job, compute, folder, heard, expect=expect)


def _log_folder(folder: Path, arm: str) -> Path:
    return folder if arm == arms.FEDERATED else arm_folder(folder, arm)


def _go(job: Job, compute: Compute, folder: Path, listener: Listener, *, expect: bool) -> Result:
    log = EventLog(folder, listener, arm=arms.FEDERATED)
    done = max(checkpoint.rounds(folder / "server"), default=0)
    if reason := compute.why_general():
        text = f"training through transformers and PEFT, slower than fedit's fast path: {reason}"
        log.tell("preparing", done, text=text)
    if expect:
        expected = estimate(job, job.config.num_rounds - done, compute.seconds_per_token(), compute.workers)
        log.tell("estimate", done, compare=list(job.config.compare), **expected.as_dict())
    federated = train(job, compute, arms.federated(job), folder, log)
    compute.export(federated.adapter, federated.round, folder / "adapter")
    results = [
        score_base(job, compute, federated, folder, log),
        score_arm(job, compute, arms.FEDERATED, federated, folder, log),
    ]
    results += compare(job, compute, federated, folder, listener)
    personal = measure_personal(job, compute, folder, results, log)
    log.tell("reporting", federated.round)
    content = summarise(job, federated, results)
    if personal is not None:
        content["personal"] = personal["models"]
    log.write("finished", len([e for e in federated.events if e["event"] == "round"]), schema=SCHEMA)
    write_summary(folder, job, federated, results, content)
    write_report(run_report(folder), folder, pdf=False)
    return Result(folder, content)


def _teller(listener: Listener | None) -> Callable[[str], None]:
    """Return what tells the listener about long preparations, such as fetching the base model."""

    def say(text: str) -> None:
        if listener is not None:
            listener({"event": "preparing", "round": 0, "text": text})

    return say
