"""Measurements of an interrupted run: kept in a file until the run ends, so that hours are not measured twice."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from benchmarks.history import machine

ROOT = Path(__file__).parents[1]
FILE = Path(__file__).parent / ".partial.jsonl"


class Kept:
    """Results by what was asked; asked again, the same question is another one."""

    def __init__(self, path: Path = FILE) -> None:
        self._path = path
        self._asked: Counter[str] = Counter()
        self._found: dict[str, dict] = {}
        self._code = code()
        if path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                record = json.loads(line)
                self._found[record["key"]] = record["result"]

    def __len__(self) -> int:
        return len(self._found)

    def of(self, question: dict, measure: Callable[[], dict]) -> dict:
        """Return the result of ``question``: what is kept of it, else what ``measure`` returns, which is kept."""
        text = json.dumps([question, self._code, machine()], sort_keys=True)
        self._asked[text] += 1
        key = hashlib.sha256(f"{text}{self._asked[text]}".encode()).hexdigest()
        if key not in self._found:
            self._found[key] = measure()
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(json.dumps({"key": key, "result": self._found[key]}) + "\n")
        return self._found[key]

    def forget(self) -> None:
        """Remove the file: the run is over."""
        self._path.unlink(missing_ok=True)


def code() -> str:
    """Return a fingerprint of everything that is measured: another version begins anew."""
    digest = hashlib.sha256()
    for folder in ("fedit", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if ".venv" not in path.parts:
                digest.update(path.read_bytes())
    return digest.hexdigest()
