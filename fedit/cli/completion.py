"""What the shell completes beside commands and flags: recipes, kinds of names, and the names settings accept."""

from collections.abc import Callable
from pathlib import Path
from typing import get_args

from pydantic.fields import FieldInfo

_KINDS = {
    "strategy": "strategies",
    "transforms": "transforms",
    "partitioner": "partitions",
    "selection": "selections",
    "devices": "devices",
    "stragglers": "stragglers",
    "availability": "availabilities",
    "prompt_template": "templates",
    "data_format": "formats",
    "model": "models",
}
"""Setting -> the kind of names, as ``fedit list`` has it, that it accepts."""


def names_of(setting: str, field: FieldInfo) -> Callable[[str], list[str]]:
    """Return what completes the beginning of a setting's value; nothing for numbers and free text."""

    def complete(incomplete: str) -> list[str]:
        from fedit.cli.listing import KINDS, choices

        if setting in _KINDS:
            # Names in capitals stand for something: FILE.json, OWNER/NAME.
            found = [entry.name for entry in KINDS[_KINDS[setting]][1]() if entry.name.islower()]
        else:
            found = choices(field.annotation) or ["true", "false"] * (bool in (field.annotation, *_inner(field)))
        return [name for name in found if name.startswith(incomplete)]

    return complete


def jobs(incomplete: str) -> list[str]:
    """Return recipes, and files of settings, that begin like this."""
    from fedit.settings import recipes

    start = Path(incomplete + "x")
    files = [path for end in ("yaml", "toml") for path in start.parent.glob(f"*.{end}")]
    names = [*recipes(), *sorted(str(path) for path in files)]
    return [name for name in names if name.startswith(incomplete)]


def kinds(incomplete: str) -> list[str]:
    """Return the kinds of names that ``fedit list`` knows."""
    from fedit.cli.listing import KINDS

    return [name for name in KINDS if name.startswith(incomplete)]


def _inner(field: FieldInfo) -> tuple[object, ...]:
    return get_args(field.annotation)
