"""The server's state on disk, one folder a round, whole or absent."""

import json
import shutil
from pathlib import Path

import safetensors
import safetensors.torch

from fedit.errors import RunFolderError
from fedit.files import new_folder, remove_leftovers
from fedit.types import ServerState, Tensors

_PARTS = ("adapter", "memory")


def save(folder: Path, server: ServerState) -> None:
    """Write ``server`` to ``folder/round-NNNN``.

    Raises:
        RunFolderError: the disk is full or the folder cannot be written.
    """
    with new_folder(_path(folder, server.round)) as temporary:
        tensors = {f"{part}/{n}": t for part in _PARTS for n, t in getattr(server, part).items()}
        (temporary / "state.safetensors").write_bytes(safetensors.torch.save(tensors))
        (temporary / "state.json").write_text(json.dumps({"round": server.round, "version": 1}) + "\n")


def load(folder: Path, round: int) -> ServerState:
    """Read the state after ``round``.

    Raises:
        RunFolderError: it is not there or damaged.
    """
    path = _path(folder, round)
    parts: dict[str, Tensors] = {part: {} for part in _PARTS}
    try:
        stored = json.loads((path / "state.json").read_text())["round"]
        for name, tensor in safetensors.torch.load_file(path / "state.safetensors").items():
            part, _, key = name.partition("/")
            parts[part][key] = tensor
    except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise RunFolderError(f"the server state {path} cannot be read: {error}") from error
    if stored != round:
        raise RunFolderError(f"the server state {path} says it is of round {stored}")
    return ServerState(round, parts["adapter"], parts["memory"])


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
