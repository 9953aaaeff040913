"""What clients keep between rounds: in memory, or one file a client and round in the run folder."""

from dataclasses import dataclass, field
from pathlib import Path

from fedit import tensorfiles
from fedit.errors import RunFolderError
from fedit.files import safe_name, write_bytes
from fedit.types import ClientState

GENERATIONS = 3
"""States of a client that stay on disk: the newest, the one before it that an interrupted round goes back to,
and one more for a run whose newest server state turns out to be damaged."""

_PARTS = ("private", "memory", "optimizer", "transforms", "reference")


@dataclass
class ClientStore:
    """Client states by round, so that a round which is done again starts from what was before it.

    folder: where states are written; None keeps the newest ones in memory.
    """

    folder: Path | None = None
    _states: dict[str, ClientState] = field(default_factory=dict)

    def read(self, client_id: str, before_round: int) -> ClientState:
        """Return the client's newest state from a round before ``before_round``; a fresh one if there is none.

        Raises:
            RunFolderError: the state is damaged, or it was deleted because newer ones had followed.
        """
        if self.folder is None:
            return self._states.get(client_id, ClientState())
        rounds = self._rounds(client_id)
        earlier = [r for r in rounds if r < before_round]
        if earlier:
            return _load(self._path(client_id, earlier[-1]))[0]
        if rounds and (gone := _load(self._path(client_id, rounds[0]))[1]) is not None:
            raise RunFolderError(
                f"client '{client_id}' cannot do round {before_round} again: its state after round {gone} was "
                f"deleted when newer ones followed (the newest {GENERATIONS} are kept); start a new run."
            )
        return ClientState()

    def write(self, client_id: str, round: int, state: ClientState) -> None:
        """Keep the state after ``round``; of the older ones only the newest stay.

        Raises:
            RunFolderError: the disk is full or the folder cannot be written.
        """
        if self.folder is None:
            self._states[client_id] = state
            return
        older = [r for r in self._rounds(client_id) if r < round]
        metadata = {"batches_seen": str(state.batches_seen), "previous": str(older[-1]) if older else ""}
        content = tensorfiles.encode({part: getattr(state, part) for part in _PARTS}, metadata)
        write_bytes(self._path(client_id, round), content)
        for old in older[: 1 - GENERATIONS]:
            self._path(client_id, old).unlink(missing_ok=True)

    def _path(self, client_id: str, round: int) -> Path:
        if self.folder is None:
            raise ValueError("this store keeps states in memory")
        # Client ids may be anything a data field holds.
        return self.folder / safe_name(f"c-{client_id}") / f"round-{round:04d}.safetensors"

    def _rounds(self, client_id: str) -> list[int]:
        folder = self._path(client_id, 0).parent
        return sorted(int(path.stem.removeprefix("round-")) for path in folder.glob("round-*.safetensors"))


def _load(path: Path) -> tuple[ClientState, int | None]:
    """Return the state in ``path`` and the round of the one before it."""
    try:
        parts, metadata = tensorfiles.decode(path.read_bytes(), _PARTS)
        seen, previous = int(metadata["batches_seen"]), metadata["previous"]
        before = int(previous) if previous else None
    except (OSError, ValueError, KeyError) as error:
        raise RunFolderError(f"the client state {path} cannot be read: {error}") from error
    return ClientState(seen, **parts), before
