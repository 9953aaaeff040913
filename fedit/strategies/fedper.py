"""FedPer: shared base layers, personal top layers (Arivazhagan et al., 2019, arXiv:1912.00818).

Every client trains all of its adapter at once. What belongs to the first layers is averaged as in FedIT; what
belongs to the last ones never leaves the client.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Self

from fedit.strategies.base import Strategy
from fedit.strategies.layers import LAST_HALF, check_pattern, check_split, count_layers, is_kept
from fedit.types import LocalTraining


@dataclass(frozen=True)
class FedPer(Strategy):
    """Average the adapter of the first layers; that of the last ones stays with each client.

    keep:       what stays: "last_half" of the layers, or a regular expression found in the names of tensors.
    num_layers: of the model, for "last_half"; 0 counts those that carry the adapter.
    """

    keep: str = LAST_HALF
    num_layers: int = 0

    def settled(self, names: Iterable[str]) -> Self:
        names = list(names)
        own = replace(self, num_layers=self.num_layers or count_layers(names))
        check_split("fedper", self.keep, map(own.shares, names))
        return own

    def shares(self, name: str) -> bool:
        return not is_kept(name, self.keep, self.num_layers)

    def check(self, training: LocalTraining) -> None:
        check_pattern("fedper", self.keep)
