"""One worker process as its parent sees it: started, asked, found dead, stopped."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, cast

from fedit.engines.frames import FrameError, read_frame, write_frame
from fedit.engines.messages import WorkerError, read_error
from fedit.engines.pool import Event, Keys, Reply, Request, Tell, WorkerDied
from fedit.types import Tensors

MODULE = "fedit.worker_process"
KEPT_SETS = 4
"""Sets of tensors that a worker keeps, the newest: a round's broadcast and what strategies add to it."""
_TAIL = 2000


class WorkerProcess:
    """Runs ``python -m fedit.worker_process``; its stderr is appended to ``log``."""

    def __init__(self, environment: Mapping[str, str], log: Path, module: str = MODULE) -> None:
        self._environment = dict(environment)
        self._log = log
        self._module = module
        self._header: Mapping[str, object] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._ready = False
        self._held: list[str] = []
        self.start()

    def start(self) -> None:
        """Start the process, which loads its libraries and waits to be told what to prepare."""
        self._ready, self._held = False, []
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with open(self._log, "ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", self._module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=self._environment,
            )

    def begin(self, header: Mapping[str, object]) -> None:
        """Send what to prepare, now and after every restart; does not wait."""
        self._header = header
        if self._process is None:
            self.start()
        with suppress(OSError):  # if it is dead already, who asks it will find out
            write_frame(self._stdin, {"do": "begin", **header}, {})

    def ask(self, request: Request, keys: Keys, tell: Tell) -> Reply:
        """Return the answer to one request, of a new process if the last one ended; ``tell`` hears its events.

        Raises:
            WorkerDied: the process ended.
            WorkerError: it cannot start, or failed; another FeditError where the work raised that.
        """
        if self._process is None:
            self.begin(self._header)
        if not self._ready:
            self._wait_until_ready()
        try:
            most = max(KEPT_SETS, len(request.sets))
            named = {role: self._hold(keys.of(tensors), tensors, most) for role, tensors in request.sets.items()}
            write_frame(self._stdin, {**request.header, "sets": named}, {})
            return self._answer(tell)
        except (OSError, FrameError) as error:
            raise WorkerDied(self._end(error)) from error

    def kill(self) -> None:
        """End the process, at once; whoever waits for its answer finds it dead."""
        if (process := self._process) is not None:
            process.kill()

    def stop(self) -> None:
        """End the process and forget it; nobody may be waiting for its answer."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with suppress(OSError):  # what was not written yet has no reader any more
                    stream.close()

    @property
    def _stdin(self) -> BinaryIO:
        return cast(BinaryIO, cast("subprocess.Popen[bytes]", self._process).stdin)

    def _wait_until_ready(self) -> None:
        try:
            self._answer(lambda event: None)
        except (OSError, FrameError) as error:
            reason = self._end(error)
            raise WorkerError(
                f"a worker process cannot start: {reason}. The end of {self._log}:\n{self._tail()}\n"
                "num_workers=1 does all work in one process."
            ) from error
        self._ready = True

    def _answer(self, tell: Tell) -> Reply:
        stdout = cast(BinaryIO, cast("subprocess.Popen[bytes]", self._process).stdout)
        while True:
            frame = read_frame(stdout)
            if frame is None:
                raise FrameError("it ended")
            header, tensors = frame
            if "event" in header:
                tell(cast(Event, header["event"]))
            elif "error" in header:
                raise read_error(header["error"], str(self._log))
            else:
                return Reply(header, tensors)

    def _hold(self, key: str, tensors: Tensors, most: int) -> str:
        """Make the worker keep a set of tensors under its key, unless it does already, of at most ``most``."""
        if key in self._held:
            self._held.remove(key)
        else:
            dropped = self._held[: max(len(self._held) + 1 - most, 0)]
            write_frame(self._stdin, {"do": "hold", "key": key, "drop": dropped}, tensors)
            self._held = self._held[len(dropped) :]
        self._held.append(key)
        return key

    def _end(self, error: Exception) -> str:
        """Make sure that the process has ended, forget it, and return how it did."""
        process = cast("subprocess.Popen[bytes]", self._process)
        try:
            code: int | None = process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            code = None
        self.stop()
        if code is None:
            return f"the worker process sent what cannot be read ({error})"
        if code >= 0 or os.name != "posix":
            return f"the worker process ended with exit code {code}"
        name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
        hint = ", perhaps for lack of memory" if name == "SIGKILL" else ""
        return f"the worker process was killed by {name}{hint}"

    def _tail(self) -> str:
        try:
            return self._log.read_text(encoding="utf-8", errors="replace")[-_TAIL:].strip() or "(empty)"
        except OSError:
            return "(cannot be read)"
