"""A run, from settings to a folder that tells all: prepare, federate, compare, report."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fedit import arms, checkpoint
from fedit.config import RunConfig
from fedit.data.examples import fingerprint
from fedit.data.manifest import Partition
from fedit.errors import RunFolderError
from fedit.estimate import estimate
from fedit.events import SCHEMA, EventLog, Listener
from fedit.federation import Arm, Trained, train
from fedit.files import remove_leftovers, safe_name, write_json, write_text
from fedit.model.export import save_adapter
from fedit.prepare import Job, prepare
from fedit.report.summary import ArmResult, summarise, write_summary
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
from fedit.scoring import answer_held_out

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
    _save_adapter(job, federated, folder / "adapter")
    results = [_base(job, federated, folder, log), _score(job, arms.FEDERATED, federated, folder, log)]
    for arm in arms.baselines(job, federated.events) if job.config.compare else []:
        results.append(_baseline(job, arm, folder, listener))
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


def _baseline(job: Job, arm: Arm, folder: Path, listener: Listener | None) -> ArmResult:
    kind, _, client = arm.name.partition(":")
    own = folder / "arms" / (f"{kind}.{safe_name(client)}" if client else kind)
    log = EventLog(own, listener, arm=arm.name)
    trained = train(job, arm, own, log)
    _save_adapter(job, trained, own / "adapter")
    return _score(job, arm.name, trained, own, log)


def _base(job: Job, federated: Trained, folder: Path, log: EventLog) -> ArmResult:
    """Return the base model's scores: those of round 0, whose adapter changes nothing."""
    start = Trained(job.strategy.init(job.model.initial(job.config.seed)).adapter, 0, federated.events[:2])
    return _score(job, "base", start, folder / "arms" / "base", log)


def _score(job: Job, name: str, trained: Trained, folder: Path, log: EventLog) -> ArmResult:
    """Return an arm's scores; answers that were generated before are read, not generated again."""
    path = folder / "answers.json"
    if not (job.config.exact_match or job.config.compare):
        return ArmResult(name, trained, None)
    stored = ArmResult.read(name, trained, path)
    if stored is not None:
        return stored
    job.model.load(trained.adapter)
    log.tell("answering", trained.round, subject=name, done=0, total=len(job.held_out))
    answers = answer_held_out(
        job, lambda done: log.tell("answering", trained.round, subject=name, done=done, total=len(job.held_out))
    )
    result = ArmResult(name, trained, answers)
    result.write(path)
    return result


def _save_adapter(job: Job, trained: Trained, folder: Path) -> None:
    facts = {
        "dataset": Path(job.corpus.name).name if Path(job.corpus.name).exists() else job.corpus.name,
        "data fingerprint": fingerprint(job.corpus.all()),
        "base weights": _origin(job),
        "base model fingerprint": job.source.fingerprint,
        "prompt template": f"{job.template.name} ({job.template.fingerprint[:12]})",
        "clients": str(len(job.clients)),
        "rounds": str(trained.round),
        "partition": f"{job.partition.scheme} ({job.partition.hash[:12]})",
    }
    save_adapter(
        job.model, trained.adapter, folder, facts=facts, settings_yaml=to_yaml(_without_paths(job.config))
    )


def _origin(job: Job) -> str:
    if job.source.origin == "wheel":
        return f"4-bit GGUF from the PyPI package {job.source.revision}, dequantised"
    return f"{job.source.origin}, revision {job.source.revision}" if job.source.revision else job.source.origin


def _without_paths(config: RunConfig) -> RunConfig:
    """Return settings for others to read: files of this machine by their names alone."""
    paths = {name: getattr(config, name) for name in ("model", "dataset", "prompt_template", "partition_file")}
    return config.model_copy(
        update={name: Path(path).name for name, path in paths.items() if path is not None and Path(path).exists()}
    )
