"""Jobs that were submitted to a deployment, as files: what a supervisor needs to submit one again."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from filelock import FileLock

from fedit.errors import ConfigError, RunFolderError
from fedit.files import read_json, write_json
from fedit.reading import shown

REFUSED = "no site does this job"
"""What a run ends with that all sites refuse; it is not started again, since a job or a policy has to change."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class Submitted:
    """One job of a deployment.

    job:       its settings as JSON values.
    held_out:  file of the rows that the server measures on; "": it measures nothing.
    deadline:  seconds of a round; 0: from the durations of earlier ones.
    sites:     how many sites must be there before the first round.
    run_id:    Flower's id of its newest start.
    starts:    how often it was started.
    in_vain:   starts in a row that ended without a new round.
    round:     newest round that was whole when it was started last.
    state:     "active", or how it ended: "finished", "stopped", "failed".
    reason:    why it failed.
    """

    name: str
    job: Mapping[str, object]
    held_out: str
    deadline: float
    sites: int
    run_id: int
    starts: int = 1
    in_vain: int = 0
    round: int = 0
    state: str = "active"
    reason: str = ""


class Jobs:
    """The jobs of a deployment, a file each in ``folder``; several processes may read and write them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from changing jobs while the block lasts."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with FileLock(self._folder / ".lock"):
            yield

    def all(self) -> list[Submitted]:
        """Return all jobs, in the order of their names."""
        return [self._read(path) for path in sorted(self._folder.glob("*.json"))]

    def get(self, name: str) -> Submitted | None:
        """Return the job of a name; None: there is none."""
        path = self._folder / f"{name}.json"
        return self._read(path) if path.is_file() else None

    def save(self, job: Submitted) -> None:
        """Write a job."""
        write_json(self._folder / f"{job.name}.json", asdict(job))

    def change(self, name: str, **changes: object) -> None:
        """Change some fields of a job."""
        with self.locked():
            if (job := self.get(name)) is not None:
                self.save(replace(job, **changes))  # type: ignore[arg-type]

    def _read(self, path: Path) -> Submitted:
        found = read_json(path)
        known = {field.name: field.type for field in fields(Submitted) if field.name in found}
        kept = {name: found[name] for name in known}
        try:
            if wrong := [name for name, kind in known.items() if not _is_a(kind, kept[name])]:
                raise TypeError(f"{wrong[0]} is {shown(kept[wrong[0]])}")
            return Submitted(**kept)
        except TypeError as error:
            raise RunFolderError(f"{path} holds no job that fedit submitted: {error}.") from error


def _is_a(kind: object, value: object) -> bool:
    """Return whether a value read from JSON has the type of a field; whole numbers are numbers."""
    accepted = {float: (int, float), int: int, str: str}.get(kind, dict)  # type: ignore[call-overload]
    return isinstance(value, accepted) and not isinstance(value, bool)


def check_name(name: str) -> None:
    """Refuse a name of a run that is no plain name of a folder.

    Raises:
        ConfigError: it is not.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"--name is '{name}'; expected letters, digits, dots, dashes and underscores, at most 64, "
            "beginning with a letter or digit."
        )
