"""Centred clipping: updates are clipped around what the last round learnt (Karimireddy, He, Jaggi, 2021).

Learning from history for Byzantine robust optimization, arXiv:2012.10333.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedit import lora, robust, tensors
from fedit.errors import ConfigError
from fedit.screening import Members, admit, credit, mean_of, refuse_bad_screen
from fedit.strategies.base import Strategy
from fedit.types import LocalTraining, ServerState, Tensors
from fedit.updates import Updates


@dataclass(frozen=True)
class CentredClipping(Strategy):
    """Move from the last round's update towards the mean of the clients', none of which counts beyond a radius.

    Distances are those between the changes of the weights; the factors are moved as FedIT averages them. The
    last round's update is kept in the server's memory.

    radius:            tau, how far from the centre a client counts; 0: the cohort's median distance.
    iterations:        steps of the centre a round; the paper takes 1 where momentum keeps it near.
    max_norm:          updates of more than this many times the median norm are rejected; 0 rejects none.
    reject_duplicates: whether of updates that are equal bit by bit only one counts.
    weight_cap:        0: all weigh the same; else the announced weight, up to this many times the median.
    """

    radius: float = 0.0
    iterations: int = 3
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
        centre: Tensors = {
            name: server.memory.get(name, torch.zeros_like(tensor))
            for name, tensor in members.updates[0].delta.items()
        }
        for _ in range(self.iterations):
            weights = members.weights * self._kept(server, members, centre)
            credit(members, weights, updates)
            # v + mean of what is kept of (x_k - v), which is a step towards the mean of the x_k by those weights
            step = tensors.sub(mean_of(members, weights), centre)
            centre = tensors.add(centre, step, float(weights.sum() / members.weights.sum()))
        return replace(server, adapter=tensors.add(server.adapter, centre), memory=dict(centre))

    def _kept(self, server: ServerState, members: Members, centre: Tensors) -> Tensor:
        """Return how much of each member's way from the centre counts, (K,)."""
        own = lora.change(server.adapter, tensors.add(server.adapter, centre), server.scale)
        apart = lora.squared_distances(lora.gram([*members.changes, own]))[-1, :-1].sqrt()
        factors = torch.tensor(
            [tensors.norm(tensors.sub(update.delta, centre)) for update in members.updates], dtype=torch.float64
        )
        # Deviation: the paper clips the vector of all parameters; here the change of the weights, and the factors
        # too, since these are averaged and a small product may have large ones.
        return torch.minimum(
            robust.clipping(apart, self.radius or float(robust.median(apart))),
            robust.clipping(factors, float(robust.median(factors))),
        )

    def check(self, training: LocalTraining) -> None:
        if self.radius < 0 or self.iterations < 1:
            raise ConfigError(
                f"options 'radius' and 'iterations' of strategy 'centred_clipping' are {self.radius} and "
                f"{self.iterations}; expected 0 or more, and at least 1."
            )
        refuse_bad_screen("centred_clipping", self.max_norm, self.weight_cap)
