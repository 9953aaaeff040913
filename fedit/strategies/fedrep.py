"""FedRep: fit the personal part, then the shared representation (Collins et al., 2021, arXiv:2102.07078).

In every round a client first trains what is its own with the received rest frozen, then the shared rest with its
own part frozen. Only the rest leaves it and is averaged.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Self

from fedit.errors import ConfigError
from fedit.strategies.base import Strategy
from fedit.strategies.layers import LAST_HALF, check_pattern, check_split, count_layers, is_kept
from fedit.types import ClientState, ClientTask, LocalTraining, Phase


@dataclass(frozen=True)
class FedRep(Strategy):
    """Fit the adapter of the last layers, which stays with each client, then that of the first, which is averaged.

    keep:           what stays: "last_half" of the layers, or a regular expression found in the names of tensors.
    num_layers:     of the model, for "last_half"; 0 counts those that carry the adapter.
    personal_share: of a round's steps, for what stays; the rest of them is for what is shared.
    """

    keep: str = LAST_HALF
    num_layers: int = 0
    personal_share: float = 0.5

    def settled(self, names: Iterable[str]) -> Self:
        names = list(names)
        own = replace(self, num_layers=self.num_layers or count_layers(names))
        check_split("fedrep", self.keep, map(own.shares, names))
        return own

    def phases(self, task: ClientTask, state: ClientState) -> Sequence[Phase]:
        return (
            Phase("personal", trains=lambda name: not self.shares(name), share=self.personal_share),
            Phase("shared", trains=self.shares, share=1 - self.personal_share),
        )

    def shares(self, name: str) -> bool:
        return not is_kept(name, self.keep, self.num_layers)

    def check(self, training: LocalTraining) -> None:
        check_pattern("fedrep", self.keep)
        if not 0 < self.personal_share < 1:
            raise ConfigError(
                f"option 'personal_share' of strategy 'fedrep' is {self.personal_share}; expected more than 0 and "
                "less than 1."
            )
