"""Arms beside the federation: trained here one after another, or side by side in processes of one thread each."""

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from fedit import arms
from fedit.config import RunConfig
from fedit.data.examples import fingerprint
from fedit.events import Event, EventLog, Listener
from fedit.federation import Arm, Trained, train
from fedit.files import safe_name
from fedit.model.export import save_adapter
from fedit.prepare import Job, prepare
from fedit.report.summary import ArmResult
from fedit.runfolder import read_config, to_yaml
from fedit.scoring import answer_held_out

_DONE = "arm_done"


def compare(job: Job, federated: Trained, folder: Path, listener: Listener | None) -> list[ArmResult]:
    """Train and score the baselines that the job asks for; those that are done already are only read."""
    if not job.config.compare:
        return []
    baselines = arms.baselines(job, federated.events)
    waiting = [arm for arm in baselines if not (arm_folder(folder, arm.name) / "answers.json").is_file()]
    workers = min(_num_workers(job), len(waiting))
    if workers > 1:
        _train_side_by_side(waiting, workers, folder, listener)
    # What a worker finished is found done here; what one could not finish goes on here and shows its error.
    return [train_and_score(job, arm, arm_folder(folder, arm.name), listener) for arm in baselines]


def train_and_score(job: Job, arm: Arm, folder: Path, listener: Listener | None) -> ArmResult:
    """Run one baseline from where it is to its end."""
    log = EventLog(folder, listener, arm=arm.name)
    trained = train(job, arm, folder, log)
    write_adapter(job, trained, folder / "adapter")
    return score_arm(job, arm.name, trained, folder, log)


def score_base(job: Job, federated: Trained, folder: Path, log: EventLog) -> ArmResult:
    """Return the base model's scores: those of round 0, whose adapter changes nothing."""
    start = Trained(job.strategy.init(job.model.initial(job.config.seed)).adapter, 0, federated.events[:2])
    return score_arm(job, "base", start, arm_folder(folder, "base"), log)


def score_arm(job: Job, name: str, trained: Trained, folder: Path, log: EventLog) -> ArmResult:
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


def write_adapter(job: Job, trained: Trained, folder: Path) -> None:
    """Write an arm's adapter as a PEFT folder whose card says where it comes from."""
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


def arm_folder(folder: Path, name: str) -> Path:
    """Return the folder of the arm ``name``: arms/<kind> or arms/<kind>.<client>."""
    kind, _, client = name.partition(":")
    return folder / "arms" / (f"{kind}.{safe_name(client)}" if client else kind)


def _num_workers(job: Job) -> int:
    if job.config.num_workers is not None:
        return job.config.num_workers
    if job.model.device.type != "cpu":
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _train_side_by_side(waiting: Sequence[Arm], workers: int, folder: Path, listener: Listener | None) -> None:
    """Run each arm in a process of its own, ``workers`` at a time, and pass on the events they print."""
    names: queue.SimpleQueue[str] = queue.SimpleQueue()
    # The long ones first, so that no worker is left with one at the end.
    for arm in sorted(waiting, key=lambda arm: arm.name.startswith("local:")):
        names.put(arm.name)
    told: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
    running: list[subprocess.Popen[bytes]] = []
    (folder / "arms").mkdir(exist_ok=True)
    errors = open(folder / "arms" / "workers.log", "ab")  # noqa: SIM115  (closed when the workers are)

    def work() -> None:
        command = [sys.executable, "-m", "fedit.comparison", str(folder)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors) as process:
            running.append(process)
            while (name := _next(names)) is not None and _give(process, name):
                for line in process.stdout or ():
                    event = json.loads(line)
                    if event["event"] == _DONE:
                        break
                    told.put(event)
            told.put(None)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(workers)]
    for thread in threads:
        thread.start()
    try:
        finished = 0
        while finished < workers:
            event = told.get()
            if event is None:
                finished += 1
            elif listener is not None:
                listener(event)
    finally:
        while _next(names) is not None:
            pass
        for process in running:
            process.terminate()
        for thread in threads:
            thread.join()
        errors.close()


def _next(names: "queue.SimpleQueue[str]") -> str | None:
    try:
        return names.get_nowait()
    except queue.Empty:
        return None


def _give(process: "subprocess.Popen[bytes]", name: str) -> bool:
    """Name a worker's next arm; False when the worker is gone."""
    try:
        if process.stdin is not None:
            process.stdin.write(json.dumps(name).encode() + b"\n")
            process.stdin.flush()
    except OSError:
        return False
    return True


def _serve(folder: Path) -> None:
    """Train and score the arms of the run in ``folder`` that are named on standard input; print events as JSON."""
    named: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            named.put(json.loads(line))
        # The end of the pipe: there is nothing more to do, or the process that started this one is gone.
        os._exit(0)

    def tell(event: Event) -> None:
        print(json.dumps(event, default=str), flush=True)  # noqa: T201  (the parent reads it)

    threading.Thread(target=read, daemon=True).start()
    job = prepare(read_config(folder).model_copy(update={"num_threads": 1}))
    baselines = {arm.name: arm for arm in arms.baselines(job, EventLog(folder).read())}
    while True:
        name = named.get()
        train_and_score(job, baselines[name], arm_folder(folder, name), tell)
        tell({"event": _DONE, "round": 0})


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
