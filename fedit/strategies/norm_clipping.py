"""Norm clipping: no client moves the mean further than a bound (Sun et al., 2019, arXiv:1911.07963)."""

from dataclasses import dataclass, replace

import torch

from fedit import robust
from fedit.errors import ConfigError
from fedit.screening import admit, combine, refuse_bad_screen
from fedit.strategies.base import Strategy
from fedit.types import LocalTraining, ServerState
from fedit.updates import Updates


@dataclass(frozen=True)
class NormClipping(Strategy):
    """Shorten updates that are longer than a bound, then average them.

    bound:             longest update, as the norm of the change of the weights; 0: the cohort's median.
    max_norm:          updates of more than this many times the median norm are rejected; 0 rejects none.
    reject_duplicates: whether of updates that are equal bit by bit only one counts.
    weight_cap:        0: all weigh the same; else the announced weight, up to this many times the median.
    """

    bound: float = 0.0
    max_norm: float = 0.0
    reject_duplicates: bool = True
    weight_cap: float = 0.0

    def aggregate(self, server: ServerState, updates: Updates) -> ServerState:
        members = admit(
            updates,
            max_norm=self.max_norm,
            reject_duplicates=self.reject_duplicates,
            weight_cap=self.weight_cap,
        )
        bound = self.bound or float(robust.median(members.norms))
        # Deviation: the paper clips the vector of all parameters. Here the change of the weights is bounded, and
        # the factors' own as well: what is averaged is factors, and a small product may have large ones.
        kept = torch.minimum(
            robust.clipping(members.norms, bound),
            robust.clipping(members.moved, float(robust.median(members.moved))),
        )
        weights = members.weights * kept
        length = float(weights.sum() / members.weights.sum())
        return replace(server, adapter=combine(server.adapter, members, weights, updates, length=length))

    def check(self, training: LocalTraining) -> None:
        if self.bound < 0:
            raise ConfigError(f"option 'bound' of strategy 'norm_clipping' is {self.bound}; expected 0 or more.")
        refuse_bad_screen("norm_clipping", self.max_norm, self.weight_cap)
