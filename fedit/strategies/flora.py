"""FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous Low-Rank Adaptations.

Ziyao Wang, Zheyu Shen, Yexiao He, Guoheng Sun, Hongyi Wang, Lingjuan Lyu and Ang Li, 2024, arXiv:2409.05976. The
clients' factors are stacked, which gives the mean of their products exactly and for any ranks; all of it goes into
the frozen part of the model, and every round starts from a new adapter of no effect.
"""

import hashlib
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedit import lowrank, seeds, tensors
from fedit.strategies import options
from fedit.strategies.base import Strategy
from fedit.types import Broadcast, ClientInfo, LocalTraining, ServerState, Tensors
from fedit.updates import Updates


@dataclass(frozen=True)
class FLoRA(Strategy):
    """Put the mean of the clients' products into the base; every round trains a fresh adapter.

    tolerance: relative error up to which the ledger is kept at a lower rank.
    """

    tolerance: float = 1e-6

    @property
    def keeps_basis(self) -> bool:
        return False

    def init(self, adapter: Tensors) -> ServerState:
        return ServerState(0, adapter, memory={"seed": _seed_of(adapter)})

    def broadcast(self, server: ServerState, client: ClientInfo) -> Broadcast:
        # Deviation: clients of a lower rank get the first rows of one fresh A, where each might draw its own.
        return lowrank.for_client(server, client)

    def aggregate(self, server: ServerState, updates: Updates) -> ServerState:
        stack = lowrank.Stack(server.scale)
        for update in updates:
            stack.add(updates.trained(update), update.weight, update.scale)
        # Deviation: the base keeps its precision; the sum stands beside it in float32 and is compressed.
        ledger = lowrank.plus(server.ledger, stack.mean(), server.scale, self.tolerance, stack.sizes())
        return replace(server, adapter=_fresh(server), ledger=ledger)

    def check(self, training: LocalTraining) -> None:
        options.fresh_moments("flora", training)
        lowrank.check_tolerance("flora", self.tolerance)


def _seed_of(adapter: Tensors) -> Tensor:
    """Return a seed that the run's seed decides, by way of the A that it drew."""
    digest = hashlib.sha256()
    for name in sorted(adapter):
        digest.update(adapter[name].contiguous().view(torch.uint8).numpy().tobytes())
    return torch.tensor(int.from_bytes(digest.digest()[:8], "big") >> 1)


def _fresh(server: ServerState) -> Tensors:
    """Return the adapter that the next round trains: A uniform in ±1/sqrt(in) as LoRA draws it, B zero."""
    fresh: Tensors = {}
    for name, tensor in server.adapter.items():
        fresh[name] = torch.zeros_like(tensor)
        if name.endswith(".A"):
            seed = seeds.derive(int(server.memory["seed"]), "flora", server.round + 1, name)
            bound = 1 / math.sqrt(tensor.shape[1])
            fresh[name].uniform_(-bound, bound, generator=torch.Generator().manual_seed(seed))
    return tensors.flatten(fresh)
