"""The points of a sweep, one after the other or several at a time; those that are done are only read."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from fedit.cohort import cohort_size
from fedit.config import RunConfig
from fedit.errors import FeditError, RunFolderError
from fedit.events import Listener
from fedit.files import read_json, write_json, write_text
from fedit.model.hardware import choose_device, places, visible_gpus
from fedit.prepare import default_threads
from fedit.report.write import write_report
from fedit.runfolder import check_writable, only_worker, settings_hash
from fedit.study.run import run_study
from fedit.sweep.plan import Plan, Point, check, point_folder
from fedit.sweep.summary import summarise, sweep_report


def run_sweep(
    plan: Plan, out: str | Path, *, parallel: int | None = None, listener: Listener | None = None
) -> dict[str, object]:
    """Run every point of a sweep into a folder, or go on with it; return the content of ``summary.json``.

    parallel: points at a time, each in a process of its own with its share of cores or GPUs; None: as many as
        leave none of these idle. Results do not depend on it.

    Raises:
        ConfigError: points cannot work; all of them are named, and nothing has been started.
        RunFolderError: a point's folder holds another study, or cannot be written.
        FeditError: a point failed; the others that were under way are ended.
    """
    folder = Path(out)
    waiting = [point for point in plan.points if not is_done(point, folder)]
    _tell(listener, "preparing", text=f"checking {len(waiting)} of {len(plan.points)} points")
    check(waiting)
    check_writable(folder)
    with only_worker(folder):
        if waiting:
            at_once = min(parallel or fitting(waiting[0].settings.config), len(waiting))
            if at_once > 1:
                _side_by_side(waiting, folder, at_once, listener)
            else:
                for number, point in enumerate(waiting, 1):
                    _tell(listener, "preparing", text=f"point {number} of {len(waiting)}: {point.name}")
                    run_study(point.settings, point_folder(folder, point), listener=listener, pdf=False)
        _tell(listener, "reporting")
        summary = summarise(plan, folder)
        write_json(folder / "summary.json", summary)
        write_report(sweep_report(folder), folder)
        return summary


def is_done(point: Point, folder: Path) -> bool:
    """Return whether a point's study is finished, with these very settings."""
    own = point_folder(folder, point)
    if not (own / "summary.json").is_file() or not (own / "study.json").is_file():
        return False
    before = read_json(own / "study.json")
    if before.get("settings") != settings_hash(point.settings.config):
        raise RunFolderError(
            f"{own} holds another study: settings changed since it began; choose another --out for the sweep."
        )
    seeds = read_json(own / "summary.json").get("seeds")
    return bool(seeds == point.settings.study.seeds_from(point.settings.config.seed))


def fitting(config: RunConfig) -> int:
    """Return how many points at a time leave no core or GPU idle: a round's clients take one each."""
    if config.num_workers is not None:
        return 1
    there = places(choose_device(config.device), default_threads(config))
    clients = config.num_clients or 10
    return max(there // min(cohort_size(config.clients_per_round, clients), clients), 1)


@dataclass
class _Children:
    """Processes under way, ended together when one fails or the user interrupts."""

    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    stopped: bool = False

    def run(self, name: str, command: Sequence[str], environment: Mapping[str, str], log: Path) -> int:
        """Run a command to its end and return its exit code."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "wb") as file:
            with self.lock:
                if self.stopped:
                    return -1
                child = subprocess.Popen(
                    command, stdout=file, stderr=file, stdin=subprocess.DEVNULL, env=environment
                )
                self.running[name] = child
            try:
                return child.wait()
            finally:
                with self.lock:
                    del self.running[name]

    def stop(self) -> None:
        with self.lock:
            self.stopped = True
            for child in self.running.values():
                child.terminate()


def _side_by_side(points: Sequence[Point], folder: Path, at_once: int, listener: Listener | None) -> None:
    config = points[0].settings.config
    shares = list(_shares(config, at_once))
    with _ended() as children, ThreadPoolExecutor(at_once) as threads:
        free = list(range(at_once))
        lock = threading.Lock()

        def one(point: Point) -> Point:
            with lock:
                place = free.pop()
            try:
                _child(children, point, folder, shares[place])
            finally:
                with lock:
                    free.append(place)
            return point

        futures = [threads.submit(one, point) for point in points]
        try:
            for number, future in enumerate(as_completed(futures), 1):
                _tell(listener, "preparing", text=f"{number} of {len(points)} points: {future.result().name}")
        except BaseException:
            children.stop()  # before the pool waits for its threads
            for future in futures:
                future.cancel()
            raise


@contextmanager
def _ended() -> Iterator[_Children]:
    children = _Children()
    try:
        yield children
    finally:
        children.stop()


def _child(children: _Children, point: Point, folder: Path, share: tuple[int, Mapping[str, str]]) -> None:
    """Run a point's study in a process of its own, with its share of the machine."""
    workers, environment = share
    own = point_folder(folder, point)
    job, log = own.with_suffix(".yaml"), own.with_suffix(".log")
    content = point.settings.config.model_dump(mode="json") | {
        "num_workers": workers,
        "study": point.settings.study.model_dump(mode="json"),
    }
    write_text(job, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    command = [sys.executable, "-m", "fedit.sweep.point_process", str(job), str(own)]
    code = children.run(point.name, command, {**os.environ, **environment}, log)
    if code != 0 and not children.stopped:
        last = "\n".join(log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:])
        raise FeditError(f"the point {point.name} ended with {code}; {log} says:\n{last}")


def _shares(config: RunConfig, at_once: int) -> Iterator[tuple[int, Mapping[str, str]]]:
    """Yield each place's number of workers and the GPUs that it sees."""
    device = choose_device(config.device)
    there = places(device, default_threads(config))
    for place in range(at_once):
        if device.type != "cuda" or there < 2:
            yield max(there // at_once, 1), {}
            continue
        own = visible_gpus(os.environ, there)[place::at_once] or [visible_gpus(os.environ, there)[place % there]]
        yield len(own), {"CUDA_VISIBLE_DEVICES": ",".join(own)}


def _tell(listener: Callable[[dict[str, object]], None] | None, event: str, **fields: object) -> None:
    if listener is not None:
        listener({"event": event, "round": 0, **fields})
