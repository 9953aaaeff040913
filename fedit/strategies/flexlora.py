"""FlexLoRA: Federated Fine-tuning of Large Language Models under Heterogeneous Tasks and Client Resources.

Jiamu Bai, Daoyuan Chen, Bingchen Qian, Liuyi Yao and Yaliang Li, 2024, arXiv:2402.11505. The server takes the best
approximation of its rank of the mean of the clients' products; a client of a lower rank is sent the leading
directions of it.

The weights by rank follow raFLoRA (Fei Wu, Jia Hu, Geyong Min and Shiqiang Wang, 2026, arXiv:2602.13486) and RBLA
(arXiv:2408.08699): a direction that some clients have no room for is a mean over those that have.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch

from fedit import lora, lowrank, tensors
from fedit.errors import ConfigError, did_you_mean
from fedit.strategies import options
from fedit.strategies.base import Strategy
from fedit.types import Broadcast, ClientInfo, LocalTraining, ServerState, Tensors
from fedit.updates import Updates

WEIGHTS = ("plain", "rank_aware")


@dataclass(frozen=True)
class FlexLoRA(Strategy):
    """Cut the mean of the clients' products to the server's rank; clients may have any lower one.

    weights: "plain" counts a client by its share of the data in every direction, so that directions beyond the
             smallest rank fade from round to round; "rank_aware" counts it among those that have the direction.
    """

    weights: Literal["plain", "rank_aware"] = "plain"

    @property
    def keeps_basis(self) -> bool:
        return False

    def broadcast(self, server: ServerState, client: ClientInfo) -> Broadcast:
        return lowrank.for_client(server, client)

    def aggregate(self, server: ServerState, updates: Updates) -> ServerState:
        stack = lowrank.Stack(server.scale)
        if self.weights == "plain":
            for update in updates:
                stack.add(updates.trained(update), update.weight, update.scale)
        else:
            kept = [(updates.trained(update), update.weight, update.scale) for update in updates]
            shares = _shares([(lora.rank_of(trained), weight) for trained, weight, _ in kept])
            for trained, weight, scale in kept:
                stack.add(trained, weight, scale, shares)
        rank = lora.rank_of(server.adapter)
        adapter: Tensors = {}
        kept_energy, energy, ranks = 0.0, 0.0, []
        for module, spectrum in lowrank.decompose(stack.mean(), rank).items():
            adapter[f"{module}.A"], adapter[f"{module}.B"] = lowrank.orthonormal(spectrum, rank)
            kept_energy += spectrum.energy(0, rank)
            energy += spectrum.energy(0)
            ranks.append(lowrank.effective_rank(spectrum.values))
        memory = {
            "energy_kept": torch.tensor(kept_energy / energy if energy else 1.0),
            "effective_rank": torch.tensor(sum(ranks) / len(ranks)),
        }
        return replace(server, adapter=tensors.flatten(adapter), memory=memory)

    def metrics(self, server: ServerState) -> dict[str, float]:
        return {name: float(server.memory[name]) for name in ("energy_kept", "effective_rank") if server.memory}

    def check(self, training: LocalTraining) -> None:
        options.fresh_moments("flexlora", training)
        if self.weights not in WEIGHTS:
            raise ConfigError(
                f"option 'weights' of strategy 'flexlora' is {self.weights!r}"
                f"{did_you_mean(str(self.weights), WEIGHTS)} Known: {', '.join(WEIGHTS)}."
            )


def _shares(clients: list[tuple[int, float]]) -> torch.Tensor:
    """Return for every direction the weight of all clients over that of those whose rank reaches it.

    clients: of each its rank and its weight.
    """
    total = sum(weight for _, weight in clients)
    reaching = [
        sum(weight for rank, weight in clients if rank > direction)
        for direction in range(max((rank for rank, _ in clients), default=0))
    ]
    return torch.tensor([total / weight for weight in reaching])
