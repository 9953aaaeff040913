"""Ravan: several heads, each a small trained matrix between frozen factors (Raje et al., 2025, arXiv:2506.05568).

The update of a layer is sum_i s_i B_i H_i A_i over the heads i. B_i and A_i never change; clients train H_i and
its scale s_i and send the product s_i H_i, whose mean gives the mean of the updates exactly. Every round begins
with s_i = 1. For the numbers that are sent the update's rank is high: rank^2 / heads numbers make rank ``rank``.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedit import lora, seeds, subspaces
from fedit.errors import ConfigError
from fedit.strategies.base import Strategy
from fedit.types import LocalTraining, ServerState, Tensors


@dataclass(frozen=True)
class Ravan(Strategy):
    """Train and average small matrices between frozen factors, several heads a layer.

    The adapter holds "m.H" (rank, rank / heads), the heads' matrices on top of each other, and "m.s" (heads,),
    trained, and "m.A" (rank, in) and "m.B" (out, rank), frozen and orthonormal, so that heads do not overlap.

    heads: into which the adapter's rank is divided; 0: four, or the next smaller number that divides it.
    """

    heads: int = 0

    def init(self, adapter: Tensors) -> ServerState:
        found: Tensors = {}
        for module in lora.modules(adapter):
            a, b = adapter[f"{module}.A"], adapter[f"{module}.B"]
            # A was drawn by the run's seed: what follows from it is the same for server and clients.
            drawn = hashlib.sha256(a.contiguous().numpy().tobytes()).hexdigest()
            left, values, right = subspaces.bases(b, a, seeds.derive(0, "bases", drawn))
            width = len(a) // self._heads(len(a))
            heads = [values[i : i + width].diag() for i in range(0, len(a), width)]
            found[f"{module}.A"], found[f"{module}.B"] = right.contiguous(), left.contiguous()
            found[f"{module}.H"], found[f"{module}.s"] = torch.cat(heads), torch.ones(len(heads), dtype=a.dtype)
        return ServerState(0, found)

    def sends(self, name: str, server: ServerState) -> bool:
        return name.endswith(".H")

    def factors(self, adapter: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        found: dict[str, Tensor] = {}
        for module in lora.modules(adapter):
            a, b, heads = f"{module}.A", f"{module}.B", self._scaled(adapter, module)
            found[a] = adapter[a]
            found[b] = torch.einsum("ohk,hkl->ohl", adapter[b].unflatten(1, heads.shape[:2]), heads).flatten(1)
        return found

    def align(self, start: Mapping[str, Tensor], trained: Tensors, round: int) -> Tensors:
        folded = dict(trained)
        for module in lora.modules(trained):
            folded[f"{module}.H"] = self._scaled(trained, module).flatten(0, 1)
            folded[f"{module}.s"] = torch.ones_like(trained[f"{module}.s"])
        return folded

    def _scaled(self, adapter: Mapping[str, Tensor], module: str) -> Tensor:
        """Return s_i H_i of every head, (heads, rank / heads, rank / heads)."""
        scales = adapter[f"{module}.s"]
        scaled: Tensor = scales.view(-1, 1, 1) * adapter[f"{module}.H"].unflatten(0, (len(scales), -1))
        return scaled

    def _heads(self, rank: int) -> int:
        heads = self.heads or max(number for number in (1, 2, 3, 4) if rank % number == 0)
        if rank % heads:
            raise ConfigError(
                f"strategy 'ravan' cannot divide lora_r={rank} into {heads} heads of one size; set lora_r to a "
                "multiple of the option 'heads'."
            )
        return heads

    def trains(self, name: str, round: int) -> bool:
        return name.endswith((".H", ".s"))

    def uploads(self, name: str, round: int) -> bool:
        return name.endswith(".H")

    def check(self, training: LocalTraining) -> None:
        if self.heads < 0:
            raise ConfigError(f"option 'heads' of strategy 'ravan' is {self.heads}; expected 0 or more.")
