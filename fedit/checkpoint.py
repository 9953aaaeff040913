"""The server's state on disk, one folder a round, whole or absent."""

import json
import logging
import shutil
from pathlib import Path

from fedit import tensorfiles
from fedit.errors import RunFolderError
from fedit.files import new_folder, remove_leftovers
from fedit.reading import parse_json
from fedit.types import ServerState

log = logging.getLogger(__name__)

_PARTS = ("adapter", "ledger", "memory", "schedule", "privacy")


def save(folder: Path, server: ServerState) -> None:
    """Write ``server`` to ``folder/round-NNNN``.

    Raises:
        RunFolderError: the disk is full or the folder cannot be written.
    """
    parts = {part: getattr(server, part) for part in _PARTS}
    content = tensorfiles.encode(parts, {"round": str(server.round), "scale": repr(server.scale)})
    with new_folder(_path(folder, server.round)) as temporary:
        (temporary / "state.safetensors").write_bytes(content)
        (temporary / "state.json").write_text(
            json.dumps({"round": server.round, "version": 3}) + "\n", encoding="utf-8"
        )


def load(folder: Path, round: int) -> ServerState:
    """Read the state after ``round``.

    Raises:
        RunFolderError: it is not there or damaged, if only by one bit.
    """
    path = _path(folder, round)
    try:
        stored = parse_json((path / "state.json").read_bytes())["round"]
        parts, metadata = tensorfiles.decode((path / "state.safetensors").read_bytes(), _PARTS)
        same, scale = stored == int(metadata["round"]), float(metadata["scale"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunFolderError(f"the server state {path} cannot be read: {error}") from error
    if stored != round or not same:
        raise RunFolderError(f"the server state {path} says it is of round {stored}")
    return ServerState(round, **parts, scale=scale)


def newest(folder: Path) -> ServerState | None:
    """Return the newest state that is intact, None if none was ever saved; newer damaged ones are set aside.

    Raises:
        RunFolderError: every state is damaged.
    """
    damaged: list[int] = []
    problem: RunFolderError | None = None
    for round in reversed(rounds(folder)):
        try:
            state = load(folder, round)
        except RunFolderError as error:
            problem = problem or error
            damaged.append(round)
            continue
        if damaged:
            log.warning("%s; going on from round %d instead", problem, round)
        for bad in damaged:
            path = _path(folder, bad)
            shutil.rmtree(path.with_name(f"damaged-{path.name}"), ignore_errors=True)
            path.rename(path.with_name(f"damaged-{path.name}"))
        return state
    if problem is not None:
        raise RunFolderError(f"{problem}; no older state is intact, so start a new run.") from problem
    return None


def rounds(folder: Path) -> list[int]:
    """Return the rounds whose state is there, ascending; clears what a killed process left half written."""
    remove_leftovers(folder)
    return sorted(
        int(p.name.removeprefix("round-")) for p in folder.glob("round-*") if (p / "state.json").is_file()
    )


def prune(folder: Path, keep: int, best: int | None) -> None:
    """Keep the newest ``keep`` states and the one of round ``best``; 0 keeps all."""
    if keep == 0:
        return
    for round in rounds(folder)[:-keep]:
        if round != best:
            shutil.rmtree(_path(folder, round), ignore_errors=True)


def _path(folder: Path, round: int) -> Path:
    return folder / f"round-{round:04d}"
