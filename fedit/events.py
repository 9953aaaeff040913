"""The log of a run: one JSON object a line, each with ``event`` and ``round``; summaries are made of it."""

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fedit.errors import RunFolderError
from fedit.files import reason, write_text
from fedit.reading import parse_json

Event = dict[str, object]
Listener = Callable[[Event], None]

SCHEMA = 1
"""Version of the events' fields, written into the first one."""

NOT_EVALUATED = "not_evaluated"
"""The event of a run that has nothing to measure on."""

_OF_A_CLIENT = b'"event": "client"'


class EventLog:
    """Appends events to ``events.jsonl`` and tells a listener; what is only of the moment is told, not written."""

    def __init__(self, folder: Path, listener: Listener | None = None, **labels: object) -> None:
        self._path = folder / "events.jsonl"
        self._listener = listener
        self._labels = labels
        self._waiting: list[Event] | None = None
        self._history: list[Event] = []
        self._read_to = 0

    def write(self, event: str, round: int, **fields: object) -> None:
        """Append one event.

        Raises:
            RunFolderError: the disk is full or the folder cannot be written.
        """
        record: Event = {"event": event, "round": round, "time": round_time(), **self._labels, **fields}
        if self._waiting is not None:
            self._waiting.append(record)
        else:
            self._append([record])

    @contextmanager
    def together(self) -> Iterator[None]:
        """Append all events of the block at its end, with one write to the disk; none if it fails."""
        waiting: list[Event] = []
        self._waiting = waiting
        try:
            yield
        finally:
            self._waiting = None
        self._append(waiting)

    def tell(self, event: str, round: int, **fields: object) -> None:
        """Tell the listener what is only of the moment, such as the step a client is at."""
        self._tell({"event": event, "round": round, **self._labels, **fields})

    def read(self) -> list[Event]:
        """Return all events; a last line that a killed process left unfinished is not one."""
        if not self._path.is_file():
            return []
        return _events(self._path.read_bytes())

    def history(self) -> list[Event]:
        """Return all events but those of single clients, which outnumber the others by far.

        Only what was appended since the last call is read, so asking every round stays cheap.
        """
        if not self._path.is_file():
            self._history, self._read_to = [], 0
            return []
        with open(self._path, "rb") as file:
            if self._read_to > file.seek(0, os.SEEK_END):
                self._history, self._read_to = [], 0  # the log was rewritten
            file.seek(self._read_to)
            while line := file.readline():
                if not line.endswith(b"\n"):
                    break  # not finished yet, or never
                self._read_to += len(line)
                if _OF_A_CLIENT not in line:
                    self._history += [event for event in _events(line) if event["event"] != "client"]
        return list(self._history)

    def rewind(self, round: int) -> None:
        """Forget what was written about rounds after ``round``, and that the run finished: both are done again."""
        kept = [e for e in self.read() if int(str(e["round"])) <= round and e["event"] != "finished"]
        lines = [json.dumps(event, sort_keys=True, ensure_ascii=False) for event in kept]
        write_text(self._path, "".join(line + "\n" for line in lines))
        self._history, self._read_to = [], 0

    def _append(self, records: Sequence[Event]) -> None:
        if not records:
            return
        lines = [
            json.dumps(_plain(record), sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
            for record in records
        ]
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with open(self._path, "a", encoding="utf-8") as file:
                file.write("".join(lines))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise RunFolderError(f"cannot write {self._path}: {reason(error)}") from error
        for record in records:
            self._tell(record)

    def _tell(self, record: Event) -> None:
        if self._listener is not None:
            self._listener(record)


def _events(content: bytes) -> list[Event]:
    """Return the events in lines of a log; other lines are skipped."""
    events: list[Event] = []
    for line in content.decode("utf-8", errors="replace").split("\n"):
        try:
            event = parse_json(line)
        except ValueError:
            continue
        if isinstance(event, dict) and "event" in event and type(event.get("round")) is int:
            events.append(event)
    return events


def round_time() -> float:
    """Return the time of day in seconds since 1970, to the millisecond."""
    return math.floor(time.time() * 1000) / 1000


def _plain(value: object) -> object:
    """Return JSON's idea of ``value``: NaN and infinity become null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
