"""A finished run as its folder tells it, read without the libraries that made it."""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fedit.errors import RunFolderError
from fedit.events import NOT_EVALUATED, Event, EventLog
from fedit.files import read_json
from fedit.reading import parse_yaml
from fedit.report.numbers import natural_order
from fedit.report.sections.clients import Holding

FEDERATED = "federated"
BASE = "base"
COUNTS = "partition-counts.json"
"""Client -> how many rows it holds, and how many of each category."""
PERSONAL = "personal.json"
"""What every client runs for itself, where the run measured that."""

AUDIT = "audit.json"
"""What models and uploads tell of the rows that were trained on, where the run was audited."""


@dataclass(frozen=True, slots=True)
class ArmRecord:
    """An arm's log, and which of its held-out answers are right; None where none were generated."""

    name: str
    events: Sequence[Event]
    right: Mapping[str, bool] | None

    def named(self, event: str) -> list[Event]:
        """Return the events of one kind."""
        return [one for one in self.events if one["event"] == event]


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What a finished run left.

    arms:     by name: base, federated, then the baselines in the order of their names.
    personal: the content of ``personal.json``; empty if there is none. audit: of ``audit.json``, likewise.
    """

    name: str
    settings: Mapping[str, object]
    identity: Mapping[str, object]
    environment: Mapping[str, object]
    summary: Mapping[str, object]
    holdings: Mapping[str, Holding]
    arms: Mapping[str, ArmRecord]
    personal: Mapping[str, object] = field(default_factory=dict)
    audit: Mapping[str, object] = field(default_factory=dict)

    @property
    def federated(self) -> ArmRecord:
        """The federation itself."""
        return self.arms[FEDERATED]

    @property
    def not_evaluated(self) -> str:
        """Why nothing was measured; "" where something was."""
        return str(next((event["reason"] for event in self.federated.named(NOT_EVALUATED)), ""))

    def evaluation(self, arm: str) -> Mapping[str, object]:
        """Return the scores of the adapter that an arm ended with; empty if there are none."""
        if arm == BASE:
            kept: float = 0
        elif arm == FEDERATED:
            kept = number(self.summary.get("adapter_round")) or 0
        else:
            kept = number(mapping(mapping(self.summary.get("arms")).get(arm)).get("rounds")) or math.inf
        events = self.arms[FEDERATED if arm == BASE else arm].named("evaluation")
        upto = [event for event in events if (number(event["round"]) or 0) <= kept]
        return upto[-1] if upto else {}

    def tokens(self, arm: str) -> float:
        """Return how many tokens an arm was trained on."""
        return sum(number(event.get("tokens")) or 0.0 for event in self.arms[arm].named("round"))


def read_run(folder: Path) -> RunRecord:
    """Read the run in ``folder``.

    Raises:
        RunFolderError: it holds no run, the run is not finished, or a file of it cannot be read.
    """
    if not (folder / "run.json").is_file():
        raise RunFolderError(f"{folder} holds no run: there is no run.json in it. Start one with: fedit run JOB")
    if not (folder / "summary.json").is_file():
        raise RunFolderError(f"the run in {folder} is not finished; go on with: fedit resume {folder}")
    federated = ArmRecord(FEDERATED, EventLog(folder).history(), _grades(folder))
    if not federated.named("evaluation") and not federated.named(NOT_EVALUATED):
        raise RunFolderError(f"{folder / 'events.jsonl'} holds no evaluation, so there is nothing to report.")
    arms = {BASE: ArmRecord(BASE, (), _grades(folder / "arms" / BASE)), FEDERATED: federated}
    arms |= _baselines(folder / "arms")
    return RunRecord(
        folder.resolve().name,
        read_settings(folder / "resolved.yaml"),
        read_json(folder / "run.json"),
        read_json(folder / "environment.json"),
        read_json(folder / "summary.json"),
        _holdings(folder),
        arms,
        *(read_json(folder / name) if (folder / name).is_file() else {} for name in (PERSONAL, AUDIT)),
    )


def _baselines(folder: Path) -> dict[str, ArmRecord]:
    found = {}
    for path in folder.glob("*/events.jsonl"):
        if events := EventLog(path.parent).history():
            name = str(events[0].get("arm", path.parent.name))
            found[name] = ArmRecord(name, events, _grades(path.parent))
    return {name: found[name] for name in sorted(found, key=natural_order)}


def _holdings(folder: Path) -> dict[str, Holding]:
    """Return who holds what: in categories, or in rows alone where the run did not count categories."""
    if (folder / COUNTS).is_file():
        counts = {client: mapping(mine) for client, mine in read_json(folder / COUNTS).items()}
        return {
            client: Holding(
                int(number(mine.get("rows")) or 0),
                {name: int(count or 0) for name, count in numbers(mine.get("categories")).items()},
            )
            for client, mine in counts.items()
        }
    clients = mapping(read_json(folder / "partition.json").get("clients"))
    return {client: Holding(len(rows), {}) for client, rows in clients.items() if isinstance(rows, list)}


def _grades(folder: Path) -> dict[str, bool] | None:
    path = folder / "answers.json"
    if not path.is_file():
        return None
    right = read_json(path).get("right")
    return {str(row): bool(grade) for row, grade in right.items()} if isinstance(right, dict) else None


def read_settings(path: Path) -> dict[str, object]:
    """Return the settings in a folder's ``resolved.yaml``.

    Raises:
        RunFolderError: they cannot be read.
    """
    try:
        content, _ = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunFolderError(f"cannot read {path}: {error}") from error
    return content if isinstance(content, dict) else {}


def mapping(value: object) -> Mapping[str, object]:
    """Return an object of a file; an empty one where something else stands."""
    return value if isinstance(value, dict) else {}


def number(value: object) -> float | None:
    """Return a number of a file; None where something else stands, or no finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < math.inf:
        return None
    if abs(value) > sys.float_info.max:  # whole numbers have no largest one
        return None
    return float(value)


def numbers(value: object) -> dict[str, float | None]:
    """Return an object of numbers; see `number`."""
    return {name: number(one) for name, one in mapping(value).items()}


def bounds(value: object) -> tuple[float | None, float | None]:
    """Return the ends of an interval of a file, [low, high]; None where there are none."""
    return (number(value[0]), number(value[1])) if isinstance(value, list) and len(value) == 2 else (None, None)
