"""Engine: where clients run."""

from collections.abc import Iterator, Sequence
from typing import Protocol

from fedit.types import ClientFailure, ClientInfo, ClientTask, ClientUpdate


class Engine(Protocol):
    """Runs the client half of rounds."""

    def clients(self) -> Sequence[ClientInfo]:
        """Return all clients, sorted by id."""
        ...

    def run(self, tasks: Sequence[ClientTask]) -> Iterator[ClientUpdate | ClientFailure]:
        """Yield one result per task, in the order of the tasks, as soon as it can be had."""
        ...
