"""Fed-SB: a small matrix between two frozen factors is all that is trained and sent.

(Singhal et al., 2025, arXiv:2502.15436.) The update of a layer is B R A with orthonormal B and A that never
change; clients train and send R, rank x rank, whose mean gives the mean of the products exactly.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedit import lora, seeds, subspaces, tensors
from fedit.errors import ConfigError
from fedit.strategies.base import Strategy
from fedit.types import Broadcast, ClientInfo, LocalTraining, ServerState, Tensors
from fedit.updates import Updates

_BASES = ("random", "first_update")
_FROZEN = "frozen"
"""Marks a server whose first update has given the frozen factors."""


@dataclass(frozen=True)
class FedSB(Strategy):
    """Train and average a small matrix between two frozen factors.

    The adapter holds "m.R" (rank, rank), trained, and "m.A" (rank, in) and "m.B" (out, rank), frozen.

    bases: where A and B come from. "random": the run's seed. "first_update": round 1 trains plain factors, whose
           mean's singular vectors become A and B; they are sent in every later round.
    """

    bases: str = "random"

    # Deviation: the paper takes the bases from the gradient of some rows in one place. Here no rows are in one
    # place: they are drawn, or they are those of the clients' mean first update.

    def init(self, adapter: Tensors) -> ServerState:
        if self.bases == "random":
            return ServerState(0, _split(adapter), memory={_FROZEN: torch.ones(1)})
        ones = {
            f"{module}.R": torch.eye(len(adapter[f"{module}.A"]), dtype=adapter[f"{module}.A"].dtype)
            for module in lora.modules(adapter)
        }
        return ServerState(0, {**adapter, **ones})

    def broadcast(self, server: ServerState, client: ClientInfo) -> Broadcast:
        return super().broadcast(_with_bases(server), client)

    def sends(self, name: str, server: ServerState) -> bool:
        known = self.bases == "random" or server.round == 0  # the seed gives A and B
        return not known or name.endswith(".R")

    def aggregate(self, server: ServerState, updates: Updates) -> ServerState:
        server = _with_bases(server)
        after = replace(server, adapter=tensors.add(server.adapter, updates.mean().delta))
        return after if _FROZEN in after.memory else _freeze(after)

    def factors(self, adapter: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        found: dict[str, Tensor] = {}
        for module in lora.modules(adapter):
            a, b = f"{module}.A", f"{module}.B"
            found[a], found[b] = adapter[a], adapter[b] @ adapter[f"{module}.R"]
        return found

    def trains(self, name: str, round: int) -> bool:
        first = self.bases == "first_update" and round == 1
        return name.endswith(".R") != first

    def check(self, training: LocalTraining) -> None:
        if self.bases not in _BASES:
            raise ConfigError(
                f"option 'bases' of strategy 'fed_sb' is '{self.bases}'; expected {' or '.join(_BASES)}."
            )


def _with_bases(server: ServerState) -> ServerState:
    """Return ``server`` with frozen bases: after round 1 it has them even if that round brought no update."""
    return server if server.round == 0 or _FROZEN in server.memory else _freeze(server)


def _freeze(server: ServerState) -> ServerState:
    factors = {name: tensor for name, tensor in server.adapter.items() if not name.endswith(".R")}
    return replace(server, adapter=_split(factors), memory={_FROZEN: torch.ones(1)})


def _split(adapter: Mapping[str, Tensor]) -> Tensors:
    """Return A, B and R of every module, with B R A equal to the given B A."""
    found: Tensors = {}
    for module in lora.modules(adapter):
        a, b = adapter[f"{module}.A"], adapter[f"{module}.B"]
        # A was drawn by the run's seed: what follows from it is the same for server and clients.
        drawn = hashlib.sha256(a.contiguous().numpy().tobytes()).hexdigest()
        left, values, right = subspaces.bases(b, a, seeds.derive(0, "bases", drawn))
        found |= {
            f"{module}.A": right.contiguous(),
            f"{module}.B": left.contiguous(),
            f"{module}.R": values.diag(),
        }
    return found
