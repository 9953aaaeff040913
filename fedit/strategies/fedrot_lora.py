"""FedRot-LoRA: clients turn their factors towards the round's before they are averaged (2026, arXiv:2602.23638).

B R and R' A are the same adapter as B and A for every rotation R of the rank. Clients that learn alike may end
with factors that are turned against each other, whose means cancel. Each client therefore takes the rotation
that brings one of its factors closest to the one it received (orthogonal Procrustes): A in odd rounds, B in
even ones. The server averages as ever.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedit import lora
from fedit.errors import ConfigError
from fedit.strategies.base import Strategy
from fedit.types import LocalTraining, Tensors


@dataclass(frozen=True)
class FedRotLoRA(Strategy):
    """Average factors that were rotated into the basis of the round's adapter.

    strength: how much of the way to the best rotation is gone, above 0; 1 is all of it.
    """

    strength: float = 1.0

    def align(self, start: Mapping[str, Tensor], trained: Tensors, round: int) -> Tensors:
        aligned: Tensors = {}
        for module in lora.modules(trained):
            a, b = f"{module}.A", f"{module}.B"
            aligned[a], aligned[b] = trained[a], trained[b]
            # While B is zero the round's adapter has no direction to turn to.
            if start[b].any():
                own_a, own_b = trained[a].double(), trained[b].double()
                overlap = own_a @ start[a].double().T if round % 2 else own_b.T @ start[b].double()
                turn = self._rotation(overlap)
                aligned[a], aligned[b] = (turn.T @ own_a).to(trained[a].dtype), (own_b @ turn).to(trained[b].dtype)
        return aligned

    def _rotation(self, overlap: Tensor) -> Tensor:
        """Return the rotation R (rank, rank) for ``overlap`` = A_k A' or B_k' B, float64 (rank, rank)."""
        best = _nearest_rotation(overlap)
        if self.strength == 1:
            return best
        still = torch.eye(len(best), dtype=best.dtype)
        return _nearest_rotation((1 - self.strength) * still + self.strength * best)

    def check(self, training: LocalTraining) -> None:
        if not 0 < self.strength <= 1:
            raise ConfigError(
                f"option 'strength' of strategy 'fedrot_lora' is {self.strength}; expected more than 0, at most 1."
            )
        if training.keep_optimizer:
            raise ConfigError(
                "strategy 'fedrot_lora' turns the factors after every round, so moments that are kept would point "
                "elsewhere; set client_optimizer to reset."
            )


def _nearest_rotation(matrix: Tensor) -> Tensor:
    """Return the rotation (determinant 1) that is nearest to a square matrix."""
    u, _, v = torch.linalg.svd(matrix)
    signs = torch.ones(len(matrix), dtype=matrix.dtype)
    signs[-1] = torch.linalg.det(u @ v).sign()
    rotation: Tensor = (u * signs) @ v
    return rotation
