"""FedMomentum: Preserving LoRA Training Momentum in Federated Fine-Tuning.

Peishen Yan, Yang Hua, Hao Wang, Jiaru Zhang, Xiaoyu Wu, Tao Song and Haibing Guan, 2026, arXiv:2603.08014. The
leading directions of the mean of the clients' products become the next adapter, the ones after them go into the
frozen part of the model.
"""

from dataclasses import dataclass, replace

from fedit import lowrank, tensors
from fedit.errors import ConfigError
from fedit.strategies import options
from fedit.strategies.base import Strategy
from fedit.types import Broadcast, ClientInfo, LocalTraining, ServerState, Tensors
from fedit.updates import Updates


@dataclass(frozen=True)
class FedMomentum(Strategy):
    """Keep the leading directions of the mean of the clients' products trainable, put the others into the base.

    energy:    share of the sum of squared singular values that survives; 1 keeps all of it.
    tolerance: relative error up to which the ledger is kept at a lower rank.
    """

    energy: float = 0.9999
    tolerance: float = 1e-6

    @property
    def keeps_basis(self) -> bool:
        return False

    def broadcast(self, server: ServerState, client: ClientInfo) -> Broadcast:
        return lowrank.for_client(server, client)

    def aggregate(self, server: ServerState, updates: Updates) -> ServerState:
        stack = lowrank.Stack(server.scale)
        for update in updates:
            stack.add(updates.trained(update), update.weight, update.scale)
        adapter: Tensors = {}
        rest: Tensors = {}
        # Deviation: the decomposition is exact where the paper's is randomised; the factors make that cheap.
        for module, spectrum in lowrank.decompose(stack.mean(), sizes=stack.sizes()).items():
            rank = len(server.adapter[f"{module}.A"])
            # Deviation: directions without energy start from a unit row of A; balanced, they would never learn.
            adapter[f"{module}.A"], adapter[f"{module}.B"] = lowrank.balanced(spectrum, rank)
            if (end := self._end(spectrum)) > rank:
                values = spectrum.values[rank:end].to(spectrum.left.dtype)
                rest[f"{module}.A"] = spectrum.right[rank:end]
                rest[f"{module}.B"] = spectrum.left[:, rank:end] * values
        # Deviation: the base keeps its precision; the rest stands beside it in float32 and is compressed.
        ledger = lowrank.plus(server.ledger, rest, server.scale, self.tolerance)
        return replace(server, adapter=tensors.flatten(adapter), ledger=ledger)

    def _end(self, spectrum: lowrank.Spectrum) -> int:
        """Return how many directions have the wanted share of the energy together; rounding errors are none."""
        values = spectrum.values
        real = int((values > self.tolerance * spectrum.size).sum())
        if self.energy == 1:
            return real
        energy = values.square().cumsum(0)
        return min(real, int((energy < self.energy * energy[-1:]).sum()) + 1)

    def check(self, training: LocalTraining) -> None:
        options.fresh_moments("fedmomentum", training)
        if not 0 < self.energy <= 1:
            raise ConfigError(
                f"option 'energy' of strategy 'fedmomentum' is {self.energy}; expected more than 0, at most 1."
            )
        lowrank.check_tolerance("fedmomentum", self.tolerance)
