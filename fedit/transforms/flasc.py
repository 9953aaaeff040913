"""FLASC: federated LoRA with sparse communication (Kuo et al., 2024, arXiv:2406.05233).

The server sends the largest entries of the adapter, the client trains all entries from there and sends the largest
ones of its delta: two masks that have nothing to do with each other.
"""

from dataclasses import dataclass, replace

from fedit.errors import ConfigError
from fedit.strategies.base import Strategy
from fedit.transforms.base import Stage, Transform
from fedit.transforms.sparse import densify, sparsify
from fedit.types import ClientUpdate, Tensors


@dataclass(frozen=True)
class FLASC(Transform):
    """Send the largest entries of the adapter down and the largest of its change up; training stays dense.

    download: share of the adapter's entries that is sent to clients, which start from zero elsewhere; 1: all.
    upload: share of the delta's entries that is sent back; 1: all.
    """

    download: float = 0.25
    upload: float = 0.25

    stage = Stage.ENTRIES

    def on_client(self, update: ClientUpdate, memory: Tensors, seed: int) -> tuple[ClientUpdate, Tensors]:
        if self.upload == 1:
            return update, memory
        return replace(update, delta=sparsify(update.delta, self.upload)), memory

    def on_receive(self, update: ClientUpdate) -> ClientUpdate:
        if self.upload == 1 or not update.delta:
            return update
        return replace(update, delta=densify(update.delta))

    def on_broadcast(self, part: str, held: Tensors) -> Tensors:
        return sparsify(held, self.download) if self._thins(part, held) else held

    def on_arrival(self, part: str, held: Tensors) -> Tensors:
        return densify(held) if self._thins(part, held) else held

    def check(self, strategy: Strategy) -> None:
        for name, share in (("download", self.download), ("upload", self.upload)):
            if not 0 < share <= 1:
                raise ConfigError(
                    f"option '{name}' of transform 'flasc' is {share}; expected more than 0, at most 1."
                )
        if self.download < 1 and not strategy.keeps_basis:
            raise ConfigError(
                f"transform 'flasc' sends clients a part of the adapter, but strategy {type(strategy).__name__} "
                "makes the next adapter from what clients end with, so that the rest would be lost. "
                "Set download to 1."
            )

    def _thins(self, part: str, held: Tensors) -> bool:
        return part == "adapter" and self.download < 1 and bool(held)
