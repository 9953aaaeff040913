"""Transform: what happens to tensors between a client and the server."""

from dataclasses import dataclass
from enum import IntEnum
from typing import ClassVar

from fedit.strategies.base import Strategy
from fedit.types import ClientUpdate, Tensors


class Stage(IntEnum):
    """What a transform reads and leaves, which fixes the order of a chain; one transform a stage."""

    ENTRIES = 1
    """Reads named tensors, leaves some of their entries."""
    BITS = 2
    """Reads floating tensors of any name, leaves fewer bits of each entry."""
    BYTES = 3
    """Reads tensors of any kind, leaves bytes."""


@dataclass(frozen=True)
class Transform:
    """Changes nothing; a subclass is a frozen dataclass whose fields are its options.

    Transforms are applied in order where tensors are sent and in reverse order where they arrive. What they
    leave are tensors too, so engines carry it as it is. They keep no state of their own.
    """

    stage: ClassVar[Stage]

    # --- up: from a client to the server ---

    def on_client(self, update: ClientUpdate, memory: Tensors, seed: int) -> tuple[ClientUpdate, Tensors]:
        """Return what is sent for ``update``, and what the client remembers until its next round.

        memory: what this transform returned in the client's last round; empty in its first.
        seed:   of this transform, client and round.
        """
        return update, memory

    def on_receive(self, update: ClientUpdate) -> ClientUpdate:
        """Return the update that arrived as ``update``, with the names, shapes and dtypes it had."""
        return update

    # --- down: from the server to a client ---

    def on_broadcast(self, part: str, held: Tensors) -> Tensors:
        """Return what is sent for one set of a broadcast: "adapter", "ledger" or "extra"."""
        return held

    def on_arrival(self, part: str, held: Tensors) -> Tensors:
        """Return the set that arrived as ``held``; the server asks too, to know what a client starts from."""
        return held

    # --- before the run ---

    def check(self, strategy: Strategy) -> None:
        """Raise ``ConfigError`` if an option cannot work, or not with this strategy."""
