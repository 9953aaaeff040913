"""What an import makes: a job file, files beside it, and a note of what differs and what has no equivalent."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from fedit import settings
from fedit.errors import ConfigError, DataError
from fedit.files import reason, write_bytes, write_text
from fedit.reading import parse_json

JOB, NOTES = "job.yaml", "NOTES.md"


@dataclass(frozen=True, slots=True)
class Taken:
    """A setting that was taken over: their name and value, and ours."""

    theirs: str
    value: object
    ours: str
    ours_value: object


@dataclass
class Draft:
    """An import while it is made.

    tool:     whose files they are.
    job:      settings of the job file, in its order.
    differs:  what fedit does otherwise on purpose, a sentence each.
    missing:  their setting -> why there is no equivalent.
    open:     what the user still has to decide or bring.
    files:    name in the folder of the import -> content, or what writes a folder there.
    """

    tool: str
    out: Path
    job: dict[str, object] = field(default_factory=dict)
    taken: list[Taken] = field(default_factory=list)
    differs: list[str] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    open: list[str] = field(default_factory=list)
    files: dict[str, bytes | Callable[[Path], None]] = field(default_factory=dict)

    def take(self, theirs: str, value: object, ours: str, ours_value: object | None = None) -> None:
        """Take a setting over; ``ours_value`` where it is written in another way here."""
        own = value if ours_value is None else ours_value
        self.job[ours] = own
        self.taken.append(Taken(theirs, value, ours, own))

    def fix(self, ours: str, value: object) -> None:
        """Set what the tool does always, whatever its settings say."""
        self.take("(always)", value, ours)

    def place(self, name: str) -> str:
        """Return how the job file names a file of this import."""
        return (self.out / name).as_posix()


@dataclass(frozen=True, slots=True)
class Imported:
    """What was written."""

    folder: Path
    draft: Draft

    def as_dict(self) -> dict[str, object]:
        """Return it as JSON values."""
        own = self.draft
        return {
            "tool": own.tool,
            "job": str(self.folder / JOB),
            "settings": own.job,
            "files": sorted([JOB, NOTES, *own.files]),
            "taken": [[t.theirs, t.value, t.ours, t.ours_value] for t in own.taken],
            "differs": own.differs,
            "no_equivalent": own.missing,
            "open": own.open,
        }


def write(draft: Draft) -> Imported:
    """Write the job file, the notes and the files of an import; the job is read back as a check.

    Raises:
        ConfigError: the folder is not empty, or the settings do not fit together.
        RunFolderError: a file cannot be written.
    """
    refuse_used(draft.out)
    settings.from_values(
        draft.job, f"settings read from {draft.tool}"
    )  # nothing is written of a job that cannot work
    for name, content in draft.files.items():
        if isinstance(content, bytes):
            write_bytes(draft.out / name, content)
        else:
            content(draft.out / name)
    head = f"# Imported from {draft.tool}; {NOTES} says what differs and what has no equivalent.\n"
    write_text(draft.out / JOB, head + yaml.safe_dump(draft.job, sort_keys=False, allow_unicode=True))
    write_text(draft.out / NOTES, notes(draft))
    settings.load(draft.out / JOB)
    return Imported(draft.out, draft)


def refuse_used(out: Path) -> None:
    """Make sure that an import overwrites nothing.

    Raises:
        ConfigError: the folder holds something.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} already exists and is not empty; choose another --out.")


def notes(draft: Draft) -> str:
    """Return the note of an import, Markdown."""
    parts = [f"# Imported from {draft.tool}\n"]
    if draft.open:
        parts.append("## Still to do\n\n" + "".join(f"- {text}\n" for text in draft.open))
    if draft.taken:
        rows = "".join(
            f"| {t.theirs} | {_cell(t.value)} | {t.ours} | {_cell(t.ours_value)} |\n" for t in draft.taken
        )
        parts.append(f"## Taken over\n\n| {draft.tool} | value | fedit | value |\n|---|---|---|---|\n{rows}")
    if draft.differs:
        parts.append("## Differs, on purpose\n\n" + "".join(f"- {text}\n" for text in draft.differs))
    if draft.missing:
        rows = "".join(f"| {name} | {_cell(why)} |\n" for name, why in draft.missing.items())
        parts.append(f"## No equivalent\n\n| {draft.tool} | why |\n|---|---|\n{rows}")
    return "\n".join(parts)


def template_file(with_input: str, without_input: str) -> bytes:
    """Return a prompt template in Shepherd's JSON layout, which fedit reads."""
    content: Mapping[str, str] = {"prompt_input": with_input, "prompt_no_input": without_input}
    return (json.dumps(content, ensure_ascii=False, indent=2) + "\n").encode()


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


def read_content(path: Path) -> object:
    """Return what a JSON file of another framework holds.

    Raises:
        DataError: it cannot be read, or is not JSON.
    """
    try:
        return parse_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"cannot read {path}: {reason(error)}") from error
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}") from error
