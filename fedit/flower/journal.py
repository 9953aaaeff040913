"""What happens to the processes of a deployment, one line an event: told to people, written for programs."""

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from fedit.events import round_time

Tell = Callable[[str], None]
"""Hears one line for people."""

FILE = "events.jsonl"


class Journal:
    """Tells what happened and what is done about it.

    path: file that one JSON object an event is appended to; a full disk does not stop a supervisor.
    """

    def __init__(self, path: Path, tell: Tell) -> None:
        self._path = path
        self._tell = tell

    def say(self, event: str, text: str, **fields: object) -> None:
        """Write one event; text: one sentence for people."""
        self._tell(text)
        line = json.dumps({"time": round_time(), "event": event, "text": text, **fields}, ensure_ascii=False)
        with suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(line + "\n")
