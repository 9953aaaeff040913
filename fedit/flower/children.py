"""A process that a supervisor started, with all that it starts: watched, ended, found again after a crash."""

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

GRACE = 10.0
"""Seconds in which a process may end by itself once it was asked to."""
LONGEST_LOG = 50_000_000
"""Bytes of a log; what is older is kept once beside it."""
LONGEST_PAUSE = 60.0
STEADY = 60.0
"""Seconds after which a process that ends counts as one that had worked."""
_TAIL = 65_536


class Child:
    """One program in a process group of its own; what it prints is appended to ``log``."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.name = name
        self.log = log
        self._command = list(command)
        self._environment = dict(environment)
        self._process: subprocess.Popen[bytes] | None = None
        self._printed_from = 0
        self.started = 0.0

    def start(self) -> None:
        """Start the program."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with open(self.log, "ab") as out:
            self._printed_from = out.tell()
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
            )
        self.started = time.monotonic()

    @property
    def pid(self) -> int | None:
        """Its process id; None: it was not started, or was stopped."""
        return None if self._process is None else self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def returncode(self) -> int | None:
        """Its exit code, below zero for a signal; None while it runs."""
        return None if self._process is None else self._process.poll()

    def how_it_ended(self) -> str:
        """Return how the program ended, in words."""
        code = self.returncode
        if code is None:
            return "was stopped"
        if code >= 0:
            return f"ended with exit code {code}"
        known = -code in set(signal.Signals)
        return f"was killed by {signal.Signals(-code).name if known else f'signal {-code}'}"

    def printed(self) -> str:
        """Return the end of what it printed since it was started."""
        try:
            with open(self.log, "rb") as file:
                size = file.seek(0, os.SEEK_END)
                start = self._printed_from if self._printed_from <= size else 0  # the log was cut meanwhile
                file.seek(max(start, size - _TAIL))
                return file.read().decode("utf-8", errors="replace")
        except OSError:
            return ""

    def last_line(self) -> str:
        """Return the last line that it printed, or a note that there is none."""
        lines = [line.strip() for line in self.printed().splitlines() if line.strip()]
        return lines[-1] if lines else "it printed nothing"

    def stop(self, grace: float = GRACE) -> None:
        """End the program, by force where it does not end in ``grace`` seconds, and all that it started."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(grace)
        _kill_group(process.pid)
        process.wait()

    def trim_log(self) -> None:
        """Move a log that has grown long aside; programs that append to it go on at its new beginning."""
        with suppress(OSError):
            if self.log.stat().st_size > LONGEST_LOG:
                self.log.with_name(self.log.name + ".1").write_bytes(self.log.read_bytes())
                os.truncate(self.log, 0)
                self._printed_from = 0


class Kept:
    """A child that is started again whenever it ends.

    soon:  seconds before the first new start; they double with every death that follows soon after a start.
    """

    def __init__(self, child: Child, soon: float = 1.0) -> None:
        self.child = child
        self._soon = soon
        self._deaths = 0
        self._due: float | None = None

    def start(self) -> None:
        """Start it now."""
        self._due = None
        self.child.start()

    def died(self, least: float = 0.0) -> float:
        """Note that it was found dead; return the seconds until it is started again, at least ``least``."""
        steady = time.monotonic() - self.child.started > STEADY
        self._deaths = 1 if steady else self._deaths + 1
        doubled = self._soon * 2.0 ** min(self._deaths - 1, 10)
        pause = max(min(doubled, LONGEST_PAUSE), least)
        self.child.stop(grace=0.0)  # what it had started goes with it
        self._due = time.monotonic() + pause
        return pause

    @property
    def waiting(self) -> bool:
        """Whether a new start was announced and has not come."""
        return self._due is not None

    @property
    def due(self) -> bool:
        """Whether it is time for the new start."""
        return self._due is not None and time.monotonic() >= self._due


def remembered(children: Sequence[Child]) -> dict[str, dict[str, object]]:
    """Return what finds the children again after their supervisor was killed."""
    return {
        child.name: {"pid": child.pid, "born": born(child.pid)}
        for child in children
        if child.pid is not None and child.alive
    }


def end_leftovers(processes: object) -> list[str]:
    """End the children of a supervisor that was killed; return their names.

    processes: what `remembered` gave. A process id that means another process by now is left alone.
    """
    found: dict[str, int] = {}
    for name, one in (processes if isinstance(processes, dict) else {}).items():
        pid = one.get("pid") if isinstance(one, dict) else None
        if isinstance(pid, int) and (birth := born(pid)) is not None and birth == one.get("born"):
            found[str(name)] = pid
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
    ends = time.monotonic() + GRACE
    while time.monotonic() < ends and any(born(pid) is not None for pid in found.values()):
        time.sleep(0.1)
    for pid in found.values():
        _kill_group(pid)
    return list(found)


def born(pid: int) -> str | None:
    """Return when a process was started, which tells it from a later one of the same id; None: there is none."""
    stat = Path(f"/proc/{pid}/stat")
    if stat.parent.parent.joinpath("self").exists():
        try:
            fields = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            return None
        return None if fields[0] == "Z" else fields[19]  # field 22 of proc(5): ticks since the machine started
    result = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return result.stdout.strip() or None


def _kill_group(pid: int) -> None:
    """End by force what is left of the process group that ``pid`` led."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
