"""A run, from settings to a folder that tells all: prepare, federate, compare, report."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fedit import arms, checkpoint
from fedit.comparison import compare, score_arm, score_base, write_adapter
from fedit.config import RunConfig
from fedit.data.manifest import Partition
from fedit.errors import RunFolderError
from fedit.estimate import estimate
from fedit.events import SCHEMA, EventLog, Listener
from fedit.federation import train
from fedit.files import remove_leftovers, write_json, write_text
from fedit.prepare import Job, prepare
from fedit.report.summary import summarise, write_summary
from fedit.runfolder import (
    check_writable,
    environment,
    identity_of,
    only_worker,
    read_config,
    read_identity,
    read_summary,
    settings_hash,
    to_yaml,
)

CHANGES = {
    "data": "the data",
    "model": "the base model",
    "template": "the prompt template",
    "strategy": "the strategy's own file",
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
    if (folder / "run.json").exists():
        raise RunFolderError(
            f"{folder} already holds a run; go on with: fedit resume {folder}, or choose another --out."
        )
    check_writable(folder)
    with only_worker(folder):
        job = prepare(config, _teller(listener))
        write_text(folder / "resolved.yaml", to_yaml(config))
        write_json(folder / "environment.json", environment())
        job.partition.save(folder / "partition.json")
        write_json(folder / "run.json", identity_of(job))
        return _go(job, folder, listener)


def resume(folder: str | Path, *, listener: Listener | None = None) -> Result:
    """Go on with an interrupted run; a finished one is returned as it is.

    Raises:
        RunFolderError: the folder holds no run, or its settings, data or model changed.
    """
    folder = Path(folder)
    identity = read_identity(folder)
    if (finished := read_summary(folder)) is not None:
        return Result(folder, finished)
    with only_worker(folder):
        for place in (folder, *folder.glob("arms/*")):
            remove_leftovers(place)
        return _go(_prepare_again(folder, identity, _teller(listener)), folder, listener)


def _prepare_again(folder: Path, identity: Mapping[str, object], say: Callable[[str], None]) -> Job:
    """Return the job of an interrupted run, after making sure that it is still the same one."""
    config = read_config(folder)
    if settings_hash(config) != identity.get("settings"):
        raise RunFolderError(
            f"the settings in {folder / 'resolved.yaml'} changed since the run began; start a new run."
        )
    threads = identity.get("num_threads")
    job = prepare(config.model_copy(update={"num_threads": threads if isinstance(threads, int) else None}), say)
    now = identity_of(job)
    for part, words in CHANGES.items():
        if now[part] != identity.get(part):
            raise RunFolderError(f"{words} changed since the run in {folder} began; start a new run.")
    if Partition.load(folder / "partition.json").hash != job.partition.hash:
        raise RunFolderError(f"the partition in {folder / 'partition.json'} is not the one these settings give.")
    return job


def _go(job: Job, folder: Path, listener: Listener | None) -> Result:
    """Train and score every arm that is not done yet, then write what the folder shows."""
    log = EventLog(folder, listener, arm=arms.FEDERATED)
    done = max(checkpoint.rounds(folder / "server"), default=0)
    expected = estimate(job, job.config.num_rounds - done)
    log.tell("estimate", done, compare=list(job.config.compare), **expected.as_dict())
    federated = train(job, arms.federated(job), folder, log)
    write_adapter(job, federated, folder / "adapter")
    results = [score_base(job, federated, folder, log), score_arm(job, arms.FEDERATED, federated, folder, log)]
    results += compare(job, federated, folder, listener)
    log.tell("reporting", federated.round)
    content = summarise(job, federated, results)
    log.write("finished", len([e for e in federated.events if e["event"] == "round"]), schema=SCHEMA)
    write_summary(folder, job, federated, results, content)
    return Result(folder, content)


def _teller(listener: Listener | None) -> Callable[[str], None]:
    """Return what tells the listener about long preparations, such as fetching the base model."""

    def say(text: str) -> None:
        if listener is not None:
            listener({"event": "preparing", "round": 0, "text": text})

    return say
