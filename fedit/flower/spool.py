"""Answers that wait for their turn, on the disk: however many come at once, the memory of the server holds one."""

import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO

log = logging.getLogger(__name__)


class Spool(Mapping[str, bytes]):
    """Pieces of bytes in a file without a name, which is gone when they are forgotten or the process ends."""

    def __init__(self, file: IO[bytes], pieces: Mapping[str, bytes]) -> None:
        """Write the pieces.

        Raises:
            OSError: the disk is full.
        """
        self._file = file
        self._places: dict[str, tuple[int, int]] = {}
        for name, piece in pieces.items():
            self._places[name] = (file.tell(), len(piece))
            file.write(piece)
        file.flush()

    def __getitem__(self, name: str) -> bytes:
        start, length = self._places[name]
        self._file.seek(start)
        return self._file.read(length)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __del__(self) -> None:
        with suppress(OSError):  # what could not be written is written again at the end
            self._file.close()


def spooled(pieces: Mapping[str, bytes], folder: Path | None) -> Mapping[str, bytes]:
    """Return the pieces as they wait in a file; where the disk is full they wait in memory.

    folder: where the file is; None: the system's own.
    """
    file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  (the spool closes it)
    try:
        return Spool(file, pieces)
    except OSError as error:
        log.warning("an answer waits in memory, for it cannot wait on the disk: %s", error)
        return dict(pieces)
