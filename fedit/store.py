"""What clients keep between rounds: in memory, or one file a client and round in the run folder."""

from dataclasses import dataclass, field
from pathlib import Path

import safetensors
import safetensors.torch

from fedit.errors import RunFolderError
from fedit.files import safe_name, write_bytes
from fedit.types import ClientState, Tensors

_PARTS = ("private", "memory", "optimizer")


@dataclass
class ClientStore:
    """Client states by round, so that a round which is done again starts from what was before it.

    folder: where states are written; None keeps the newest ones in memory.
    """

    folder: Path | None = None
    _states: dict[str, ClientState] = field(default_factory=dict)

    def read(self, client_id: str, before_round: int) -> ClientState:
        """Return the client's newest state from a round before ``before_round``; a fresh one if there is none."""
        if self.folder is None:
            return self._states.get(client_id, ClientState())
        rounds = [r for r in self._rounds(client_id) if r < before_round]
        return _load(self._path(client_id, max(rounds))) if rounds else ClientState()

    def write(self, client_id: str, round: int, state: ClientState) -> None:
        """Keep the state after ``round``; of the older ones only the newest stays.

        Raises:
            RunFolderError: the disk is full or the folder cannot be written.
        """
        if self.folder is None:
            self._states[client_id] = state
            return
        tensors = {f"{part}/{n}": t for part in _PARTS for n, t in getattr(state, part).items()}
        data = safetensors.torch.save(tensors, metadata={"batches_seen": str(state.batches_seen)})
        write_bytes(self._path(client_id, round), data)
        for old in sorted(r for r in self._rounds(client_id) if r < round)[:-1]:
            self._path(client_id, old).unlink(missing_ok=True)

    def _path(self, client_id: str, round: int) -> Path:
        if self.folder is None:
            raise ValueError("this store keeps states in memory")
        # Client ids may be anything a data field holds.
        return self.folder / safe_name(f"c-{client_id}") / f"round-{round:04d}.safetensors"

    def _rounds(self, client_id: str) -> list[int]:
        folder = self._path(client_id, 0).parent
        return [int(path.stem.removeprefix("round-")) for path in folder.glob("round-*.safetensors")]


def _load(path: Path) -> ClientState:
    parts: dict[str, Tensors] = {part: {} for part in _PARTS}
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            seen = int((file.metadata() or {})["batches_seen"])
            for name in file.keys():  # noqa: SIM118  (not a mapping)
                part, _, key = name.partition("/")
                parts[part][key] = file.get_tensor(name)
    except (OSError, safetensors.SafetensorError, KeyError, ValueError) as error:
        raise RunFolderError(f"the client state {path} cannot be read: {error}") from error
    return ClientState(seen, parts["private"], parts["memory"], parts["optimizer"])
