"""Which models a page offers: the arms of runs, studies and adapters, each under a name of its own."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedit.errors import ModelError
from fedit.model.export import CONFIG
from fedit.study.summary import chosen_folders
from fedit.tuned import Tuned, find_tuned, run_of

BASE, FEDERATED = "base", "federated"

_DEPTH = 3
"""Levels of folders below a study's in which its runs are looked for."""


@dataclass(frozen=True, slots=True)
class Found:
    """What was found in the folders that were named.

    arms:  name -> what answers by that name, the base models among them.
    notes: what the user should know about how they were found.
    home:  the folder that the first one belongs to, where votes about them are kept.
    """

    arms: dict[str, Tuned]
    notes: list[str]
    home: Path


def find_arms(folders: Sequence[Path], *, model: str | None = None, template: str | None = None) -> Found:
    """Return all arms in ``folders``: runs, their arms, studies, folders of runs, PEFT folders of LoRA adapters.

    The names of a single run's arms are those of its comparison (federated, centralised, local:<client>, base);
    where there are several runs each name begins with that of its run.

    Raises:
        ModelError: there is nothing that answers.
        RunFolderError: a run's settings cannot be read.
    """
    homes = list(dict.fromkeys(home for folder in folders for home in _homes(folder)))
    tuned: dict[str, Tuned] = {}
    bases: dict[str, Tuned] = {}
    notes: dict[str, None] = {}
    for home, label in zip(homes, _short_names(homes), strict=True):
        prefix = f"{label}/" if len(homes) > 1 else ""
        for name, folder in _arms_in(home, folders):
            try:
                found = find_tuned(folder, model=model, template=template)
            except ModelError as error:
                notes[str(error)] = None
                continue
            tuned[f"{prefix}{name}" if name else label + "-adapter" * (label == BASE)] = found
            bases.setdefault(f"{prefix}{BASE}", found.base())
            notes[found.note] = None
    if not tuned:
        raise ModelError("\n".join(notes))
    if len({base.template for base in bases.values()}) == 1:
        bases = {BASE: next(iter(bases.values()))}
    return Found({**tuned, **bases}, [note for note in notes if note], homes[0])


def _homes(folder: Path) -> Iterator[Path]:
    """Yield the runs and lone adapters that ``folder`` is, belongs to or holds.

    Raises:
        ModelError: there is none.
    """
    if not folder.is_dir():
        raise ModelError(f"there is no folder {folder}; name a run folder or the folder of a LoRA adapter.")
    place = folder.resolve()
    run = run_of(place)
    if run is not None:
        yield run
        return
    if (place / CONFIG).is_file() or (place / "adapter" / CONFIG).is_file():
        yield place
        return
    below = {path.parent for depth in range(1, _DEPTH + 1) for path in place.glob("*/" * depth + "resolved.yaml")}
    runs = sorted(path for path in below if run_of(path) == path)
    if not runs:
        find_tuned(folder)  # says what was looked for
    yield from runs


def _arms_in(home: Path, folders: Sequence[Path]) -> Iterator[tuple[str, Path]]:
    """Yield name and folder of everything in ``home`` that was asked for; the name of a lone adapter is ""."""
    if (home / "study.json").is_file():
        yield from chosen_folders(home).items()
        return
    if run_of(home) is None:
        yield "", home
        return
    asked = {place for place in (folder.resolve() for folder in folders) if run_of(place) == home}
    everything = not asked or home in asked
    if everything or home / "adapter" in asked:
        yield FEDERATED, home
    for place in sorted((home / "arms").glob("*")):
        if place.name != BASE and (everything or asked & {place, place / "adapter"}):
            yield _arm_name(place), place


def _arm_name(folder: Path) -> str:
    """Return an arm's name as its events have it: folders of clients with unusual names are encoded."""
    try:
        with open(folder / "events.jsonl", encoding="utf-8") as file:
            name = json.loads(file.readline()).get("arm")
    except (OSError, ValueError, AttributeError):
        name = None
    return name if isinstance(name, str) and name else folder.name.replace(".", ":", 1)


def _short_names(paths: Sequence[Path]) -> list[str]:
    """Return the shortest ends of ``paths`` that tell them apart; an adapter's folder is named by its run.

    >>> _short_names([Path("/runs/a/first"), Path("/runs/b/first"), Path("/runs/second/adapter")])
    ['a/first', 'b/first', 'second']
    """
    parts = [path.parent.parts if path.name == "adapter" else path.parts for path in paths]
    names = []
    for own in parts:
        length = 1
        while length < len(own) and sum(other[-length:] == own[-length:] for other in parts) > 1:
            length += 1
        names.append("/".join(own[-length:]))
    return names
