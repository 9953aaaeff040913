"""LoRA-FAIR: correct the mean B so that its product comes closest to the mean of the products.

(Bian et al., ICCV 2025, arXiv:2411.14961.) The server keeps the mean A and adds to the mean B the dB for which
(B + dB) A is nearest to sum_k p_k B_k A_k while dB stays small. It needs every client's own factors and holds
those of one cohort.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedit import lora
from fedit.errors import ConfigError, NoUpdates
from fedit.strategies.base import Strategy
from fedit.tensors import RunningMean
from fedit.types import LocalTraining, ServerState, Tensors
from fedit.updates import Updates


@dataclass(frozen=True)
class LoRAFair(Strategy):
    """Average A and B, then move B towards the mean of the products.

    regularisation: how dear a large correction is, in units of A's squared entries; 0 is the nearest product
                    that the mean A allows, very large is the plain mean.
    """

    regularisation: float = 0.01

    def aggregate(self, server: ServerState, updates: Updates) -> ServerState:
        clients: list[tuple[Tensors, float]] = []
        mean = RunningMean()
        for update in updates:
            ratio = update.scale / server.scale
            own = {n: t * ratio if n.endswith(".B") else t for n, t in updates.trained(update).items()}
            mean.add(own, update.weight)
            clients.append((own, update.weight))
        if not clients:
            raise NoUpdates("no client of the cohort delivered a usable update")
        adapter = dict(mean.value())
        for module in lora.modules(adapter):
            a, b = f"{module}.A", f"{module}.B"
            factors = [(own[b], own[a], weight / mean.weight) for own, weight in clients]
            correction = self._correction(adapter[b].double(), adapter[a].double(), factors)
            adapter[b] = (adapter[b].double() + correction).to(adapter[b].dtype)
        return replace(server, adapter=adapter)

    def _correction(self, b: Tensor, a: Tensor, clients: list[tuple[Tensor, Tensor, float]]) -> Tensor:
        """Return the dB that minimises |(b + dB) a - sum p_k b_k a_k|^2 + regularisation |dB|^2.

        b: (out, rank), a: (rank, in), the means, float64; clients: (b_k, a_k, p_k). Returns (out, rank).
        """
        # Deviation: the paper takes gradient steps on a similarity of the products; this is the least-squares
        # problem's own solution, (sum p_k B_k A_k A' - B A A') (A A' + regularisation I)^-1.
        gram = a @ a.T
        wanted = torch.zeros_like(b)
        for b_k, a_k, share in clients:
            wanted.addmm_(b_k.double(), a_k.double() @ a.T, alpha=share)
        penalty = self.regularisation * torch.eye(len(gram), dtype=gram.dtype)
        inverse: Tensor = torch.linalg.pinv(gram + penalty, hermitian=True)
        return (wanted - b @ gram) @ inverse

    def check(self, training: LocalTraining) -> None:
        if not self.regularisation >= 0:
            raise ConfigError(
                f"option 'regularisation' of strategy 'lora_fair' is {self.regularisation}; expected 0 or more."
            )
