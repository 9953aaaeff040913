"""Runs one measured process at a time and watches the memory of its tree."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil

from benchmarks.kept import Kept
from fedit.process import allocator_settings

HERE = Path(__file__).parent
PEERS_PYTHON = HERE / ".venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
LONGEST_S = 3600


class Failed(RuntimeError):
    """A measured process ended without a result."""


class Watch:
    """Looks at processes ten times a second while its block runs; a subclass says at what."""

    def __enter__(self) -> Self:
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._thread.join()

    def look(self) -> None:
        """Look once."""

    def _watch(self) -> None:
        while not self._done.wait(0.1):
            self.look()


@dataclass
class Memory(Watch):
    """The most resident bytes that a process tree has held."""

    pid: int
    peak: int = 0

    def look(self) -> None:
        """Keep what is held now, if it is more."""
        self.peak = max(self.peak, self._resident())

    def _resident(self) -> int:
        total = 0
        try:
            root = psutil.Process(self.pid)
            for process in (root, *root.children(recursive=True)):
                total += process.memory_info().rss
        except psutil.NoSuchProcess:
            return 0  # something ended while it was looked at; the next look counts
        return total


class Runner:
    """Runs scripts; ``kept``: what an interrupted run has measured already, None: nothing is kept."""

    def __init__(self, kept: Kept | None = None) -> None:
        self.kept = kept

    def __call__(self, who: str, request: dict, environment: dict[str, str] | None = None) -> dict:
        """Return what `measured` does, or what is kept of it."""
        if self.kept is None:
            return measured(who, request, environment)
        rows = hashlib.sha256(Path(request["rows"]).read_bytes()).hexdigest()
        question = {"who": who, "request": {**request, "rows": rows}, "environment": environment}
        return self.kept.of(question, lambda: measured(who, request, environment))


run = Runner()


def measured(who: str, request: dict, environment: dict[str, str] | None = None) -> dict:
    """Run the script of a peer, or one of this package's own modules, and return its result.

    ``peak_rss`` (bytes, of the tree) and ``total_s`` (wall, start of the process included) are added.

    Raises:
        Failed: it printed no result; its last words are in the message.
    """
    script = HERE / "peers" / f"{who}.py"
    own = [sys.executable, "-m", f"benchmarks.{who}"]
    peer = script.is_file()
    command = [str(PEERS_PYTHON), str(script)] if peer else own
    threads = str(request["threads"])
    started = time.perf_counter()
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=HERE.parent,
        env={
            **os.environ,
            # As fedit starts its worker processes; what the peers gain from such settings is in their grid.
            **({} if peer else allocator_settings(os.environ)),
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "PYTHONDONTWRITEBYTECODE": "",
            **(environment or {}),
        },
        start_new_session=True,
    )
    try:
        with Memory(process.pid) as memory:
            output, errors = process.communicate(json.dumps(request), timeout=LONGEST_S)
    except subprocess.TimeoutExpired as error:
        raise Failed(f"{who} took longer than {LONGEST_S} s") from error
    finally:
        _end_group(process)
    lines = output.strip().splitlines()
    if process.returncode != 0 or not lines:
        words = " | ".join(errors.strip().splitlines()[-3:])
        raise Failed(f"{who} ended with {process.returncode}: {words}")
    result = json.loads(lines[-1])
    return {**result, "peak_rss": memory.peak, "total_s": time.perf_counter() - started}


def _end_group(process: subprocess.Popen) -> None:
    """End whatever the process left running in its own session, and itself."""
    if os.name != "posix":
        process.kill()
        return
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()
