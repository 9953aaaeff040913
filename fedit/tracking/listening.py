"""A run's events on their way to TensorBoard and trackers."""

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from fedit.config import RunConfig
from fedit.events import Event, EventLog, Listener
from fedit.files import read_json, write_json
from fedit.tracking.board import Board
from fedit.tracking.points import KINDS, points
from fedit.tracking.trackers import TRACKERS, RunInfo, Tracker, check_trackers

STATE = "tracking.json"
"""What trackers call the run and how far they were told of it, so that a resumed run tells nothing twice."""
FAILED = "tracking_failed"

Place = Callable[[str], Path]
"""Arm -> the folder that holds its log."""


class Tracking:
    """Hears a run's events and passes their numbers on.

    The log decides: TensorBoard's files are made from it anew when a run goes on. Trackers cannot forget, so what
    each was told is kept in ``tracking.json``, written before it is told: a run that is killed may leave a gap of
    one round there, and never a point twice. Rounds that are done again after a crash have the same numbers.
    """

    def __init__(self, config: RunConfig, folder: Path, place: Place, listener: Listener | None) -> None:
        self._config, self._folder, self._place, self._listener = config, folder, place, listener
        self._boards: dict[str, Board] = {}
        self._shown: dict[str, set[tuple[str, int]]] = {}
        self._trackers: dict[str, Tracker] = {}
        self._state: dict[str, object] = {}
        if config.report_to:
            self._open()

    def hear(self, event: Event) -> None:
        """Pass an event on, and its numbers to where they are shown."""
        if self._listener is not None:
            self._listener(event)
        kind, arm = str(event["event"]), event.get("arm")
        if kind not in (*KINDS, "arm_started", "resumed") or not isinstance(arm, str):
            return
        if arm not in self._boards:
            self._begin(arm)
        if (key := _key(event)) not in self._shown[arm]:
            self._shown[arm].add(key)
            self._boards[arm].add(event)
        self._tell(arm, [event])

    def close(self) -> None:
        """Write and send what is waiting."""
        for board in self._boards.values():
            board.close()
        for name in list(self._trackers):
            self._try(name, lambda tracker: tracker.finish())

    def _begin(self, arm: str) -> None:
        past = [event for event in EventLog(self._place(arm)).history() if event["event"] in KINDS]
        self._boards[arm] = Board(self._folder, arm, past)
        self._shown[arm] = {_key(event) for event in past}
        self._tell(arm, past)

    def _open(self) -> None:
        path = self._folder / STATE
        self._state = read_json(path) if path.is_file() else {"id": secrets.token_hex(4), "keys": {}, "told": {}}
        keys = _table(self._state, "keys")
        for name in self._config.report_to:
            title = f"{self._folder.resolve().name}-{self._state['id']}"
            key = keys.get(name)
            info = RunInfo(title, self._config.model_dump(mode="json"), key if isinstance(key, str) else None)
            try:
                self._trackers[name] = TRACKERS[name](info)
            except Exception as error:  # whatever a tracker's network or disk does, the training goes on
                self._lost(name, error)
            else:
                keys[name] = self._trackers[name].key
        write_json(path, self._state)

    def _tell(self, arm: str, events: Sequence[Event]) -> None:
        for name in list(self._trackers):
            told = _table(_table(_table(self._state, "told"), name), arm)
            new = [event for event in events if points(event) and _round(event) > _last(told, event)]
            for event in new:
                told[str(event["event"])] = _round(event)
            if new:
                write_json(self._folder / STATE, self._state)
            for event in new:
                self._log(name, arm, event)

    def _log(self, name: str, arm: str, event: Event) -> None:
        start = "" if arm == "federated" else f"{arm}/"
        numbers = {f"{start}{key}": number for key, number in points(event).items()}
        time = event.get("time")
        self._try(name, lambda own: own.log(numbers, _round(event), time if isinstance(time, float) else 0.0))

    def _try(self, name: str, call: Callable[[Tracker], None]) -> None:
        try:
            call(self._trackers[name])
        except Exception as error:  # as above
            self._trackers.pop(name)
            self._lost(name, error)

    def _lost(self, name: str, error: Exception) -> None:
        if self._listener is not None:
            reason = f"{type(error).__name__}: {error}"
            self._listener({"event": FAILED, "round": 0, "tracker": name, "reason": reason})


@contextmanager
def tracked(config: RunConfig, folder: Path, place: Place, listener: Listener | None) -> Iterator[Listener]:
    """Yield a listener that passes events on to ``listener``, to TensorBoard and to the trackers of the settings.

    Raises:
        ConfigError: a tracker's package is not installed.
    """
    check_trackers(config.report_to)
    tracking = Tracking(config, folder, place, listener)
    try:
        yield tracking.hear
    finally:
        tracking.close()


def _key(event: Event) -> tuple[str, int]:
    return str(event["event"]), _round(event)


def _round(event: Event) -> int:
    return int(str(event["round"]))


def _last(told: Mapping[str, object], event: Event) -> int:
    last = told.get(str(event["event"]))
    return last if isinstance(last, int) else -1


def _table(table: dict[str, object], name: str) -> dict[str, object]:
    """Return the object under a name, made where there is none."""
    own = table.get(name)
    if not isinstance(own, dict):
        own = table[name] = {}
    return own
